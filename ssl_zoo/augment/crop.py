"""Random resized crop and flip of a batch: boxes, and the pixels inside them resampled to one size.

Boxes are drawn as torchvision's RandomResizedCrop draws them. An output pixel reads the source through one of three filters:
bilinear (4 pixels), or bilinear / bicubic stretched by the shrink factor against aliasing, which is what Pillow's resize does and
therefore what the papers trained on. Shapes are fixed, nothing is read on the host, and images that are never shrunk skip the stretch.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Planes = tuple[Tensor, Tensor, Tensor]  # red, green, blue, [B, h, w] each: apart, a compiler fuses all that follows
TRIES = 10  # boxes drawn until one fits, as torchvision does


@dataclass
class Box:
    """The top left corner and the extent of a crop for each image, whole numbers of pixels as floats [B]; flip: mirrored, bool [B]."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor


def draw_box(u: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], flip: float) -> Box:
    """Boxes of an area from `scale` of the image and a width / height log-uniform in `ratio`; the first of TRIES that fits, else the
    largest central one of a permitted ratio. u: uniform numbers [B, 2 * TRIES + 3].
    """
    area = (scale[0] + (scale[1] - scale[0]) * u[:, :TRIES]) * (height * width)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * u[:, TRIES : 2 * TRIES])
    w, h = torch.sqrt(area * aspect).round(), torch.sqrt(area / aspect).round()
    good = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    found = good.any(1)
    first = good.to(torch.int8).argmax(1, keepdim=True)
    whole_w = min(width, round(height * ratio[1]))
    whole_h = min(height, round(width / ratio[0]))
    w = torch.where(found, w.gather(1, first)[:, 0], float(whole_w))
    h = torch.where(found, h.gather(1, first)[:, 0], float(whole_h))
    top = torch.where(found, (u[:, -3] * (height - h + 1)).floor(), float((height - whole_h) // 2))
    left = torch.where(found, (u[:, -2] * (width - w + 1)).floor(), float((width - whole_w) // 2))
    # a number a rounding below 1 may give one position too many
    return Box(torch.minimum(top, height - h), torch.minimum(left, width - w), h, w, u[:, -1] < flip)


def resample(images: Tensor, rows: Tensor, box: Box, size: int, interpolation: str, antialias: bool, largest: float) -> Planes:
    """Crops of images uint8 [N, 3, H, W] at `rows` [B], on [0, 1]: planes [B, size, size].

    largest: no crop is longer than so many pixels on either side, which bounds the reach of the stretched filters.
    """
    shrinks = largest > size
    if interpolation == "bilinear" and not (antialias and shrinks):
        return _bilinear(images, rows, box, size)
    reach = 1 if interpolation == "bilinear" else 2
    stretch = largest / size if antialias and shrinks else 1.0
    taps = math.ceil(2 * reach * stretch) + (1 if antialias else 0)
    x_at, x_weight = _taps(box.left, box.width, size, interpolation, antialias, taps, box.flip)
    y_at, y_weight = _taps(box.top, box.height, size, interpolation, antialias, taps, None)
    column = torch.arange(images.shape[3], device=images.device)
    row = torch.arange(size, device=images.device)[:, None]
    b, n = rows[:, None, None], torch.arange(len(rows), device=images.device)[:, None, None]
    planes = []
    for c in range(3):  # along y first: whole rows are read, which lie together in memory
        tall = weighted_sum([images[b, c, at[:, :, None], column] for at in y_at], [w[:, :, None] for w in y_weight])
        plane = weighted_sum([tall[n, row, at[:, None]] for at in x_at], [w[:, None] for w in x_weight])
        planes.append((plane * (1 / 255)).clamp(0, 1))  # bicubic overshoots
    # as_strided has the compiler store the planes: what follows reads them twice, and they cost more than colours
    red, green, blue = (torch.as_strided(p, p.shape, p.stride()) for p in planes)
    return red, green, blue


def weighted_sum(parts: Iterable[Tensor], weights: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, (x * w for x, w in zip(parts, weights, strict=True)))


def _positions(start: Tensor, size: int, flip: Tensor | None) -> Tensor:
    """Numbers of the output pixels along an axis, [B, size], from the last to the first where flipped."""
    p = torch.arange(size, device=start.device, dtype=torch.float32).expand(len(start), -1)
    return p if flip is None else torch.where(flip[:, None], size - 1 - p, p)


def _bilinear(images: Tensor, rows: Tensor, box: Box, size: int) -> Planes:
    """The four nearest pixels, weighted by nearness; those beyond the crop are its border."""

    def neighbours(start: Tensor, length: Tensor, flip: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        at = ((_positions(start, size, flip) + 0.5) * (length / size)[:, None] - 0.5).clamp(min=0)
        near = at.floor()
        far = torch.minimum(near + 1, length[:, None] - 1)
        return (near + start[:, None]).long(), (far + start[:, None]).long(), at - near

    x0, x1, fx = (t[:, None, :] for t in neighbours(box.left, box.width, box.flip))
    y0, y1, fy = (t[:, :, None] for t in neighbours(box.top, box.height, None))
    b = rows[:, None, None]

    def plane(c: int) -> Tensor:
        above, right = images[b, c, y0, x0].float(), images[b, c, y0, x1].float()
        below, across = images[b, c, y1, x0].float(), images[b, c, y1, x1].float()
        upper, lower = above + (right - above) * fx, below + (across - below) * fx
        return (upper + (lower - upper) * fy) * (1 / 255)

    return plane(0), plane(1), plane(2)


def _taps(
    start: Tensor, length: Tensor, size: int, interpolation: str, antialias: bool, taps: int, flip: Tensor | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(source indices int64, weights float32), `taps` of each [B, size], of a separable resize along one axis of the crops.

    antialias: Pillow's filters (triangle; Keys' cubic with a = -0.5) stretched by max(1, length / size), cut at the crop and
    normalised. Otherwise torch's: a = -0.75, pixels beyond the crop are its border.
    """
    shrink = (length / size)[:, None]
    centre = (_positions(start, size, flip) + 0.5) * shrink
    reach = 1.0 if interpolation == "bilinear" else 2.0
    stretch = shrink.clamp(min=1) if antialias else torch.ones_like(shrink)
    first = (centre - reach * stretch + 0.5).floor()
    if antialias:
        first = first.clamp(min=0)
    at = first[:, :, None] + torch.arange(taps, device=start.device, dtype=torch.float32)
    d = ((at + 0.5 - centre[:, :, None]) / stretch[:, :, None]).abs()
    if interpolation == "bilinear":
        weight = (1 - d).clamp(min=0)
    else:
        a = -0.5 if antialias else -0.75
        inner = ((a + 2) * d - (a + 3)) * d * d + 1
        outer = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weight = torch.where(d < 1, inner, torch.where(d < 2, outer, 0.0))
    end = length[:, None, None] - 1
    if antialias:
        weight = torch.where(at <= end, weight, 0.0)
        weight = weight / weight.sum(-1, keepdim=True)
    at = torch.minimum(at.clamp(min=0), end) + start[:, None, None]
    return at.long().unbind(-1), weight.unbind(-1)

"""Features of un-augmented images."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.data.images import Images
from ssl_zoo.data.ondemand import OnDemand, Pixels
from ssl_zoo.distributed import gather_uneven, rank, union, world_size
from ssl_zoo.errors import UserError


@dataclass(frozen=True)
class Subject:
    """What is judged, and how its images are prepared: size in pixels that it takes, mean and std on [0, 1]."""

    backbone: nn.Module
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def centre(pixels: Tensor, size: int) -> Tensor:
    """The centre [B, 3, size, size] of uint8 images [B, 3, S, S], as floats on [0, 1]."""
    off = (pixels.shape[-1] - size) // 2
    return pixels[..., off : off + size, off : off + size].float() / 255


def as_bytes(images: Tensor) -> np.ndarray:
    """Images on [0, 1] as uint8, for a figure."""
    return (images.clamp(0, 1) * 255).byte().cpu().numpy()


def normalised(pixels: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...], resize: int | None = None) -> Tensor:
    """What a backbone is given of uint8 images [B, 3, S, S] when it is judged: see `extract`."""
    m, s = (torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in (mean, std))
    x = centre(pixels, size)
    if resize is not None and resize != size:
        x = F.interpolate(x, resize, mode="bicubic", antialias=True).clamp(0, 1)
    return (x - m) / s


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and every sub-module's own mode again afterwards."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training


def dtype_of(module: nn.Module) -> torch.dtype:
    """What its weights are in; float32 for a module without any."""
    return next((p.dtype for p in module.parameters()), torch.float32)


@torch.no_grad()
def extract(
    backbone: nn.Module,
    pixels: Pixels,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str,
    batch_size: int = 512,
    resize: int | None = None,
) -> Tensor:
    """Features float32 [N, D] of uint8 images [N, 3, S, S]: centre crop of `size`, resized to `resize` where that is another size (bicubic,
    antialiased), normalised, backbone in evaluation mode.

    Under torch.distributed every rank computes its part and all get the whole, in the order of `pixels`.
    """
    share = -(-len(pixels) // world_size())
    first, end = rank() * share, min((rank() + 1) * share, len(pixels))
    dtype = dtype_of(backbone)

    def of(some: Tensor) -> Tensor:
        return backbone(normalised(some.to(device), size, mean, std, resize).to(dtype)).float()

    with eval_mode(backbone):
        parts = [of(pixels[start : min(start + batch_size, end)]) for start in range(first, end, batch_size)]
        if not parts:  # a rank that has no images
            width = getattr(backbone, "num_features", None)
            parts = [of(pixels[:1])[:0] if width is None else torch.empty(0, int(width), device=device)]
    if isinstance(pixels, OnDemand):  # what one rank could not read has no label on any
        pixels.learn(union(pixels.unreadable.items()))
    return gather_uneven(torch.cat(parts))


def features_of(subject: Subject, net: nn.Module, images: Images, device: torch.device, batch_size: int = 512) -> Tensor:
    """What `net` makes of un-augmented images as the subject takes them, [N, D]. Raises UserError where that is no finite number."""
    x = extract(net, images.pixels, images.image_size, subject.mean, subject.std, device, batch_size, subject.image_size)
    bad = int((~torch.isfinite(x)).any(1).sum())
    if bad:
        raise UserError(f"{bad:,} of {len(x):,} images get features that are no finite numbers: these weights have diverged.")
    return x


def raw_pixels(pixels: Pixels, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images as their own features: pixels of the centre crop, normalised as for a backbone, [N, 3 S S]; shrunk to 32 px where larger."""
    parts = []
    m, s = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
    for chunk in pixels.split(512):
        x = (centre(chunk, size) - m) / s
        if size > 32:
            x = F.interpolate(x, 32, mode="bilinear", antialias=True)
        parts.append(x.flatten(1))
    return torch.cat(parts)

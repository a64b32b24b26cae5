"""The fast engine: all views of a batch as one graph of plain tensor operations, compiled where that pays."""

import logging
from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ssl_zoo.augment.blur import blur
from ssl_zoo.augment.colour import grayscale, jitter, places, select, solarize
from ssl_zoo.augment.crop import TRIES, Planes, draw_box, resample
from ssl_zoo.augment.spec import View

log = logging.getLogger("ssl_zoo")
COLOURS = 13  # uniform numbers that decide what follows the crop
NUMBERS = COLOURS + 2 * TRIES + 3  # uniform numbers that decide a view
IN_CACHE = 1 << 18  # pixels of a view that a CPU handles at once: more would leave its caches


class FusedEngine(nn.Module):
    """images uint8 [N, 3, H, W], seed, rows [B] of the images (None: all) -> one view [B, 3, size, size] per specification, of `dtype`,
    in channels_last or contiguous, normalised by mean and std.

    Every choice comes from uniform numbers that a generator of its own draws at once: the same seed gives the same views on the same
    kind of device, and the random state outside is left as it was. The rest is a pure function of fixed shapes, and no value is read on
    the host. compile_for: the batch size for which it is compiled into one graph (the first call then takes a while); None: not at all.
    """

    def __init__(
        self,
        views: list[View],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dtype: torch.dtype = torch.float32,
        compile_for: int | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.groups = [(view, len(list(equal))) for view, equal in groupby(views)]  # equal views are made as one larger batch
        self.mean, self.std, self.dtype, self.compile_for, self.channels_last = mean, std, dtype, compile_for, channels_last
        self.compiled_from: int | None = None  # how many images it was compiled for: another number would compile it again
        self.compiled: Callable[..., list[Tensor]] = self.make
        if compile_for:
            unchecked: dict[str, Any] = {"assert_indirect_indexing": False}  # draw_box and resample stay inside
            self.compiled = torch.compile(self.make, dynamic=False, fullgraph=True, options=unchecked)

    @torch.no_grad()
    def forward(self, images: Tensor, seed: int, rows: Tensor | None = None) -> list[Tensor]:
        rows = torch.arange(len(images), device=images.device) if rows is None else rows
        generator = torch.Generator(images.device).manual_seed(seed)
        count = sum(n for _, n in self.groups)
        u = torch.rand(count, len(rows), NUMBERS, generator=generator, device=images.device)
        make = self._compiled if len(rows) == self.compile_for and self.compiled_from in (None, len(images)) else self.make
        most = max(1, IN_CACHE // self.groups[0][0].size ** 2) if images.device.type == "cpu" else len(rows)
        parts, again = equal_parts(len(rows), most)
        with torch.autocast(images.device.type, enabled=False):
            made = [make(images, rows[p], u[:, p]) for p in parts]
        return [torch.cat([*views[:-1], views[-1][again:]]) for views in zip(*made, strict=True)] if len(made) > 1 else made[0]

    def _compiled(self, images: Tensor, rows: Tensor, u: Tensor) -> list[Tensor]:
        try:
            views = self.compiled(images, rows, u)
            self.compiled_from = len(images)
            return views
        except (torch._dynamo.exc.TorchDynamoException, OSError) as e:  # no working compiler on this machine, most often
            reason = str(e).strip().splitlines()[0]
            log.warning("views are made without the compiler, which failed here (augment.compile=false skips it): %s", reason)
            self.compile_for = None
            return self.make(images, rows, u)

    def make(self, images: Tensor, rows: Tensor, u: Tensor) -> list[Tensor]:
        """The views of images [N, 3, H, W] at `rows` [B] that the uniform numbers u [V, B, NUMBERS] decide."""
        views: list[Tensor] = []
        for view, count in self.groups:
            rgb = make_view(images, rows.repeat(count), u[len(views) : len(views) + count].flatten(0, 1), view)
            planes = [((x - m) * (1 / s)).to(self.dtype) for x, m, s in zip(rgb, self.mean, self.std, strict=True)]
            # channels_last: convolutions are a third faster with it on CPUs, and on GPUs in half precision
            view_batch = torch.stack(planes, -1).permute(0, 3, 1, 2) if self.channels_last else torch.stack(planes, 1)
            views += view_batch.chunk(count)
        return views


def equal_parts(count: int, most: int) -> tuple[list[slice], int]:
    """Slices of `count` things, at most so many in each, and how many of the last one are in the one before too: all are equally long,
    since another length would have the graph compiled again.
    """
    number = max(1, -(-count // max(1, most)))
    size = -(-count // number)
    starts = [min(i * size, count - size) for i in range(number)]
    return [slice(s, s + size) for s in starts], number * size - count


def make_view(images: Tensor, rows: Tensor, u: Tensor, view: View) -> Planes:
    """One view of each image at `rows` [B], on [0, 1], as the uniform numbers u [B, NUMBERS] decide: operations in the order of View."""
    height, width = images.shape[-2:]
    bright, contrast, saturated, hue, jittered, gray, sigma, blurred, solarized = u[:, 4:COLOURS].unbind(1)
    box = draw_box(u[:, COLOURS:], height, width, view.scale, view.ratio, view.flip)
    rgb = resample(images, rows, box, view.size, view.interpolation, view.antialias, view.largest(height, width))
    if view.jitter_p:
        strengths = (view.brightness, bright), (view.contrast, contrast), (view.saturation, saturated)
        b, c, s = (between(max(0.0, 1 - amplitude), 1 + amplitude, n) for amplitude, n in strengths)
        changed = jitter(rgb, places(u[:, :4]), b, c, s, between(-view.hue, view.hue, hue))
        rgb = select(jittered < view.jitter_p, changed, rgb)
    if view.gray:
        rgb = grayscale(rgb, gray < view.gray)
    if view.blur_p:
        rgb = blur(rgb, between(*view.blur_sigma, sigma), blurred < view.blur_p, view.blur_kernel)
    if view.solarize_p:
        rgb = solarize(rgb, solarized < view.solarize_p, view.solarize_threshold)
    return rgb


def between(low: float, high: float, u: Tensor) -> Tensor:
    return low + (high - low) * u

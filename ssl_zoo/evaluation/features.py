"""Features of un-augmented images."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ssl_zoo.data.ondemand import OnDemand, Pixels
from ssl_zoo.distributed import gather_uneven, rank, union, world_size


def centre(pixels: Tensor, size: int) -> Tensor:
    """The centre [B, 3, size, size] of uint8 images [B, 3, S, S], as floats on [0, 1]."""
    off = (pixels.shape[-1] - size) // 2
    return pixels[..., off : off + size, off : off + size].float() / 255


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


@torch.no_grad()
def extract(
    backbone: nn.Module,
    pixels: Pixels,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str,
    batch_size: int = 512,
) -> Tensor:
    """Features float32 [N, D] of uint8 images [N, 3, S, S]: centre crop of `size`, normalised, backbone in evaluation mode.

    Under torch.distributed every rank computes its part and all get the whole, in the order of `pixels`.
    """
    m, s = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (mean, std))
    share = -(-len(pixels) // world_size())
    first, end = rank() * share, min((rank() + 1) * share, len(pixels))
    dtype = next((p.dtype for p in backbone.parameters()), torch.float32)
    parts = []
    with eval_mode(backbone):
        for start in range(first, end, batch_size):
            x = (centre(pixels[start : min(start + batch_size, end)].to(device), size) - m) / s
            parts.append(backbone(x.to(dtype)).float())
    if isinstance(pixels, OnDemand):  # what one rank could not read has no label on any
        pixels.learn(union(pixels.unreadable.items()))
    if not parts:  # a rank that has no images
        parts = [torch.empty(0, int(backbone.num_features), device=device)]  # type: ignore[arg-type]
    return gather_uneven(torch.cat(parts))


def raw_pixels(pixels: Pixels, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images as their own features: pixels of the centre crop, normalised as for a backbone, [N, 3 S S]; shrunk to 32 px where larger."""
    parts = []
    m, s = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
    for chunk in pixels.split(512):
        x = (centre(chunk, size) - m) / s
        if size > 32:
            x = torch.nn.functional.interpolate(x, 32, mode="bilinear", antialias=True)
        parts.append(x.flatten(1))
    return torch.cat(parts)

"""Gaussian blur of planes with a width of its own for every image."""

import torch
from torch import Tensor

from ssl_zoo.augment.crop import Planes, weighted_sum


def weights(sigma: Tensor, on: Tensor, kernel: int) -> Tensor:
    """torchvision's Gaussian of `kernel` pixels (odd) and width sigma [B] in pixels; the identity where not `on`. [B, kernel]"""
    x = torch.arange(kernel, device=sigma.device, dtype=torch.float32) - kernel // 2
    g = torch.exp(-0.5 * (x / sigma[:, None]).square())
    return torch.where(on[:, None], g / g.sum(1, keepdim=True), (x == 0).float())


def blur(rgb: Planes, sigma: Tensor, on: Tensor, kernel: int) -> Planes:
    """Blur the images where `on` [B] holds; beyond the border lies the mirror image, as in torchvision. Columns first, then rows."""
    r = kernel // 2
    g = weights(sigma, on, kernel)[:, None, None].unbind(-1)

    def down(x: Tensor) -> Tensor:
        at = (torch.arange(x.shape[1], device=x.device)[:, None] + torch.arange(-r, r + 1, device=x.device)).abs()
        at = torch.minimum(at, 2 * (x.shape[1] - 1) - at)
        return weighted_sum([x[:, at[:, k]] for k in range(kernel)], g)

    def across(x: Tensor) -> Tensor:
        padded = torch.cat([x[..., 1 : r + 1].flip(-1), x, x[..., -r - 1 : -1].flip(-1)], -1)
        return weighted_sum([padded[..., k : k + x.shape[-1]] for k in range(kernel)], g)

    red, green, blue = (across(down(x)) for x in rgb)
    return red, green, blue

"""The outlines of the data set `shapes`: signed distances, negative inside, in units of a shape's radius."""

import math

import torch
from torch import Tensor


def _star() -> list[tuple[float, float]]:
    radii = [1.0, 0.42] * 5
    return [(r * math.sin(math.pi * k / 5), 0.05 - r * math.cos(math.pi * k / 5)) for k, r in enumerate(radii)]


def _heart(n: int = 28) -> list[tuple[float, float]]:
    turns = [2 * math.pi * (k + 0.5) / n for k in range(n)]
    heights = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in turns]
    return [(0.95 * math.sin(a) ** 3, -(h + 2.5) / 16.5) for a, h in zip(turns, heights, strict=True)]


# Corners in turn, about the centre of the shape, in units of its radius; x to the right, y down.
POLYGONS = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -0.95), (0.98, 0.75), (-0.98, 0.75)],
    "star": _star(),
    "cross": [(-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
              (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)],
    "heart": _heart(),
    "hourglass": [(-0.85, -0.9), (0.85, -0.9), (0.12, 0.0), (0.85, 0.9), (-0.85, 0.9), (-0.12, 0.0)],
    "arrow": [(0.0, -0.98), (0.9, -0.05), (0.32, -0.05), (0.32, 0.95), (-0.32, 0.95), (-0.32, -0.05), (-0.9, -0.05)],
}  # fmt: skip

KINDS = ["circle", "crescent", "ring", *POLYGONS]


def _polygon(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Signed distance to a polygon: the nearest edge gives its size, the parity of the edges crossed its sign."""
    nearest = torch.full_like(x, torch.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp_(0, 1)
        nearest = torch.minimum(nearest, (px - along * ex).square_() + (py - along * ey).square_())
        if ey != 0:
            inside ^= ((y < ay) != (y < by)) & (px < py * (ex / ey))
    return torch.where(inside, -1.0, 1.0) * nearest.sqrt_()


def distance(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the named shape, negative inside, in units of the shape's radius."""
    if name in POLYGONS:
        return _polygon(x, y, POLYGONS[name])
    if name == "ring":
        return (torch.hypot(x, y) - 0.68).abs_() - 0.24
    if name == "crescent":
        return torch.maximum(torch.hypot(x, y) - 0.95, 0.72 - torch.hypot(x - 0.42, y))
    return torch.hypot(x, y) - 0.9

"""What a representation is like, measured without labels: rank, spectrum, and likeness to another representation."""

import math
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.collapse.health import measure
from ssl_zoo.errors import UserError


def rankme(h: Tensor) -> float:
    """RankMe of features [N, D], not centred: exp of the entropy of p_k = sigma_k / |sigma|_1 + 1e-7; about 1 to min(N, D).

    NaN where features are no finite numbers. (Garrido et al. 2023, eq. 1.)
    """
    if not torch.isfinite(h).all():
        return math.nan
    s = torch.linalg.svdvals(_exact(h))
    p = s / s.sum().clamp_min(torch.finfo(s.dtype).tiny) + 1e-7
    return float((-(p * p.log()).sum()).exp())


def spectrum(h: Tensor) -> tuple[Tensor, Tensor]:
    """Of features [N, D], largest first: the min(N, D) singular values of the centred features, and the standard deviations of the D
    dimensions. NaN where features are no finite numbers.
    """
    n, dim = h.shape
    if not torch.isfinite(h).all():
        return torch.full((min(n, dim),), math.nan), torch.full((dim,), math.nan)
    x = _exact(h)
    x = x - x.mean(0)
    return torch.linalg.svdvals(x), x.square().mean(0).sqrt().sort(descending=True).values


def linear_cka(x: Tensor, y: Tensor, debiased: bool = False) -> float:
    """Linear CKA of two representations [N, D1], [N, D2] of the same images: 0 unrelated, 1 equal but for rotation and scale. Exact, in
    feature space, so N may be large. (Kornblith et al. 2019, section 3.)

    Few images in many dimensions look alike by chance; `debiased` corrects that by unbiased estimates of HSIC and may fall
    slightly below 0. (Song et al. 2012, eq. 5; Nguyen et al. 2021, eq. 3.) NaN where a representation is constant or not finite.
    """
    if len(x) != len(y):
        raise UserError(f"CKA compares features of the same images, not of {len(x)} and {len(y)}: extract both from one data set.")
    if debiased and len(x) < 4:
        raise UserError(f"Debiased CKA needs at least 4 images, not {len(x)}: give more or set debiased=False.")
    x, y = (_exact(v) - _exact(v).mean(0) for v in (x, y))
    x, y = (v / v.norm() for v in (x, y))  # CKA knows no scale, and products of large features would overflow
    hsic = _unbiased_hsic if debiased else _hsic
    own = hsic(x, x) * hsic(y, y)
    return float(hsic(x, y) / own.sqrt()) if own > 0 else math.nan


def cka_matrix(features: dict[str, Tensor], debiased: bool = False) -> dict[str, Any]:
    """Linear CKA of every pair of named features [N, D_i] of the same images: {"names": [n], "matrix": [[n] * n]}."""
    names = list(features)
    matrix = [[math.nan] * len(names) for _ in names]
    for i, a in enumerate(names):
        for j, b in enumerate(names[: i + 1]):
            matrix[i][j] = matrix[j][i] = linear_cka(features[a], features[b], debiased)
    return {"names": names, "matrix": matrix}


def representation_health(h: Tensor, h1: Tensor, h2: Tensor) -> dict[str, Any]:
    """Everything that tells a representation's health without labels.

    h: [N, D] features of un-augmented images; h1, h2: [M, D] of two views of some of them. Adds to `measure` (health.py) "rankme" and the
    lists "singular_values" and "dim_std" of `spectrum`. Distances of all pairs are taken: some thousand images are enough.
    """
    singular_values, dim_std = spectrum(h)
    return {**measure(h, h1, h2), "rankme": rankme(h), "singular_values": singular_values.tolist(), "dim_std": dim_std.tolist()}


def _exact(h: Tensor) -> Tensor:
    return h.float() if h.device.type == "mps" else h.double()  # which has no float64


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """|Y^T X|^2 of centred features, HSIC but for a factor that CKA does not see."""
    return (y.T @ x).square().sum()


def _unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """HSIC_1 of centred features, but for a factor: traces and sums of the N x N Gram matrices without their diagonals, never built."""
    n = len(x)
    x2, y2 = x.square().sum(1), y.square().sum(1)
    trace = _hsic(x, y) - (x2 * y2).sum()
    sums = x2.sum() * y2.sum()  # rows of a whole Gram matrix of centred features sum to 0, so without the diagonal to -|x_i|^2
    rows = (x2 * y2).sum()
    return trace + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows

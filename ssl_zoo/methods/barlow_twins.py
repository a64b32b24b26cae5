"""Barlow Twins: Self-Supervised Learning via Redundancy Reduction (Zbontar et al. 2021, arXiv:2103.03230).

    for x in loader:                              # Algorithm 1
        z1, z2 = f(x1), f(x2)                     # backbone and projector
        C = norm(z1)^T norm(z2) / N               # cross-correlation over the batch, D x D
        loss = sum_i (1 - C_ii)^2 + lambd sum_{i != j} C_ij^2

Where sources differ: lambd is the official code's 0.0051 (paper: 0.005) and `loss_scale` 1 (solo-learn: 0.025, on CIFAR 0.1); the
official code has its norms and biases learn at a rate of their own (`optimizer.bias_base_lr`). Mean, variance and C are over the global
batch with exact gradients; the official code's all-reduce gives 1 / ranks of the gradient, which LARS hides but for norms and biases.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ssl_zoo.distributed import mean_over_ranks
from ssl_zoo.methods.base import Method
from ssl_zoo.nn.heads import mlp
from ssl_zoo.nn.numerics import in_float32


@in_float32
def barlow_twins_loss(z1: Tensor, z2: Tensor, lambd: float) -> Tensor:
    """Eq. (1) with sums over i, j as in the paper; z1, z2 [B, D] raw projections of this rank, returns [], the same on every rank."""
    C = mean_over_ranks(_standardise(z1).T @ _standardise(z2) / len(z1))  # [D, D]
    on = (C.diagonal() - 1).square().sum()
    off = C.square().sum() - C.diagonal().square().sum()
    return on + lambd * off


def _standardise(z: Tensor) -> Tensor:
    """Each dimension with mean 0 and (biased) variance 1 over the batch of all ranks, as batch normalisation does."""
    centred = z - mean_over_ranks(z.mean(0))
    variance = mean_over_ranks(centred.square().mean(0))
    return centred * torch.rsqrt(variance + 1e-5)


class BarlowTwins(Method):
    def __init__(
        self,
        backbone: nn.Module,
        hidden_dim: int = 8192,
        proj_dim: int = 8192,
        num_layers: int = 3,
        lambd: float = 0.0051,
        loss_scale: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.projector = mlp(backbone.num_features, hidden_dim, proj_dim, num_layers)
        self.lambd, self.loss_scale = lambd, loss_scale

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h, z = self.encode(views, self.backbone, self.projector)
        pairs = self.undirected_pairs(len(views))
        loss = sum(barlow_twins_loss(z[u], z[v], self.lambd) for u, v in pairs) / len(pairs)
        return {"loss": self.loss_scale * loss, "features": h[0], "z": z[0]}

"""VICReg: Variance-Invariance-Covariance Regularization (Bardes, Ponce & LeCun 2021, arXiv:2105.04906).

    for x in loader:                                      # Algorithm 1
        z1, z2 = f(x1), f(x2)                             # backbone and expander
        loss = lambda mse(z1, z2)                         # invariance
             + mu mean_j max(0, 1 - std_j)                # variance of every dimension, both branches
             + nu sum_{i != j} cov_ij^2 / D               # covariance, both branches

Where sources differ: this is the official code, in which the invariance term is the mean over N x D (the paper's formula divides by N
alone), the variance term is the mean of the branches and the covariance term their sum; variances are unbiased, over the global batch.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.distributed import mean_over_ranks, world_size
from ssl_zoo.methods.base import Method
from ssl_zoo.nn.heads import mlp
from ssl_zoo.nn.numerics import in_float32


@in_float32
def vicreg_loss(z1: Tensor, z2: Tensor, sim_coeff: float = 25.0, std_coeff: float = 25.0, cov_coeff: float = 1.0) -> Tensor:
    """Eq. (6) in the official form; z1, z2 [B, D] raw embeddings of this rank, returns []. The mean over ranks is the global loss."""
    std1, cov1 = _regularity(z1)
    std2, cov2 = _regularity(z2)
    return sim_coeff * F.mse_loss(z1, z2) + std_coeff * (std1 + std2) / 2 + cov_coeff * (cov1 + cov2)


def _regularity(z: Tensor) -> tuple[Tensor, Tensor]:
    """The variance and covariance terms, eq. (1) and (4), of z [B, D] over the batch of all ranks; both []."""
    N = len(z) * world_size()
    centred = z - mean_over_ranks(z.mean(0))
    cov = mean_over_ranks(centred.T @ centred / len(z)) * (N / (N - 1))  # [D, D]
    std = (cov.diagonal() + 1e-4).sqrt()
    off = cov.square().sum() - cov.diagonal().square().sum()
    return F.relu(1 - std).mean(), off / z.shape[1]


class VICReg(Method):
    def __init__(
        self,
        backbone: nn.Module,
        hidden_dim: int = 8192,
        proj_dim: int = 8192,
        num_layers: int = 3,
        sim_coeff: float = 25.0,
        std_coeff: float = 25.0,
        cov_coeff: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.projector = mlp(backbone.num_features, hidden_dim, proj_dim, num_layers, hidden_bias=True)
        self.coefficients = (sim_coeff, std_coeff, cov_coeff)

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h, z = self.encode(views, self.backbone, self.projector)
        pairs = self.undirected_pairs(len(views))
        loss = sum(vicreg_loss(z[u], z[v], *self.coefficients) for u, v in pairs) / len(pairs)
        return {"loss": loss, "embedding_std": z[0].detach().float().std(0).mean(), "features": h[0], "z": z[0]}

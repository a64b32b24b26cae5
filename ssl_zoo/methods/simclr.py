"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al. 2020, arXiv:2002.05709).

    for x in loader:                        # Algorithm 1
        z1, z2 = g(f(t(x))), g(f(t'(x)))    # two random views, encoder f, projection head g
        loss   = NT-Xent(z1, z2)            # each view must pick its twin out of the 2N - 1 others

Where sources differ: the loss is the paper's mean over the 2N views (the official TensorFlow code returns twice that); the head
is the official one, with batch normalisation after both layers, the last without shift; both views share one forward, so batch
statistics are over 2N images. Local views (SwAV's multi-crop) are each contrasted with both global ones.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.distributed import gather, rank
from ssl_zoo.methods.base import Method
from ssl_zoo.nn.heads import mlp
from ssl_zoo.nn.numerics import in_float32, unit


@in_float32
def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Eq. (1) averaged over both views of every image; z1, z2: [B, D] projections of this rank's images, returns [].

    Under torch.distributed the candidates are the views of the global batch N, and the mean over ranks is the global loss.
    """
    B = len(z1)
    own = unit(torch.cat([z1, z2]))  # [2B, D] anchors of this rank
    every = torch.cat([gather(own[:B]), gather(own[B:])])  # [2N, D] candidates
    sim = own @ every.T / temperature  # [2B, 2N]
    first = torch.arange(B, device=z1.device) + rank() * B  # where own first views stand among the candidates
    second = first + len(every) // 2
    itself, twin = torch.cat([first, second]), torch.cat([second, first])
    sim = sim.scatter(1, itself[:, None], -torch.inf)  # a view is not its own negative
    return F.cross_entropy(sim, twin)


class SimCLR(Method):
    def __init__(
        self,
        backbone: nn.Module,
        hidden_dim: int = 2048,
        proj_dim: int = 128,
        num_layers: int = 2,
        temperature: float = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.projector = mlp(backbone.num_features, hidden_dim, proj_dim, num_layers, last_norm="scale", init_std=0.01)
        self.temperature = temperature

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h, z = self.encode(views, self.backbone, self.projector, together=True)  # batch statistics over both views
        pairs = self.undirected_pairs(len(views))
        loss = sum(nt_xent(z[u], z[v], self.temperature) for u, v in pairs) / len(pairs)
        return {"loss": loss, "features": h[0], "z": z[0]}

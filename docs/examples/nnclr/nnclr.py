"""NNCLR: With a Little Help from My Friends (Dwibedi et al. 2021, arXiv:2104.14548).

for x in loader:                            # section 3.2
    z1, z2 = g(f(x1)), g(f(x2));  p1, p2 = q(z1), q(z2)
    n1, n2 = nearest neighbours of z1, z2 in a queue of past projections
    loss = InfoNCE(n1, p2) / 2 + InfoNCE(n2, p1) / 2
    enqueue(z1)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.collapse.queue import Queue
from ssl_zoo.distributed import gather, rank
from ssl_zoo.methods.base import Method
from ssl_zoo.nn.heads import mlp
from ssl_zoo.nn.numerics import in_float32, unit


@in_float32
def nnclr_loss(z: Tensor, p: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Eq. (4): the neighbour in queue [K, D] (unit rows) of each z [B, D] must pick its own p [B, D] out of those of all ranks; []."""
    neighbours = queue[(unit(z.detach()) @ queue.T).argmax(1)]  # [B, D]
    logits = neighbours @ gather(unit(p)).T / temperature  # [B, N]
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device) + rank() * len(z))


class NNCLR(Method):
    def __init__(
        self,
        backbone: nn.Module,
        hidden_dim: int = 2048,
        proj_dim: int = 256,
        pred_dim: int = 4096,
        queue_size: int = 98304,
        temperature: float = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.projector = mlp(backbone.num_features, hidden_dim, proj_dim, 3, last_norm="scale")
        self.predictor = mlp(proj_dim, pred_dim, proj_dim, last_bias=True)
        self.queue = Queue(queue_size, proj_dim)
        self.temperature = temperature

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h, z, p = self.encode(views, self.backbone, self.projector, self.predictor)
        past = self.queue.keys.clone()
        pairs = self.directed_pairs(len(views))
        loss = sum(nnclr_loss(z[t], p[v], past, self.temperature) for t, v in pairs) / len(pairs)
        self.queue.add(unit(z[0]))
        return {"loss": loss, "features": h[0], "z": z[0]}

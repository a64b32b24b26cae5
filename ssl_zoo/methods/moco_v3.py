"""MoCo v3: An Empirical Study of Training Self-Supervised Vision Transformers (Chen, Xie & He 2021, arXiv:2104.02057).

    for x in loader:                                # Algorithm 1
        q1, q2 = f_q(x1), f_q(x2)                   # backbone, projector, predictor
        k1, k2 = f_k(x1), f_k(x2)                   # momentum backbone and projector, no gradient
        loss = ctr(q1, k2) + ctr(q2, k1)            # each query picks its key out of the keys of the batch
        f_k <- m f_k + (1 - m) f_q

Where sources differ: the official code moves the key encoder before the keys are computed, and so does this one; m rises to 1 along a
cosine as there (`momentum_end=momentum` keeps it). `vit` is the official variant for transformers: 3 layers in the projector, a last BN in
the predictor, temperature 0.2, fixed sine-cosine positions and a patch projection that stays at its random initial values.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.collapse.teacher import Teacher
from ssl_zoo.distributed import gather, rank
from ssl_zoo.methods.base import Method
from ssl_zoo.nn.heads import mlp
from ssl_zoo.nn.numerics import in_float32, unit
from ssl_zoo.nn.vit import is_vit, moco_v3_vit
from ssl_zoo.optim.schedules import cosine


@in_float32
def one_direction(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """ctr(q, k) of Algorithm 1: q, k [B, D] of this rank, the candidates are the keys of all ranks; 2 T CE, returns []."""
    logits = unit(q) @ gather(unit(k.detach())).T / temperature  # [B, N]
    own = torch.arange(len(q), device=q.device) + rank() * len(q)
    return 2 * temperature * F.cross_entropy(logits, own)


def contrastive(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, temperature: float) -> Tensor:
    """The loss of two views, summed over both directions; [B, D] each, returns []. The mean over ranks is the loss of the global batch."""
    return one_direction(q1, k2, temperature) + one_direction(q2, k1, temperature)


class MoCoV3(Method):
    def __init__(
        self,
        backbone: nn.Module,
        hidden_dim: int = 4096,
        proj_dim: int = 256,
        vit: bool | str = "auto",
        temperature: float | None = None,  # 0.2 for transformers, else 1.0
        momentum: float = 0.99,
        momentum_end: float = 1.0,
        **common: Any,
    ) -> None:
        vit = is_vit(backbone) if vit == "auto" else vit
        super().__init__(moco_v3_vit(backbone) if vit else backbone, **common)
        self.projector = mlp(backbone.num_features, hidden_dim, proj_dim, 3 if vit else 2, last_norm="plain")
        self.predictor = mlp(proj_dim, hidden_dim, proj_dim, last_norm="plain" if vit else "none")
        self.teacher = Teacher(self.backbone, self.projector)
        self.temperature = temperature if temperature is not None else 0.2 if vit else 1.0
        self.momentum, self.momentum_end = momentum, momentum_end

    def before_step(self) -> None:
        momentum = cosine(self.progress(), self.momentum, self.momentum_end)
        self.teacher.update(self.backbone, self.projector, momentum=momentum)

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h, z, q = self.encode(views, self.backbone, self.projector, self.predictor)
        (k,) = self.encode(views[:2], self.teacher)
        pairs = self.directed_pairs(len(views))
        loss = 2 * sum(one_direction(q[v], k[t], self.temperature) for t, v in pairs) / len(pairs)
        return {"loss": loss, "features": h[0], "z": z[0]}

"""BYOL: Bootstrap Your Own Latent (Grill et al. 2020, arXiv:2006.07733).

    for x in loader:                                              # section 3.1
        p1, p2 = q(g(f(x1))), q(g(f(x2)))                         # online: encoder f, projector g, predictor q
        t1, t2 = g'(f'(x1)), g'(f'(x2))                           # target, no gradient
        loss = ||p1 - t2||^2 + ||p2 - t1||^2                      # of unit vectors
        f', g' <- tau (f', g') + (1 - tau) (f, g)                 # after the optimizer step; tau rises to 1

Where sources differ: the target starts equal to the online network (the official code draws it anew, "no significant difference"); it
keeps its own batch statistics, in training mode, as the official code does.
"""

from typing import Any

from torch import Tensor, nn

from ssl_zoo.collapse.teacher import Teacher
from ssl_zoo.methods.base import Method
from ssl_zoo.nn.heads import mlp
from ssl_zoo.nn.numerics import in_float32, unit
from ssl_zoo.optim.schedules import cosine


@in_float32
def regression(p: Tensor, t: Tensor) -> Tensor:
    """Eq. (2): mean squared distance of unit predictions p [B, D] and targets t [B, D] (no gradient), 2 - 2 cos; 0 to 4, returns []."""
    return (2 - 2 * (unit(p) * unit(t.detach())).sum(-1)).mean()


def byol_loss(p1: Tensor, p2: Tensor, t1: Tensor, t2: Tensor) -> Tensor:
    """The symmetric loss of two views, 0 to 8; predictions and targets [B, D], returns []."""
    return regression(p1, t2) + regression(p2, t1)


class BYOL(Method):
    def __init__(
        self,
        backbone: nn.Module,
        hidden_dim: int = 4096,
        proj_dim: int = 256,
        momentum: float = 0.99,
        momentum_end: float = 1.0,
        predictor: bool = True,  # without it, nothing keeps BYOL from collapsing: for experiments
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.projector = mlp(backbone.num_features, hidden_dim, proj_dim, hidden_bias=True)
        self.predictor = mlp(proj_dim, hidden_dim, proj_dim, hidden_bias=True) if predictor else nn.Identity()
        self.teacher = Teacher(self.backbone, self.projector)
        self.momentum, self.momentum_end = momentum, momentum_end

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h, z, p = self.encode(views, self.backbone, self.projector, self.predictor)
        (t,) = self.encode(views[:2], self.teacher)
        pairs = self.directed_pairs(len(views))
        loss = 2 * sum(regression(p[v], t[u]) for u, v in pairs) / len(pairs)
        return {"loss": loss, "features": h[0], "z": z[0]}

    def after_step(self) -> None:
        momentum = cosine(self.progress(), self.momentum, self.momentum_end)
        self.teacher.update(self.backbone, self.projector, momentum=momentum)

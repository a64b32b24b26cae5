"""SimSiam: Exploring Simple Siamese Representation Learning (Chen & He 2020, arXiv:2011.10566).

    for x in loader:                              # Algorithm 1
        z1, z2 = f(x1), f(x2)                     # backbone and projector
        p1, p2 = h(z1), h(z2)                     # predictor
        loss = D(p1, z2) / 2 + D(p2, z1) / 2      # D(p, z) = -cos(p, stopgrad(z))

Where sources differ: the predictor's learning rate stays constant, as in the official command (`fix_predictor_lr`); the last Linear of
the projector has no bias (the official code freezes one that the batch normalisation after it removes).
"""

from typing import Any

from torch import Tensor, nn

from ssl_zoo.methods.base import Method
from ssl_zoo.nn.heads import mlp
from ssl_zoo.nn.numerics import in_float32, unit


@in_float32
def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Eq. (1): mean over rows of -cos(p, z), p [B, D] predictions, z [B, D]; -1 to 1, returns []."""
    return -(unit(p) * unit(z)).sum(-1).mean()


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Eq. (2), the symmetric loss with stop-gradient on z1, z2; [B, D] each, returns []."""
    return negative_cosine(p1, z2.detach()) / 2 + negative_cosine(p2, z1.detach()) / 2


class SimSiam(Method):
    def __init__(
        self,
        backbone: nn.Module,
        proj_dim: int = 2048,
        num_layers: int = 3,
        pred_dim: int = 512,
        fix_predictor_lr: bool = True,
        stop_gradient: bool = True,  # without it, SimSiam collapses (section 4.1): for experiments
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.projector = mlp(backbone.num_features, proj_dim, proj_dim, num_layers, last_norm="plain")
        self.predictor = mlp(proj_dim, pred_dim, proj_dim, last_bias=True)
        self.fix_predictor_lr, self.stop_gradient = fix_predictor_lr, stop_gradient

    def fixed_lr_modules(self) -> tuple[nn.Module, ...]:
        return (self.predictor,) if self.fix_predictor_lr else ()

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h, z, p = self.encode(views, self.backbone, self.projector, self.predictor)
        targets = z.detach() if self.stop_gradient else z
        pairs = self.directed_pairs(len(views))
        loss = sum(negative_cosine(p[v], targets[t]) for t, v in pairs) / len(pairs)
        return {"loss": loss, "features": h[0], "z": z[0]}

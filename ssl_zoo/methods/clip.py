"""CLIP: Learning Transferable Visual Models From Natural Language Supervision (Radford et al. 2021, arXiv:2103.00020).

    for x, c in loader:                        # Figure 3: images and their captions
        I, T = unit(f(x) W_i), unit(g(c) W_t)  # both towers, projected to one space
        S    = exp(t) I . T                    # every image with every caption of the batch
        loss = (CE(S) + CE(S^T)) / 2           # each must pick its partner

The temperature is learned: exp(t) starts at 1 / 0.07 and is kept at 100 or less after each step (section 2.4).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.distributed import gather, rank
from ssl_zoo.methods.two_towers import TwoTowers
from ssl_zoo.nn.numerics import in_float32, unit


@in_float32
def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
    """image, text: [B, D] embeddings of this rank's pairs; logit_scale: exp of the learned one. Returns [].

    Under torch.distributed the candidates are those of the global batch, and the mean over ranks is the global loss.
    """
    own_image, own_text = unit(image), unit(text)
    partner = torch.arange(len(image), device=image.device) + rank() * len(image)
    by_image = F.cross_entropy(logit_scale * own_image @ gather(own_text).T, partner)
    by_text = F.cross_entropy(logit_scale * own_text @ gather(own_image).T, partner)
    return (by_image + by_text) / 2


class CLIP(TwoTowers):
    def __init__(
        self,
        backbone: nn.Module,
        embed_dim: int = 512,
        text: dict[str, Any] | None = None,
        init_scale: float = 1 / 0.07,
        max_scale: float | None = 100.0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, embed_dim, text or {}, causal=True, **common)
        self.log_scale = nn.Parameter(torch.tensor(math.log(init_scale)))
        self.max_scale = max_scale

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h, image, text = self.meet(views[0], batch["tokens"])
        loss = clip_loss(image, text, self.log_scale.exp())
        return {"loss": loss, "logit_scale": self.log_scale.exp(), "gap": self.gap(image, text), "features": h, "z": image}

    @torch.no_grad()
    def after_step(self) -> None:
        if self.max_scale is not None:
            self.log_scale.clamp_(0, math.log(self.max_scale))

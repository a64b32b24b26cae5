"""What CLIP and SigLIP share: a tower for images, a tower for words, and a space in which both meet."""

from typing import Any

import torch
from torch import Tensor, nn

from ssl_zoo.methods.base import Method
from ssl_zoo.nn.chunked import in_chunks, limit
from ssl_zoo.nn.numerics import unit
from ssl_zoo.nn.text import TextTower


class TwoTowers(Method):
    """backbone and a projection give image embeddings [B, embed_dim], `text` (the fields of TextTower) those of token ids [B, context].

    image_weights, text_weights: what the towers start from, loaded before the first step of a run. lock_image: the backbone stays as it
    is (LiT, arXiv:2111.07991). Both towers take a forward in chunks of `chunk_size`. The batch holds "tokens", one caption for each image.
    """

    def __init__(
        self,
        backbone: nn.Module,
        embed_dim: int,
        text: dict[str, Any],
        causal: bool,
        image_weights: str | None = None,
        text_weights: str | None = None,
        lock_image: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.project = nn.Linear(backbone.num_features, embed_dim, bias=not causal)
        nn.init.normal_(self.project.weight, std=backbone.num_features**-0.5)
        if self.project.bias is not None:
            nn.init.zeros_(self.project.bias)
        self.text = limit(TextTower(embed_dim, causal=causal, **text), common.get("chunk_size"))
        self.image_weights, self.text_weights, self.lock_image = image_weights, text_weights, lock_image
        if lock_image:
            self.backbone.requires_grad_(False).eval()  # Lightning trains in the modes that it finds

    def train(self, mode: bool = True) -> "TwoTowers":
        super().train(mode)
        if self.lock_image:
            self.backbone.eval()
        return self

    def meet(self, view: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, D] of images, and embeddings [B, embed_dim] of images and of captions, of any length."""
        (h,) = self.encode([view], self.backbone)
        return h[0], self.project(h[0]), in_chunks(self.text, tokens)

    @torch.no_grad()
    def gap(self, image: Tensor, text: Tensor) -> Tensor:
        """Distance between the means of unit embeddings of images and of captions, 0 to 2 (Liang et al. 2022, arXiv:2203.02053)."""
        return (unit(image).mean(0) - unit(text).mean(0)).norm()

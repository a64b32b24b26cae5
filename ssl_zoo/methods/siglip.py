"""SigLIP: Sigmoid Loss for Language Image Pre-Training (Zhai et al. 2023, arXiv:2303.15343).

    for x, c in loader:                                 # Algorithm 1: images and their captions
        I, T = unit(f(x)), unit(g(c))
        S    = exp(t') I . T + b                        # every image with every caption
        loss = sum softplus(-y S) / N                   # y = 1 for a pair, -1 for all others: a question of its own each

No softmax, so no row needs the whole batch: the captions of the ranks go round in a ring, block by block (section 3.3), and what a rank
holds does not depend on how many there are. t' starts at ln 10 and b at -10, so that training begins near the share of true pairs.
Where sources differ: the official code does not bound t'; open_clip bounds it as CLIP does (`max_scale`).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.distributed import ring, world_size
from ssl_zoo.methods.two_towers import TwoTowers
from ssl_zoo.nn.numerics import in_float32, unit


def block_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, paired: bool) -> Tensor:
    """The part of the loss that image [n, D] has with a block of captions [n, D], its own where `paired`. Returns []."""
    logits = scale * image @ text.T + bias
    y = 2 * torch.eye(len(image), device=image.device, dtype=image.dtype) - 1 if paired else -1
    return F.softplus(-y * logits).sum() / len(image)


class _Blocks(torch.autograd.Function):
    """The sum of `block_loss` over the blocks of all ranks. Its gradient is taken block by block on the way: the memory is that of one.

    A block of captions goes round the ring together with the gradient that the ranks it meets have for it, and is home after W steps.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        loss = image.new_zeros(())
        travels = torch.stack([text.detach(), torch.zeros_like(text)])  # a block and its gradient
        sums = [torch.zeros_like(x) for x in (image, scale, bias)]
        for hop in range(world_size()):
            parts = [x.detach().requires_grad_() for x in (image, travels[0], scale, bias)]
            with torch.enable_grad():
                part = block_loss(*parts, paired=hop == 0)
                d_image, d_text, *d_rest = torch.autograd.grad(part, parts)
            loss += part.detach()
            for total, d in zip(sums, (d_image, *d_rest), strict=True):
                total += d
            travels[1] += d_text
            travels = ring(travels)
        ctx.save_for_backward(sums[0], travels[1], *sums[1:])
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad * d for d in ctx.saved_tensors)


@in_float32
def siglip_loss(image: Tensor, text: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float) -> Tensor:
    """image, text: [B, D] embeddings of this rank's pairs; logit_scale: exp of the learned one. Sum over captions, mean over images: [].

    Under torch.distributed all captions of the global batch count, and the mean over ranks is the global loss. Every rank needs the same
    B, and the same factor on its loss.
    """
    scale, bias = (torch.as_tensor(x, dtype=image.dtype, device=image.device) for x in (logit_scale, logit_bias))
    return _Blocks.apply(unit(image), unit(text), scale, bias)


class SigLIP(TwoTowers):
    def __init__(
        self,
        backbone: nn.Module,
        embed_dim: int = 512,
        text: dict[str, Any] | None = None,
        init_scale: float = 10.0,
        init_bias: float = -10.0,
        max_scale: float | None = 100.0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, embed_dim, text or {}, causal=False, **common)
        self.log_scale = nn.Parameter(torch.tensor(math.log(init_scale)))
        self.bias = nn.Parameter(torch.tensor(float(init_bias)))
        self.max_scale = max_scale

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h, image, text = self.meet(views[0], batch["tokens"])
        loss = siglip_loss(image, text, self.log_scale.exp(), self.bias)
        scalars = {"logit_scale": self.log_scale.exp(), "logit_bias": self.bias, "gap": self.gap(image, text)}
        return {"loss": loss, **scalars, "features": h, "z": image}

    @torch.no_grad()
    def after_step(self) -> None:
        if self.max_scale is not None:
            self.log_scale.clamp_(0, math.log(self.max_scale))

"""DINO: Emerging Properties in Self-Supervised Vision Transformers (Caron et al. 2021, arXiv:2104.14294).

    for x in loader:                                   # Algorithm 1
        t = softmax((g_t(x_global) - C) / tau_t)       # centred and sharpened, no gradient
        s = log_softmax(g_s(x_all) / tau_s)            # two global views and the local ones
        loss = - t . s over every pair of different views
        C <- c C + (1 - c) mean(g_t)                   # after the loss
        g_t <- m g_t + (1 - m) g_s                     # after the optimizer step; m rises to 1

Where sources differ (the official code is followed): gradients are clipped per parameter, not by their global norm; the last layer has
no gradient at all in the first epochs; prototypes are weight-normed with a length fixed at 1 (`norm_last_layer: false` learns it). The
teacher temperature rises linearly, here per step, there once an epoch. `assignment: sinkhorn` replaces centering, as in DINOv2.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.collapse.centering import Center, sinkhorn
from ssl_zoo.collapse.health import assignment_entropies
from ssl_zoo.collapse.teacher import Teacher
from ssl_zoo.methods.base import Method
from ssl_zoo.nn.heads import Prototypes, mlp
from ssl_zoo.nn.numerics import in_float32
from ssl_zoo.optim.schedules import cosine


@in_float32
def dino_loss(student: Tensor, teacher_probs: Tensor, student_temp: float) -> Tensor:
    """Eq. (3): student logits [S, B, K], the global views first; teacher probabilities [T, B, K] of those. Mean over pairs of unequal
    views and over B, returns [].
    """
    S, T, B = len(student), len(teacher_probs), student.shape[1]
    log_p = F.log_softmax(student / student_temp, -1)
    pairs = -torch.einsum("sbk,tbk->st", log_p, teacher_probs.detach())  # [S, T]
    same = min(S, T)  # a view is never compared with itself
    return (pairs.sum() - pairs.diagonal().sum()) / (B * (S * T - same))


class DINO(Method):
    def __init__(
        self,
        backbone: nn.Module,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        out_dim: int = 65536,
        head_bn: bool = False,
        norm_last_layer: bool = True,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        teacher_temp_start: float = 0.04,
        teacher_temp_warmup: float = 0.3,  # share of training (30 of 100 epochs)
        momentum: float = 0.996,
        momentum_end: float = 1.0,
        assignment: str = "centering",
        center_momentum: float = 0.9,
        clip_grad: float | None = 3.0,
        freeze_last_layer: int = 1,  # epochs
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        head = mlp(backbone.num_features, hidden_dim, bottleneck_dim, 3, head_bn, True, last_bias=True, activation=nn.GELU, init_std=0.02)
        self.head = nn.Sequential(head, Prototypes(bottleneck_dim, out_dim, fixed_length=norm_last_layer))
        self.teacher = Teacher(self.backbone, self.head)
        self.center = Center(out_dim, center_momentum)
        self.student_temp, self.assignment = student_temp, assignment
        self.temps = (teacher_temp_start, teacher_temp, teacher_temp_warmup)
        self.momentum, self.momentum_end = momentum, momentum_end
        self.clip_grad, self.freeze_last_layer = clip_grad, freeze_last_layer

    def teacher_temp(self) -> float:
        first, last, warmup = self.temps
        return first + (last - first) * min(1.0, self.progress() / max(warmup, 1e-9))

    def assign(self, logits: Tensor) -> Tensor:
        """Probabilities [T, B, K] of teacher logits [T, B, K]."""
        if self.assignment == "sinkhorn":
            return sinkhorn(logits.flatten(0, 1), self.teacher_temp()).view_as(logits)
        probs = self.center(logits, self.teacher_temp())
        self.center.add(logits)
        return probs

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h, t = self.encode(views[:2], *self.teacher, together=True)  # [2, B, D] and [2, B, K]
        _, z, s = self.encode(views, self.backbone, *self.head, together=True)
        t = t.to(torch.promote_types(t.dtype, torch.float32))
        with torch.autocast(t.device.type, enabled=False):
            probs = self.assign(t)
        loss = dino_loss(s, probs, self.student_temp)
        return {"loss": loss, **assignment_entropies(probs), "features": h[0], "z": z[0]}

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(*args, **kwargs)
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        if self.clip_grad and grads:
            factors = [(self.clip_grad / (n + 1e-6)).clamp(max=1.0) for n in torch._foreach_norm(grads)]
            torch._foreach_mul_(grads, factors)
        if self.trainer.current_epoch < self.freeze_last_layer:
            for p in self.head[-1].parameters():
                p.grad = None

    def after_step(self) -> None:
        if self.assignment == "centering":
            self.center.move()
        momentum = cosine(self.progress(), self.momentum, self.momentum_end)
        self.teacher.update(self.backbone, self.head, momentum=momentum)

    @property
    def evaluated(self) -> nn.Module:
        return self.teacher.network[0]

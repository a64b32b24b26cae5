"""The EMA teacher: a network that follows the student slowly (Tarvainen & Valpola 2017, arXiv:1703.01780; MoCo, BYOL, DINO)."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_zoo.nn.chunked import in_chunks

HALF = (torch.float16, torch.bfloat16)


class Teacher(nn.Module):
    """A copy of the student's `parts` in a row, equal to them at first and never trained by gradient: [B, ...] -> [B, D].

    batch_norm: "train" (its BN uses the statistics of its own batches and keeps its own running ones: MoCo, BYOL, DINO) or "eval".
    Dropout and drop path are off. The weights stay in float32 or better whatever the student's precision: in half precision a momentum
    near 1 would leave them standing still.
    """

    def __init__(self, *parts: nn.Module, batch_norm: str = "train") -> None:
        super().__init__()
        if batch_norm not in ("train", "eval"):
            raise ValueError(f"batch_norm is train or eval, not {batch_norm}")
        self.network = nn.Sequential(*copy.deepcopy(parts)).requires_grad_(False)
        for t in (*self.network.parameters(), *self.network.buffers()):
            t.data = t.data.float() if t.dtype in HALF else t.data
        self.batch_norm = batch_norm
        self.train(self.training)

    def train(self, mode: bool = True) -> "Teacher":
        super().train(mode)
        for m in self.network.modules():
            m.training = mode and self.batch_norm == "train" and isinstance(m, _BatchNorm)  # others may drop by a function call
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Teacher":
        """Moves are followed, casts below float32 are not."""

        def moved(t: Tensor) -> Tensor:
            new = fn(t)
            return t.to(new.device) if new.dtype in HALF and t.dtype not in HALF else new

        return super()._apply(moved, recurse)  # type: ignore[return-value]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        for part in self:
            x = part(x)
        return x

    def __iter__(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Its parts in a row, where the output of each is wanted."""
        for i, part in enumerate(self.network):

            @torch.no_grad()
            def run(x: Tensor, part: nn.Module = part, first: bool = i == 0) -> Tensor:
                return in_chunks(part, x.to(next(self.network.parameters()).dtype) if first else x)

            yield run

    @torch.no_grad()
    def update(self, *parts: nn.Module, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, for every parameter; buffers are the teacher's own."""
        mine: list[Tensor] = list(self.network.parameters())
        student = [p for part in parts for p in part.parameters()]
        torch._foreach_lerp_(mine, [p.to(m.dtype) for p, m in zip(student, mine, strict=True)], 1.0 - momentum)

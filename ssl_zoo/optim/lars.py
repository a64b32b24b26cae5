"""LARS (You et al. 2017, arXiv:1708.03888) in the form of the official self-supervised code: MoCo v3, Barlow Twins, VICReg."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """v <- momentum v + q (g + wd w);  w <- w - lr v;  q = trust ||w|| / ||g + wd w||, or 1 where either norm is 0.

    A parameter group with `trust=False` has q = 1. Nothing is read on the host.
    """

    def __init__(
        self, params: Iterable, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust_coefficient: float = 0.001
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient, "trust": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            update = list(torch._foreach_mul([p.grad for p in params], 1.0))
            if group["weight_decay"]:
                torch._foreach_add_(update, params, alpha=group["weight_decay"])
            if group["trust"]:
                torch._foreach_mul_(update, self._trust_ratios(params, update, group["trust_coefficient"]))  # type: ignore[arg-type]
            buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, update)
            torch._foreach_add_(params, buffers, alpha=-group["lr"])
        return loss

    @staticmethod
    def _trust_ratios(params: list[Tensor], update: list[Tensor], trust: float) -> list[Tensor]:
        w, u = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(update))
        return list(torch.where((w > 0) & (u > 0), trust * w / u, torch.ones_like(w)).unbind())

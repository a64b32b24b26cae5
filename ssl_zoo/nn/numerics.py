"""Losses run in float32 or better, whatever the precision of training."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def in_float32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a loss so that half-precision tensors are raised to float32 and autocast is off inside it; float64 stays."""

    @functools.wraps(loss)
    def exact(*args: Any, **kwargs: Any) -> Tensor:
        def raised(x: Any) -> Any:
            return x.to(torch.promote_types(x.dtype, torch.float32)) if isinstance(x, Tensor) and x.is_floating_point() else x

        device = next((a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return loss(*map(raised, args), **{k: raised(v) for k, v in kwargs.items()})

    return exact


@in_float32
def unit(x: Tensor) -> Tensor:
    """Rows [..., D] divided by their length. A zero row has no direction: it stays zero and gets no gradient."""
    norm = x.norm(dim=-1, keepdim=True)
    return x / norm.masked_fill(norm < 1e-12, torch.inf)

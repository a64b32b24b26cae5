"""Collectives with exact gradients, and seeds that differ between ranks.

Every function is the identity (or the local value) when torch.distributed is not running. The convention for losses: each rank
returns the mean over its own samples, so the mean over ranks of the loss is the loss of the global batch, and the average of the
gradients that DDP takes is the gradient of that loss.
"""

import hashlib
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


class _Gather(torch.autograd.Function):
    """Concatenate over ranks; the gradient of a shard is the sum of what every rank's loss says about it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()  # autograd's own may be another tensor's gradient too
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


def gather(x: Tensor) -> Tensor:
    """[n, ...] on each of W ranks -> [W n, ...] on all of them, in rank order, with gradient. n must be equal on all ranks."""
    return _Gather.apply(x) if world_size() > 1 else x


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum over ranks, with gradient."""
    return _Sum.apply(x) if world_size() > 1 else x


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean over ranks, with gradient."""
    return sum_over_ranks(x) / world_size()


@torch.no_grad()
def max_over_ranks(x: Tensor) -> Tensor:
    """The elementwise maximum over ranks, without gradient."""
    x = x.clone()
    if world_size() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


@torch.no_grad()
def ring(x: Tensor) -> Tensor:
    """What the rank before holds as x, while x goes to the rank behind; without gradient. x must be of one shape on all ranks."""
    if world_size() == 1:
        return x
    got, x = torch.empty_like(x), x.contiguous()
    behind, before = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, x, behind), dist.P2POp(dist.irecv, got, before)]):
        work.wait()
    return got


@torch.no_grad()
def broadcast_buffers(module: torch.nn.Module) -> None:
    """Give every rank the buffers of the first, such as running statistics that each rank kept for itself."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def gather_uneven(x: Tensor) -> Tensor:
    """Like `gather`, for a first dimension that differs between ranks; without gradient. Reads sizes on the host: not for the hot loop."""
    if world_size() == 1:
        return x
    sizes = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
    longest = max(int(s) for s in sizes)
    padded = torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])]).contiguous()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([p[: int(s)] for p, s in zip(parts, sizes, strict=True)])


def union(items: Iterable[Any]) -> list[Any]:
    """The items of all ranks, each once, sorted; small Python objects. Not for the hot loop."""
    parts: list[Any] = [list(items)]
    if world_size() > 1:
        mine, parts = parts[0], [None] * world_size()
        dist.all_gather_object(parts, mine)
    return sorted({item for part in parts for item in part})


def fold_seed(*parts: int | str) -> int:
    """One 63-bit seed from several numbers or words, such as (seed, rank, step); neighbours give unrelated streams."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_all(seed: int) -> None:
    """Seed torch, numpy and Python. Done before every step, so that no state of theirs has to be saved to resume."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)

"""A batch in chunks with the gradient of the whole: gradient caching (Gao et al. 2021, arXiv:2101.06983).

    h = [f(c) for c in chunks]      # no activations are kept
    loss = L(head(h))               # over the whole batch, whose features are small
    for c in chunks:                # in the backward pass, with dL/dh at hand
        f(c).backward(dL/dh_c)      # computed again, then let go

torch's checkpoint of every chunk is just that. Autograd adds up what the chunks say about a parameter before it has a gradient, so DDP
averages it once; what a network drops at random, and its precision, are those of the first time.

Batch statistics are those of a chunk, so the gradient is that of a network whose BN takes them over chunks. Running statistics move
once for all chunks, by the mean of theirs, and not at all when a chunk is computed again.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ssl_zoo.errors import UserError
from ssl_zoo.nn.batchnorm import GroupedBatchNorm

log = logging.getLogger("ssl_zoo")


def limit(net: nn.Module, chunk_size: int | None) -> nn.Module:
    """Have `in_chunks` give `net`, and its copies, at most `chunk_size` rows at once (None: all). Changes `net` and returns it."""
    if chunk_size is None:
        return net
    if chunk_size < 1:
        raise UserError(f"chunk_size={chunk_size} does not work: chunk_size takes null or a whole number of at least 1.")
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
    if any(isinstance(m, GroupedBatchNorm) for m in norms):
        raise UserError("method.bn_groups and chunk_size both say over which images batch statistics are taken: leave one as it was.")
    if norms and chunk_size < 3:  # from there on, no chunk has a single row
        raise UserError(f"chunk_size={chunk_size} leaves batch normalisation nothing to normalise over: take 3 or more, better 32.")
    if norms:
        log.warning("The backbone takes its batch statistics over chunks of %d images (chunk_size): see docs/speed.md.", chunk_size)
    net.chunk_size = chunk_size  # type: ignore[assignment]
    return net


def in_chunks(net: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """net(*inputs) for inputs [B, ...] each; where `limit` was set, for one chunk after the other, of equal sizes or one less."""
    size, rows = getattr(net, "chunk_size", None), len(inputs[0])
    if size is None or rows <= size:
        return net(*inputs)
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]  # type: ignore[attr-defined]
    running = [b.data for m in norms for b in (m.running_mean, m.running_var) if b is not None]  # autograd must not mind that they move
    counts = [m.num_batches_tracked.data for m in norms if m.num_batches_tracked is not None]
    before, mean = [b.clone() for b in running + counts], [torch.zeros_like(b) for b in running]
    outs = []
    for chunk in zip(*(x.tensor_split(-(-rows // size)) for x in inputs), strict=True):
        _restore(running + counts, before)
        torch.clear_autocast_cache()  # chunks that share a weight's copy in half precision would add up its gradient in half precision
        if torch.is_grad_enabled():
            outs.append(checkpoint(net, *chunk, use_reentrant=False, context_fn=lambda: (nullcontext(), _Unmoved(running + counts))))
        else:
            outs.append(net(*chunk))
        for total, moved in zip(mean, running, strict=True):
            total.add_(moved, alpha=len(chunk[0]) / rows)
    _restore(running, mean)
    return torch.cat(outs)


def _restore(buffers: list[Tensor], values: list[Tensor]) -> None:
    if buffers:
        torch._foreach_copy_(buffers, values)


class _Unmoved:
    """Inside, buffers may move; afterwards they are what they were. Can be entered again, as a second backward pass does."""

    def __init__(self, buffers: list[Tensor]) -> None:
        self.buffers = buffers

    def __enter__(self) -> None:
        self.before = [b.clone() for b in self.buffers]

    def __exit__(self, *_: Any) -> None:
        _restore(self.buffers, self.before)

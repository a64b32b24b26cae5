"""The order of an epoch."""

import torch
from torch import Tensor

from ssl_zoo.data.encoded import BLOCKS
from ssl_zoo.distributed import fold_seed


def permutation(seed: int, epoch: int, total: int) -> Tensor:
    """The order of an epoch, [total]: a function of its arguments alone."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(fold_seed("order", seed, epoch)))


def local_permutation(seed: int, epoch: int, blocks: list[int], window: int = BLOCKS) -> Tensor:
    """As `permutation`, where near rows are cheaper to read: the blocks in random order, and the images of `window` blocks at a time
    mixed.
    """
    random = torch.Generator().manual_seed(fold_seed("order", seed, epoch))
    lengths = torch.tensor(blocks)
    starts = lengths.cumsum(0) - lengths
    order = []
    for some in torch.randperm(len(blocks), generator=random).split(window):
        rows = torch.cat([torch.arange(int(starts[b]), int(starts[b]) + int(lengths[b])) for b in some.tolist()])
        order.append(rows[torch.randperm(len(rows), generator=random)])
    return torch.cat(order)

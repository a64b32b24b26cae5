"""The queue of past keys that MoCo contrasts with (He et al. 2019, arXiv:1911.05722, section 3.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.distributed import gather


class Queue(nn.Module):
    """`keys` [size, dim], unit rows, random at first; `pointer` [] is the row that is replaced next. Both are saved with the method."""

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, keys: Tensor) -> None:
        """Replace the oldest rows by the unit `keys` [n, dim] of every rank, in rank order. Any n works: the end wraps to the beginning,
        and of more keys than there are rows the last ones stay. Nothing is read on the host.
        """
        keys = gather(keys.detach()).to(self.keys.dtype)
        size = len(self.keys)
        rows = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
        self.keys[rows[-size:]] = keys[-size:]
        self.pointer.copy_((self.pointer + len(keys)) % size)

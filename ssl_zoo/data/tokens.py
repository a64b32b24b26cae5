"""The captions of a data set as numbers, of which each image shows one at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_zoo.distributed import fold_seed


@dataclass
class Tokens:
    """ids int32 [M, L] of M captions; those of image i are its rows first[i] to first[i + 1], first [N + 1]."""

    ids: Tensor
    first: Tensor

    def to(self, device: torch.device) -> "Tokens":
        return Tokens(self.ids.to(device), self.first.to(device))

    def drawn(self, seed: int, epoch: int) -> Tensor:
        """The caption that each image shows in an epoch, [N] rows of `ids`: a function of seed and epoch alone."""
        first = self.first.cpu()
        share = torch.rand(len(first) - 1, generator=torch.Generator().manual_seed(fold_seed("caption", seed, epoch)), dtype=torch.float64)
        return (first[:-1] + (share * first.diff()).long()).to(self.ids.device)

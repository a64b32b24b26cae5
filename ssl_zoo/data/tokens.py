"""The captions of a data set as numbers, of which each image shows one at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_zoo.distributed import fold_seed


@dataclass
class Tokens:
    """ids int32 [M, L] of M captions; those of image i are `count[i]` rows from `start[i]`, which images may share; both [N]. cut: how many
    captions of all images are longer than L.
    """

    ids: Tensor
    start: Tensor
    count: Tensor
    cut: int = 0

    def drawn(self, seed: int, epoch: int) -> Tensor:
        """The caption that each image shows in an epoch, [N] rows of `ids`: a function of seed and epoch alone."""
        generator = torch.Generator().manual_seed(fold_seed("caption", seed, epoch))
        share = torch.rand(len(self.count), generator=generator, dtype=torch.float64)
        return self.start + (share * self.count).long()

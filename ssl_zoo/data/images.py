"""The images of one split, and what is known about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from ssl_zoo.data.encoded import sample
from ssl_zoo.data.ondemand import OnDemand, Pixels
from ssl_zoo.errors import UserError

TEST_NAMES = ("test", "validation", "valid", "val")  # the first that exists is the test split
Split = TypeVar("Split")


@dataclass(frozen=True)
class Images:
    """pixels uint8 [N, 3, S, S]; labels int64 [N] with -1 for unlabelled, or None; classes: their names, or None.

    captions: one list of sentences per image, or None. skipped: names of files that could not be read, with the reason; grows where
    pixels are decoded on demand. image_size: pixels of a view (S itself, or less where S is a canvas that views are cut from).
    """

    pixels: Pixels
    labels: Tensor | None
    classes: list[str] | None
    image_size: int
    captions: list[list[str]] | None = None
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels)

    def some(self, count: int | None) -> "Images":
        """`count` images, evenly spaced (a source may be sorted by class); all for None."""
        if count is None or count == len(self):
            return self
        if count > len(self):
            raise UserError(f"data.subset={count} is more than the {len(self)} training images there are: choose at most that.")
        return self.take(spread(len(self), count))

    def without(self, count: int) -> tuple["Images", "Images"]:
        """The images without `count` labelled ones, and these; where there are no labels, any. Fixed, whatever the seed of the run."""
        known = torch.arange(len(self)) if self.labels is None else (self.labels >= 0).nonzero()[:, 0]
        if count >= len(known):
            whose = "" if self.labels is None else " with a label"
            raise UserError(f"data.held_out={count} leaves none of the {len(known)} training images{whose}: choose fewer.")
        apart = known[_shuffled(len(known))[:count]].sort().values
        rest = torch.ones(len(self), dtype=torch.bool)
        rest[apart] = False
        return self.take(rest.nonzero()[:, 0]), self.take(apart)

    def take(self, index: Tensor) -> "Images":
        """The images at `index` [n]."""
        contiguous = len(index) and bool((index == torch.arange(int(index[0]), int(index[0]) + len(index))).all())
        pixels: Pixels
        if isinstance(self.pixels, OnDemand):
            pixels = self.pixels.take(index)
        else:
            pixels = self.pixels[int(index[0]) : int(index[0]) + len(index)] if contiguous else self.pixels[index]
        labels = None if self.labels is None else self.labels[index]
        captions = None if self.captions is None else [self.captions[i] for i in index.tolist()]
        return replace(self, pixels=pixels, labels=labels, captions=captions)

    def only_labelled(self) -> "Images":
        """The labelled images; all of them where there are no labels at all."""
        return self if self.labels is None or bool((self.labels >= 0).all()) else self.take((self.labels >= 0).nonzero()[:, 0])

    @property
    def labelled(self) -> Tensor:
        """Indices of the labelled images, [n]; without those that turned out to be unreadable, which show another image."""
        if self.labels is None:
            return torch.empty(0, dtype=torch.long)
        known = self.labels >= 0
        return (known & self.pixels.readable() if isinstance(self.pixels, OnDemand) else known).nonzero()[:, 0]

    @property
    def num_classes(self) -> int:
        if self.classes is not None:
            return len(self.classes)
        return int(self.labels.max()) + 1 if self.labels is not None and len(self.labels) else 0

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel on [0, 1], over at most 5,000 evenly spaced images (500 where
        they are decoded on demand).
        """
        count, first, second = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        chosen = (
            sample(len(self), self.pixels.blocks, 500) if isinstance(self.pixels, OnDemand) else spread(len(self), min(5000, len(self)))
        )
        for index in chosen.split(min(256, max(1, 5_000_000 // self.pixels.shape[1:].numel()))):  # float64 takes 40 MB
            x = self.pixels[index].to(torch.float64) / 255
            count += x.numel() // 3
            first += x.sum((0, 2, 3))
            second += x.square().sum((0, 2, 3))
        mean = first / count
        std = (second / count - mean.square()).clamp_min(1e-6).sqrt()
        return tuple(mean.tolist()), tuple(std.tolist())


def spread(total: int, count: int) -> Tensor:
    """`count` indices evenly spaced over `total`, [count]."""
    return torch.arange(count) * total // count


def _shuffled(total: int) -> Tensor:
    return torch.randperm(total, generator=torch.Generator().manual_seed(20))


def held_out(total: int, share: float) -> tuple[Tensor, Tensor]:
    """Indices of train and test for a source without a test split; fixed, whatever the seed of the run."""
    order = _shuffled(total)
    count = min(max(1, round(total * share)), total - 1) if total > 1 else 0
    return order[count:].sort().values, order[:count].sort().values


def first_labelled(splits: Sequence[Split], labels: Callable[[Split], Tensor | None]) -> Split:
    """The first of these splits that has a label, else the first: the test images of some data sets are published without."""
    for split in splits:
        known = labels(split)
        if known is not None and bool((known >= 0).any()):
            return split
    return splits[0]

"""Batches from one array of decoded images: no worker processes, a stateless order, resident on the device where it fits."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.data.images import Images
from ssl_zoo.distributed import fold_seed
from ssl_zoo.errors import UserError


def permutation(seed: int, epoch: int, total: int) -> Tensor:
    """The order of an epoch, [total]: a function of its arguments alone."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(fold_seed("order", seed, epoch)))


def fits(images: Images, device: torch.device, resident: bool | str) -> bool:
    """Whether to hold the images on `device`: as asked, or for "auto" when they take at most half of its free memory."""
    if isinstance(resident, bool):
        return resident
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if hasattr(os, "sysconf") else 0
    return images.pixels.numel() <= free // 2


class Loader:
    """Batches {"image": uint8 [B, 3, S, S], "index": [B], "label": [B] where there are labels} on `device`.

    Rank r of W takes every W-th image of the epoch's permutation; the last incomplete batch is dropped. `state_dict` is (epoch, batch):
    a loader that loads it goes on with the next batch of that epoch.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        resident: bool | str = "auto",
    ):
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.device = torch.device(device)
        self.resident = fits(images, self.device, resident)
        self.pixels = images.pixels.to(self.device, copy=True) if self.resident else images.pixels
        self.labels = None if images.labels is None else images.labels.to(self.device)
        self.total = len(images)
        self.epoch, self.batch, self._resume = 0, 0, False
        self.sampler = self  # Lightning calls sampler.set_epoch before each epoch
        if len(self) == 0:
            raise UserError(
                f"There are {self.total} training images, fewer than the global batch of {batch_size * world_size}: "
                f"set batch_size={max(1, self.total // world_size)} or less."
            )

    def __len__(self) -> int:
        return self.total // (self.batch_size * self.world_size)

    def set_epoch(self, epoch: int) -> None:
        if not self._resume:
            self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        start = self.batch if self._resume else 0
        self._resume = False
        order = permutation(self.seed, self.epoch, self.total)[self.rank :: self.world_size]
        if self.resident:
            order = order.to(self.device)
        elif self.device.type == "cuda":
            order = order.pin_memory()
        for b in range(start, len(self)):
            self.batch = b + 1
            yield self._batch(order[b * self.batch_size : (b + 1) * self.batch_size])

    def _batch(self, index: Tensor) -> dict[str, Tensor]:
        if self.resident:
            image = self.pixels[index]
        else:  # gathered on the host, into pinned memory: the copy to the device need not be waited for
            shape = (len(index), *self.pixels.shape[1:])
            image = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            torch.index_select(self.pixels, 0, index, out=image)
            image, index = (x.to(self.device, non_blocking=True) for x in (image, index))
        batch = {"image": image, "index": index}
        if self.labels is not None:
            batch["label"] = self.labels[index]
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]
        self._resume = 0 < self.batch < len(self)

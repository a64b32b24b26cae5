"""Batches of a stateless order: of images that lie on the device where they fit, mapped from the cache, or decoded on demand."""

import time
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.data.feed import feed, plan
from ssl_zoo.data.images import Images
from ssl_zoo.data.memory import free_memory
from ssl_zoo.data.ondemand import Fetched, OnDemand
from ssl_zoo.data.order import local_permutation, permutation
from ssl_zoo.data.tokens import Tokens
from ssl_zoo.errors import UserError


def fits(images: Images, device: torch.device, resident: bool | str, local: int = 1) -> bool:
    """Whether to hold the images on `device`: as asked, or for "auto" when they take at most half of its free memory, which on a CPU the
    `local` processes of this machine share. Images decoded on demand are never held.
    """
    if isinstance(images.pixels, OnDemand):
        if resident is True:
            raise UserError("data.resident=true needs decoded images: set data.decoded=true as well, or data.resident=auto.")
        return False
    if isinstance(resident, bool):
        return resident
    return images.pixels.numel() <= free_memory(device) // (2 if device.type == "cuda" else 2 * local)


class Loader:
    """Batches {"image": uint8 [B, 3, S, S], "index": [B], "label": [B] where there are labels} on `device`; with `tokens` also "tokens"
    [B, L], one caption for each image, drawn anew in every epoch.

    Rank r of W takes every W-th image of the epoch's order; the last incomplete batch is dropped. The images do not depend on `workers`
    (how many make batches ahead; 0 for none) and `worker_kind` (thread or process). local: training processes on this machine.
    gather=False: resident images come as {"pixels": all of them [N, 3, S, S], "index", "label"}, to be gathered by what takes the batch.
    `state_dict` is (epoch, images that all ranks together have taken of it): a loader that loads it goes on behind them, also with
    another number of ranks or another batch size. `waited` adds up the seconds in which batches were waited for.
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
        workers: int | str = "auto",
        worker_kind: str = "auto",
        local: int = 1,
        gather: bool = True,
        tokens: Tokens | None = None,
    ):
        self.batch_size, self.seed, self.rank, self.world_size, self.gather = batch_size, seed, rank, world_size, gather
        self.device = torch.device(device)
        self.total = len(images)
        if len(self) == 0:
            raise UserError(
                f"There are {self.total} training images, fewer than the global batch of {batch_size * world_size}: "
                f"set batch_size={max(1, self.total // world_size)} or less."
            )
        self.resident = fits(images, self.device, resident, local)
        self.pixels = images.pixels.to(self.device, copy=True) if self.resident else images.pixels  # type: ignore[union-attr]
        self.blocks = images.pixels.blocks if isinstance(images.pixels, OnDemand) else None
        self.labels = None if images.labels is None else images.labels.to(self.device)
        self.tokens = tokens
        self._ids = None if tokens is None else tokens.ids.to(self.device)
        self.workers, self.worker_kind = plan(self.pixels, workers, worker_kind, local)
        self.epoch, self.seen, self._resume = 0, 0, False
        self.waited = 0.0
        self._captions: Tensor | None = None  # the row of the caption that each image shows in this epoch, [N]
        self.sampler = self  # Lightning calls sampler.set_epoch before each epoch

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        return self.total // self.global_batch

    def set_epoch(self, epoch: int) -> None:
        if not self._resume:
            self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        seen, self._resume = self.seen if self._resume else 0, False
        count = (self.total - seen) // self.global_batch
        self._captions = None if self.tokens is None else self.tokens.drawn(self.seed, self.epoch).to(self.device)
        batches = self._batches(self._order()[seen + self.rank :: self.world_size], count)
        for left in reversed(range(count)):
            start = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - start
            if not left:
                batches.close()  # workers end before the evaluation that may follow
            seen += self.global_batch
            self.seen = seen  # batches made ahead do not count
            yield batch

    def _order(self) -> Tensor:
        if self.blocks is not None:
            return local_permutation(self.seed, self.epoch, self.blocks, self.pixels.window)  # type: ignore[union-attr]
        return permutation(self.seed, self.epoch, self.total)

    def _batches(self, order: Tensor, count: int) -> Generator[dict[str, Tensor], None, None]:
        """`count` batches of the images in `order`."""
        if self.resident:
            order = order.to(self.device)
        indices = (order[b * self.batch_size : (b + 1) * self.batch_size] for b in range(count))
        if self.resident:
            yield from map(self._held, indices)
            return
        pinned = self.device.type == "cuda"
        ready = None
        for fetched in feed(self.pixels, indices, self.workers, self.worker_kind, pinned):
            moved = self._moved(fetched)
            if not pinned:
                yield moved
                continue
            if ready is not None:  # one batch ahead: its copy is under way while the device works on the one before
                yield ready
            ready = moved
        if ready is not None:
            yield ready

    def _held(self, index: Tensor) -> dict[str, Tensor]:
        images = {"image": self.pixels[index]} if self.gather else {"pixels": self.pixels}
        return {**images, **self._known(index)}  # type: ignore[dict-item]

    def again(self, index: Tensor) -> dict[str, Tensor]:
        """The batch of images `index` [B] once more, not counted as seen."""
        return self._held(index) if self.resident else {"image": self.pixels[index.cpu()].to(self.device), **self._known(index)}

    def _moved(self, fetched: Fetched) -> dict[str, Tensor]:
        """A batch on the device; from pinned memory the copy need not be waited for."""
        image, index = (x.to(self.device, non_blocking=True) for x in (fetched.pixels, fetched.shown))
        return {"image": image, **self._known(index)}

    def _known(self, index: Tensor) -> dict[str, Tensor]:
        known = {"index": index} if self.labels is None else {"index": index, "label": self.labels[index]}
        if self._ids is not None and self._captions is not None:
            known["tokens"] = self._ids[self._captions[index]]
        return known

    def about(self) -> str:
        """Where the images are, as in "50,000 images of 32 px (154 MB) held on cuda:0"."""
        size = self.pixels.numel() / 1e6
        amount = f"{size:,.0f} MB" if size < 1000 else f"{size / 1000:,.1f} GB"
        what = f"{self.total:,} images of {self.pixels.shape[-1]} px"
        if self.resident:
            return f"{what} ({amount}) held on {self.device}"
        if not isinstance(self.pixels, OnDemand):
            return f"{what} ({amount}) memory-mapped"
        kind = self.worker_kind if self.workers == 1 else {"thread": "threads", "process": "processes"}[self.worker_kind]
        by = f" with {self.workers} {kind}" if self.workers else ""
        return f"{what} ({amount} when decoded) decoded on demand{by}"

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Also what older versions wrote, {"epoch", "batch"}."""
        self.epoch = state["epoch"]
        self.seen = state["seen"] if "seen" in state else state["batch"] * self.global_batch
        self._resume = 0 < self.seen <= self.total - self.global_batch
        if self.seen and not self._resume:  # what is left makes no batch
            self.epoch += 1

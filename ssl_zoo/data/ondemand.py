"""Images that are decoded when they are asked for, where an array of all of them would not fit."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.data.encoded import BLOCKS, Encoded
from ssl_zoo.data.pixels import decode_row
from ssl_zoo.errors import UserError, one_line

log = logging.getLogger("ssl_zoo")
IN_A_ROW = 100  # files that may be unreadable before it is an error
CHUNK = 16  # images that a thread decodes at a time
SHOWN = 20  # unreadable files that are named while training; the summary names more


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Fetched(NamedTuple):
    """A batch on the host: pixels uint8 [B, 3, S, S]; shown [B], the images that they are of; bad: rows of files found unreadable, with
    the reason.
    """

    pixels: Tensor
    shown: Tensor
    bad: list[tuple[int, str]]


class Pending(NamedTuple):
    """A batch that threads are decoding."""

    pixels: Tensor
    parts: list[Future[list[int]]]
    bad: list[tuple[int, str]]
    pinned: bool


class OnDemand:
    """Stands where an array uint8 [N, 3, S, S] does: an index or slice of it is decoded by threads. rows: the rows of `files` that it is
    of, [N]; None for all. A file that cannot be read gives way to the next image that can, and is added to `skipped`; with `gaps` it leaves
    a black image that is shown to be of -1.
    """

    gaps = False

    def __init__(self, files: Encoded, canvas: int, rows: Tensor | None = None) -> None:
        self.files, self.canvas, self.rows = files, canvas, rows
        self.skipped: list[str] = []
        self.unreadable: dict[int, str] = {}  # rows of files, with the reason

    def __len__(self) -> int:
        return len(self.files) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, self.canvas, self.canvas))

    def numel(self) -> int:
        return self.shape.numel()

    def row(self, i: int) -> int:
        """The row of `files` that image i is of."""
        return i if self.rows is None else int(self.rows[i])

    @property
    def blocks(self) -> list[int] | None:
        """As of Encoded, for the images that this holds."""
        if self.files.blocks is None or self.rows is None:
            return self.files.blocks
        ends = torch.tensor(self.files.blocks).cumsum(0)
        return torch.unique_consecutive(torch.bucketize(self.rows, ends, right=True), return_counts=True)[1].tolist()

    @property
    def window(self) -> int:
        """How many blocks an epoch mixes at a time."""
        return getattr(self.files, "window", BLOCKS)

    def take(self, index: Tensor) -> "OnDemand":
        """The images at `index` [n], which know of the same unreadable files."""
        taken = OnDemand(self.files, self.canvas, index if self.rows is None else self.rows[index])
        taken.skipped, taken.unreadable, taken.gaps = self.skipped, self.unreadable, self.gaps
        return taken

    def readable(self) -> Tensor:
        """Which images were not found unreadable so far, bool [N]."""
        rows = torch.arange(len(self)) if self.rows is None else self.rows
        return ~torch.isin(rows, torch.tensor(sorted(self.unreadable), dtype=torch.long))

    def split(self, size: int) -> Iterator[Tensor]:
        """Parts of `size` images, each decoded when it is reached."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        if isinstance(index, int):
            return self[torch.tensor([index % len(self)])][0]
        chosen = (torch.arange(len(self))[index] if isinstance(index, slice) else index.cpu()).tolist()
        with ThreadPoolExecutor(cpus()) as pool:
            return self.collect(self.submit(pool, chosen)).pixels

    def __getitems__(self, index: Sequence[int]) -> Fetched | UserError:
        """A batch, in this thread; an error is returned, to be raised where it can be told in one sentence."""
        pixels = torch.empty(len(index), *self.shape[1:], dtype=torch.uint8)
        bad: list[tuple[int, str]] = []
        try:
            shown = self._decode(index, pixels.numpy(), bad)
        except UserError as e:
            return e
        return Fetched(pixels, torch.tensor(shown), bad)

    def submit(self, pool: Executor, index: Sequence[int], pin_memory: bool = False) -> Pending:
        """A batch that the threads of `pool` decode, for `collect`."""
        pixels = torch.empty(len(index), *self.shape[1:], dtype=torch.uint8, pin_memory=pin_memory)
        array = pixels.numpy()
        bad: list[tuple[int, str]] = []
        starts = range(0, len(index), CHUNK)
        parts = [pool.submit(self._decode, index[s : s + CHUNK], array[s : s + CHUNK], bad) for s in starts]
        return Pending(pixels, parts, bad, pin_memory)

    def collect(self, batch: Pending | Fetched | UserError) -> Fetched:
        """The batch when it is whole; raises its UserError, and takes note of unreadable files."""
        if isinstance(batch, UserError):
            raise batch
        if isinstance(batch, Pending):
            shown = torch.tensor([i for part in batch.parts for i in part.result()], dtype=torch.long)
            batch = Fetched(batch.pixels, shown.pin_memory() if batch.pinned else shown, batch.bad)
        self.learn(batch.bad)
        return batch

    def learn(self, bad: Iterable[tuple[int, str]]) -> None:
        """Take note of unreadable rows of files, each once."""
        for row, reason in bad:
            if row not in self.unreadable:
                self.unreadable[row] = reason
                self.skipped.append(f"{self.files.name(row)}: {reason}")
                count = len(self.unreadable)
                if count <= SHOWN:
                    log.warning("skipped %s%s", one_line(self.skipped[-1]), "" if self.gaps else "; the next image takes its place")
                elif count % 100 == 0:
                    log.warning("%d files could not be read so far", count)

    def _decode(self, index: Sequence[int], out: np.ndarray, bad: list[tuple[int, str]]) -> list[int]:
        """Decode images into `out` [B, 3, S, S]; the images that they are of."""
        shown = []
        for k, i in enumerate(index):
            found, at = self._next(i, bad)
            out[k] = found
            shown.append(at)
        return shown

    def _next(self, i: int, bad: list[tuple[int, str]]) -> tuple[np.ndarray, int]:
        """Image i or the next one that can be read, the first after the last, and which it is."""
        reason = ""
        for at in (n % len(self) for n in range(i, i + (1 if self.gaps else min(IN_A_ROW, len(self))))):
            row = self.row(at)
            known = self.unreadable.get(row)
            found = decode_row(self.files, row, self.canvas) if known is None else known
            if not isinstance(found, str):
                return found, at
            reason = reason or f"{self.files.name(row)}: {found}"
            if known is None:
                bad.append((row, found))
        if self.gaps:
            return np.zeros(self.shape[1:], dtype=np.uint8), -1
        raise UserError(
            f"None of {min(IN_A_ROW, len(self))} files in a row could be read as an image (the first: {reason}): check dataset.path."
        )


Pixels = Tensor | OnDemand

"""What decoding asks of a source: encoded images by row number."""

import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

LARGEST = 1 << 28  # bytes; what claims more is no image
BLOCKS = 16  # blocks that a sample is taken from, and that an epoch mixes at a time


class Encoded(Protocol):
    """Encoded images by row number, 0 to len - 1. Can be pickled, and read from any thread or process; holds no list of objects per row
    where rows may be many.
    """

    @property
    def blocks(self) -> list[int] | None:
        """Lengths of the consecutive stretches of rows in which near rows are cheaper to read (row groups, archives, chunks); they add up
        to len. None where any order is as good.
        """

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What a message calls the row: a path, or the row of a file."""

    def read(self, row: int) -> bytes:
        """The encoded image of a row; OSError or ValueError where there is none."""


def opened(path: str | Path) -> BufferedReader:
    """A file open for reading. OSError for what is none: a pipe would be waited for, and a device may never end."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError("it is no file but a folder, pipe or device")
    return open(number, "rb")


def read_file(path: str | Path, largest: int = LARGEST) -> bytes:
    """The bytes of a file; OSError for what is none, or too large."""
    with opened(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > largest:
            raise OSError(f"its {size:,} bytes are more than any {'image' if largest == LARGEST else 'caption'} has")
        return file.read()


def sample(total: int, blocks: list[int] | None, count: int) -> Tensor:
    """`count` rows (or all, where there are fewer) spread evenly over `total`, in order; over 16 blocks at most where there are blocks."""
    count = min(count, total)
    if not blocks or len(blocks) <= BLOCKS:
        return torch.arange(count) * total // max(1, count)
    ends = torch.tensor(blocks).cumsum(0)
    chosen = torch.arange(BLOCKS) * len(blocks) // BLOCKS
    rows = torch.cat([torch.arange(int(ends[b]) - blocks[b], int(ends[b])) for b in chosen.tolist()])
    return rows[torch.arange(min(count, len(rows))) * len(rows) // min(count, max(1, len(rows)))]

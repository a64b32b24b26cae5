"""What decoding asks of a source: encoded images by row number."""

from typing import Protocol


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

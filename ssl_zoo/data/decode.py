"""Encoded files to the pixels of a data set: decoded once into the cache, or on demand."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ssl_zoo.data.cache import Cache, Stamp
from ssl_zoo.data.encoded import Encoded
from ssl_zoo.data.ondemand import OnDemand, Pixels
from ssl_zoo.data.pixels import canvas_for, sizes
from ssl_zoo.errors import UserError, one_line

log = logging.getLogger("ssl_zoo")
MOST_BYTES = 4_000_000_000  # decoded; data.decoded=auto decodes more than this, or more files, only on demand
MOST_FILES = 50_000


def cache_dir(path: str | None = None) -> Path:
    """Where decoded images are kept: `path`, else $SSL_ZOO_CACHE, else ~/.cache/ssl_zoo."""
    return Path(path or os.environ.get("SSL_ZOO_CACHE") or Path.home() / ".cache" / "ssl_zoo").expanduser()


def decode(
    files: Encoded, image_size: int | None, cache: Path, decoded: bool | str = "auto", stamp: Stamp | None = None
) -> tuple[Pixels, Sequence[int], list[str], int]:
    """The pixels [n, 3, S, S] of files. Returns (pixels, rows that they are of [n], skipped, view size).

    decoded: True decodes all files into `cache`, or finds them there, and maps the array into memory; False decodes an image whenever it
    is asked for, and `skipped` grows meanwhile; "auto" is True for what is in the cache and for at most 50,000 files that take at most
    4 GB. stamp: gives a `cache.stamp` of the files, where the source has one: files that did not change are then not read to find their
    array.
    """
    view, canvas = sizes(files) if image_size is None else (image_size, canvas_for(image_size))
    cached = Cache(cache, files, canvas, stamp)
    few = len(files) <= MOST_FILES and len(files) * 3 * canvas**2 <= MOST_BYTES
    if decoded is False or (decoded == "auto" and not few and not cached.has()):
        pixels = OnDemand(files, canvas)
        return pixels, range(len(files)), pixels.skipped, view
    file, meta = cached.get()
    skipped = [f"{files.name(row)}: {reason}" for row, reason in meta["skipped"]]  # the same files may have other names by now
    for line in skipped[:20]:
        log.warning("skipped %s", one_line(line))
    if skipped:
        log.warning("%d of %d files could not be read and were skipped", len(skipped), len(files))
    if not meta["kept"]:
        first = f" (the first: {skipped[0]})" if skipped else ""
        raise UserError(f"None of the {len(files)} files could be read as an image{first}: check dataset.path.")
    array = np.memmap(file, dtype=np.uint8, mode="c", shape=(len(meta["kept"]), 3, canvas, canvas))
    return torch.from_numpy(array), meta["kept"], skipped, view

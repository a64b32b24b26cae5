"""Encoded images that lie as they are inside larger files, found through an index of (offset, size) that is made once and cached."""

import bisect
import contextlib
import functools
import itertools
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_zoo.data.cache import stamp

log = logging.getLogger("ssl_zoo")
VERSION = "1"  # part of an index's name: raise it when scanning changes
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("label", pa.string()),
        ("captions", pa.list_(pa.string())),
    ]
)
STRETCH = 1 << 26  # bytes that are near each other
Scan = Callable[[Path], pa.Table]  # the index of a file


def index_of(rows: Sequence[tuple], notes: dict[str, list[str]]) -> pa.Table:
    """An index of rows (name, offset, size, label, captions), with what was left out of it: {reason: names}."""
    columns = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(SCHEMA)]
    said = [f"{len(names)} {reason}: {', '.join(names[:5])}" for reason, names in notes.items() if names]
    return pa.table(columns, schema=SCHEMA.with_metadata({"notes": json.dumps(said)}))


def shown(name: str) -> str:
    """A name from a file as it can be stored and printed."""
    return "".join(c if c.isprintable() else "?" for c in name)


def indexed(files: Sequence[Path], scans: Sequence[Scan], cache: Path) -> list[pa.Table]:
    """The index of each file, from the cache where the file has not changed; warns of what was left out."""
    with ThreadPoolExecutor(8) as pool:
        tables = list(pool.map(functools.partial(_index, cache=cache), files, scans))
    for file, table in zip(files, tables, strict=True):
        for note in json.loads((table.schema.metadata or {}).get(b"notes", b"[]")):
            log.warning("%s: %s", file, note)
    return tables


def _index(file: Path, scan: Scan, cache: Path) -> pa.Table:
    found = stamp([file.resolve()], f"{VERSION} {getattr(scan, 'keywords', '')}")
    if found is None:  # it has just changed
        return scan(file)
    kept = cache / f"index-{found}.parquet"
    try:
        table = pq.ParquetFile(kept).read()
        if table.schema.equals(SCHEMA):
            return table
    except (OSError, pa.ArrowException):
        pass
    table = scan(file)
    part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, part)
        os.replace(part, kept)
    except OSError as e:  # only the time of the next scan is lost
        with contextlib.suppress(OSError):
            part.unlink()
        log.warning("the index of %s cannot be cached in %s (%s)", file, cache, e.strerror or e)
    return table


def column(tables: Sequence[pa.Table], name: str) -> pa.Array:
    """A column of several indexes in one."""
    return pa.chunked_array([c for t in tables for c in t.column(name).chunks], SCHEMA.field(name).type).combine_chunks()


class _Open:
    """A file open for reading, closed when nobody reads from it any more."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        at = os.fstat(self.number)
        self.stamp = (at.st_size, at.st_mtime_ns, at.st_ctime_ns)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(maxsize=256)  # well below the usual limit of 1,024 open files
def _opened(path: Path, known: tuple[int, int, int]) -> _Open:
    file = _Open(path)
    if file.stamp != known:
        raise OSError(f"{path.name} has changed since the run began")
    return file


class Spans:
    """The images of an index by row number, read with pread: in any order, from any thread or process. Picklable. The rows of a file
    follow each other.
    """

    def __init__(self, files: Sequence[Path], tables: Sequence[pa.Table]):
        self.files = list(files)
        self.stamps = [(at.st_size, at.st_mtime_ns, at.st_ctime_ns) for at in (f.stat() for f in self.files)]
        self.starts = [0, *itertools.accumulate(len(t) for t in tables)]
        self.names = column(tables, "name")
        self.offset: np.ndarray = column(tables, "offset").to_numpy()
        self.size: np.ndarray = column(tables, "size").to_numpy()

    def __len__(self) -> int:
        return self.starts[-1]

    def stamp(self) -> str | None:
        """Of the files and what describes them, as of `cache.stamp`."""
        return stamp([*self.files, *sorted({file.with_name("index.json") for file in self.files})])

    @property
    def blocks(self) -> list[int]:
        """Each file in equal stretches of up to about STRETCH bytes: a file may be as large as the data set."""
        found = []
        for first, last in itertools.pairwise(self.starts):
            parts = -(-int(self.size[first:last].sum()) // STRETCH) or 1
            found += [len(rows) for rows in np.array_split(np.arange(last - first), min(parts, last - first) or 1)]
        return [count for count in found if count]

    def _file(self, row: int) -> int:
        return bisect.bisect_right(self.starts, row) - 1

    def name(self, row: int) -> str:
        return f"{self.files[self._file(row)].name}: {self.names[row].as_py()}"

    def read(self, row: int) -> bytes:
        """The encoded image of a row; OSError where it cannot be read."""
        file, size = self._file(row), int(self.size[row])
        opened = _opened(self.files[file], self.stamps[file])  # held, so that it stays open
        data = os.pread(opened.number, size, int(self.offset[row]))
        if len(data) < size:
            raise OSError("the file ends within the image")
        return data

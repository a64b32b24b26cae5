"""Parquet files in the Hugging Face layout: an image column of {bytes, path}, and a label or captions beside it."""

import bisect
import functools
import itertools
import json
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ssl_zoo.data.cache import stamp
from ssl_zoo.data.caption_lines import sentences
from ssl_zoo.data.decode import cache_dir, decode
from ssl_zoo.data.encoded import BLOCKS, read_file
from ssl_zoo.data.images import TEST_NAMES, Images, first_labelled, held_out
from ssl_zoo.data.labels import Classes
from ssl_zoo.data.pixels import shorter_side
from ssl_zoo.errors import UserError

GROUPS = 2 * BLOCKS  # row groups in memory at a time: those that an epoch mixes, and the next
GROUP_BYTES = 1 << 30  # and no more of them than take a gigabyte


def split_of(file: Path) -> str:
    """The split that a path names by a word of the file's name, else of the nearest folder; train where none does."""
    for part in (file.stem, *reversed(file.parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in ("train", *TEST_NAMES):
                return word
    return "train"


class Parquet:
    """One parquet file, or a folder of them whose names or sub-folders hold the word train, test or validation; test before validation,
    unless only that has labels. Without either, `test_share` is held out of train. image_size: pixels of a view; None decides by the
    images. decoded: as for `decode`.
    """

    def __init__(
        self,
        path: str,
        image_size: int | None = None,
        image_column: str = "image",
        label_column: str = "label",
        caption_column: str = "captions",
        test_share: float = 0.1,
        cache: str | None = None,
        decoded: bool | str = "auto",
    ):
        self.path = Path(path).expanduser()
        self.image_size, self.test_share, self.cache, self.decoded = image_size, test_share, cache_dir(cache), decoded
        self.columns = (image_column, label_column, caption_column)
        files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*.parquet"))
        if not files:
            raise UserError(f"There are no .parquet files in dataset.path={path}.")
        splits = {f: split_of(f.relative_to(self.path)) for f in files}
        self.train_files = tuple(f for f in files if splits[f] == "train")
        self.tests = [found for n in TEST_NAMES if (found := tuple(f for f in files if splits[f] == n))]
        if not self.train_files:  # a lone test file is still a set of images
            self.train_files, self.tests = tuple(files), []

    def load(self, split: str) -> Images:
        """The "train" or "test" images."""
        if self.tests:
            return self._load(self.train_files if split == "train" else first_labelled(self.tests, self._labels))
        images = self._load(self.train_files)
        train, test = held_out(len(images), self.test_share)
        return images.take(train if split == "train" else test)

    def side(self) -> int | None:
        """Pixels of the shorter side of the training images as they lie in the files; None where none can be read."""
        return shorter_side(Rows(self.train_files, self.columns[0]))

    @functools.cache  # noqa: B019 - a source lives as long as its run
    def _load(self, files: tuple[Path, ...]) -> Images:
        labels = self._labels(files)
        captions = self._read(files, self.columns[2])
        rows = Rows(files, self.columns[0])
        pixels, kept, skipped, size = decode(rows, self.image_size, self.cache, self.decoded, rows.stamp)
        if captions is not None:
            said = (c if isinstance(c, list) else sentences(c) if isinstance(c, str) else [] for c in (captions[i] for i in kept))
            captions = [[s for s in some if isinstance(s, str)] for some in said]
        classes = self._classes.names if self._classes else None
        return Images(pixels, None if labels is None else labels[torch.tensor(kept)], classes, size, captions, skipped)

    @functools.cached_property
    def _classes(self) -> Classes | None:
        values = self._read(self.train_files, self.columns[1])
        return None if values is None else Classes(self.columns[1], values, self._class_names())

    @functools.cache  # noqa: B019
    def _labels(self, files: tuple[Path, ...]) -> torch.Tensor | None:
        """Class numbers of all rows, in the numbering of train."""
        values = self._read(files, self.columns[1])
        return None if values is None or self._classes is None else self._classes.number(values)

    def _class_names(self) -> list[str] | None:
        """The class names that the files state, which must agree: labels are positions in them."""
        stated = {f: names for f in (*self.train_files, *itertools.chain(*self.tests)) if (names := _stated_names(f, self.columns[1]))}
        for file, names in stated.items():
            if names != next(iter(stated.values())):
                raise UserError(f"{file} names its classes differently from {next(iter(stated))}: write both with the same class names.")
        return stated.get(self.train_files[0])

    def _read(self, files: tuple[Path, ...], column: str) -> list[Any] | None:
        """A column of all files, or None where no file has it; the images are read row group by row group later."""
        tables = []
        for file in files:
            try:
                names = pq.read_schema(file).names
                if self.columns[0] not in names:
                    raise UserError(f"{file} has no column '{self.columns[0]}' but {', '.join(names)}: set dataset.image_column.")
                tables.append(pq.read_table(file, columns=[column] if column in names else []))
            except (pa.ArrowException, OSError) as e:
                raise UserError(f"{file} cannot be read as parquet ({str(e).splitlines()[0]}).") from e
        try:
            table = pa.concat_tables(tables, promote_options="default")
        except pa.ArrowException as e:
            raise UserError(f"The files of {self.path} have different columns: {str(e).splitlines()[0]}.") from e
        return table.column(column).to_pylist() if column in table.column_names else None


class Rows:
    """The encoded images of some files by row number, in blocks of a row group."""

    def __init__(self, files: tuple[Path, ...], column: str) -> None:
        self.column, self.files = column, files
        known = [pq.read_metadata(f) for f in files]
        self.groups = [(n, g) for n, m in enumerate(known) for g in range(m.num_row_groups)]  # (number of the file, its row group)
        self.blocks = [known[n].row_group(g).num_rows for n, g in self.groups]
        self.inside = all(_holds_all(known[n].row_group(g), column) for n, g in self.groups)
        self.starts = [0, *itertools.accumulate(self.blocks)]
        largest = max((_bytes(known[n].row_group(g), column) for n, g in self.groups), default=0)
        self.window = max(1, min(BLOCKS, GROUP_BYTES // max(1, largest)))  # row groups that an epoch mixes: as many as stay in memory
        self._open()

    def _open(self) -> None:
        self.lock, self.held = threading.Lock(), OrderedDict[int, pa.ChunkedArray]()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("lock", "held")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, row: int) -> str:
        return f"row {row}"

    def stamp(self) -> str | None:
        """Of the files, as of `cache.stamp`; None where images may lie in other files."""
        return stamp(self.files, self.column) if self.inside else None

    def _group(self, number: int) -> pa.ChunkedArray:
        """The images of a row group; those asked for last stay in memory."""
        with self.lock:
            if number not in self.held:
                file, group = self.groups[number]
                self.held[number] = pq.ParquetFile(self.files[file]).read_row_group(group, columns=[self.column]).column(self.column)
                while len(self.held) > 1 and (len(self.held) > GROUPS or sum(g.nbytes for g in self.held.values()) > GROUP_BYTES):
                    self.held.popitem(last=False)
            self.held.move_to_end(number)
            return self.held[number]

    def read(self, row: int) -> bytes:
        """The encoded image of a row; OSError or ValueError (of a damaged row group) where there is none."""
        number = bisect.bisect_right(self.starts, row) - 1
        value = self._group(number)[row - self.starts[number]].as_py()
        if isinstance(value, dict):
            if value.get("bytes"):
                return value["bytes"]
            if value.get("path"):
                return self._beside(self.files[self.groups[number][0]].parent, value["path"])
        if isinstance(value, bytes):
            return value
        raise OSError("the row holds no image")

    @staticmethod
    def _beside(folder: Path, path: str) -> bytes:
        """A file that a row names, which must lie below the folder of the parquet file: whoever wrote that may have written anything."""
        place = (folder / path).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise OSError("the row names a file outside of the folder of the parquet file")
        return read_file(place)


def _leaf(group: Any, column: str) -> Any:
    """The encoded images of a row group; None where it has none."""
    leaves = (group.column(i) for i in range(group.num_columns))
    return next((c for c in leaves if c.path_in_schema in (column, f"{column}.bytes")), None)


def _bytes(group: Any, column: str) -> int:
    leaf = _leaf(group, column)
    return leaf.total_uncompressed_size if leaf is not None else 0


def _holds_all(group: Any, column: str) -> bool:
    """Whether the statistics of a row group say that every row holds its own bytes."""
    leaf = _leaf(group, column)
    return leaf is not None and leaf.statistics is not None and leaf.statistics.null_count == 0


def _stated_names(file: Path, column: str) -> list[str] | None:
    try:
        return list(json.loads((pq.read_schema(file).metadata or {})[b"huggingface"])["info"]["features"][column]["names"])
    except (KeyError, ValueError, TypeError, OSError, pa.ArrowException):
        return None

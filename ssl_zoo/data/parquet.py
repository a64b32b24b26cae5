"""Parquet files in the Hugging Face layout: an image column of {bytes, path}, and a label or captions beside it."""

import bisect
import functools
import itertools
import json
import re
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ssl_zoo.data.decode import cache_dir, decode
from ssl_zoo.data.images import Images, held_out
from ssl_zoo.errors import UserError

TEST_NAMES = ("test", "validation", "valid", "val")


class Parquet:
    """One parquet file, or a folder of them named after their split (train-*.parquet, test-*.parquet, validation-*.parquet, also in
    sub-folders). Without a test split, `test_share` is held out of train. image_size: pixels of a view; None decides by the images.
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
    ):
        self.path = Path(path).expanduser()
        self.image_size, self.test_share, self.cache = image_size, test_share, cache_dir(cache)
        self.columns = (image_column, label_column, caption_column)
        files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*.parquet"))
        if not files:
            raise UserError(f"There are no .parquet files in dataset.path={path}.")
        named = {f: re.split(r"[-_.\d]", f.name.lower())[0] for f in files} if self.path.is_dir() else {}
        parents = {f: f.parent.name.lower() for f in files}
        test = next((n for n in TEST_NAMES if n in named.values() or n in parents.values()), None)
        self.test_files = [f for f in files if test and test in (named.get(f), parents[f])]
        others = [f for f in files if not any(n in (named.get(f), parents[f]) for n in TEST_NAMES)]
        if not others:  # a lone test file is still a set of images
            others, self.test_files = files, []
        self.train_files = others

    def load(self, split: str) -> Images:
        """The "train" or "test" images."""
        images = self._load(tuple(self.test_files if split == "test" and self.test_files else self.train_files))
        if self.test_files:
            return images
        train, test = held_out(len(images), self.test_share)
        return images.take(train if split == "train" else test)

    @functools.cache  # noqa: B019 - a source lives as long as its run
    def _load(self, files: tuple[Path, ...]) -> Images:
        table = self._read(files)
        _, label, caption = self.columns
        rows = _Rows(files, self.columns[0])
        names = [f"row {i}" for i in range(len(rows))]
        pixels, kept, skipped, size = decode(names, [partial(rows.read, i) for i in range(len(rows))], self.image_size, self.cache)
        labels, classes = self._labels(table, label)
        captions = table.column(caption).to_pylist() if caption in table.column_names else None
        if captions is not None:
            captions = [[c] if isinstance(c, str) else list(c or []) for c in (captions[i] for i in kept)]
        return Images(pixels, None if labels is None else labels[torch.tensor(kept)], classes, size, captions, skipped)

    def _read(self, files: tuple[Path, ...]) -> pa.Table:
        """Labels and captions of all files; the images are read row group by row group later."""
        image, label, caption = self.columns
        tables = []
        for file in files:
            try:
                names = pq.read_schema(file).names
                if image not in names:
                    raise UserError(f"{file} has no column '{image}' but {', '.join(names)}: set dataset.image_column.")
                tables.append(pq.read_table(file, columns=[c for c in (label, caption) if c in names]))
            except (pa.ArrowInvalid, OSError) as e:
                raise UserError(f"{file} cannot be read as parquet ({str(e).splitlines()[0]}).") from e
        try:
            return pa.concat_tables(tables, promote_options="default")
        except pa.ArrowInvalid as e:
            raise UserError(f"The files of {self.path} have different columns: {str(e).splitlines()[0]}.") from e

    def _labels(self, table: pa.Table, column: str) -> tuple[torch.Tensor | None, list[str] | None]:
        if column not in table.column_names:
            return None, None
        values = table.column(column).to_pylist()
        if any(isinstance(v, str) for v in values):
            classes = sorted({str(v) for v in values if v is not None})
            number: dict[Any, int] = {c: i for i, c in enumerate(classes)}
            return torch.tensor([-1 if v is None else number[str(v)] for v in values]), classes
        labels = torch.tensor([-1 if v is None else int(v) for v in values])
        names = self._class_names(table, column)
        return labels, names or [str(i) for i in range(int(labels.max()) + 1)]

    @staticmethod
    def _class_names(table: pa.Table, column: str) -> list[str] | None:
        try:
            info = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"][column]
            return list(info["names"])
        except (KeyError, ValueError, TypeError):
            return None


class _Rows:
    """The encoded images of some files by row number; a few row groups are in memory at a time."""

    def __init__(self, files: tuple[Path, ...], column: str) -> None:
        self.column = column
        self.groups = [(f, g) for f in files for g in range(pq.read_metadata(f).num_row_groups)]
        counts = [pq.read_metadata(f).row_group(g).num_rows for f, g in self.groups]
        self.starts = [0, *itertools.accumulate(counts)]
        self.folders = {f: f.parent for f in files}
        self.lock = threading.Lock()
        self.group = functools.lru_cache(maxsize=2)(self._group)

    def __len__(self) -> int:
        return self.starts[-1]

    def _group(self, number: int) -> pa.ChunkedArray:
        file, group = self.groups[number]
        return pq.ParquetFile(file).read_row_group(group, columns=[self.column]).column(self.column)

    def read(self, row: int) -> bytes:
        """The encoded image of a row; OSError where there is none."""
        number = bisect.bisect_right(self.starts, row) - 1
        with self.lock:
            value = self.group(number)[row - self.starts[number]].as_py()
        if isinstance(value, dict):
            if value.get("bytes"):
                return value["bytes"]
            if value.get("path"):
                return (self.folders[self.groups[number][0]] / value["path"]).read_bytes()
        if isinstance(value, bytes):
            return value
        raise OSError("the row holds no image")

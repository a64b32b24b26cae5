"""Data sets packed into a few large files: webdataset tars, or litdata's chunks."""

import functools
import itertools
import json
import logging
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from ssl_zoo.data import chunks, tars
from ssl_zoo.data.decode import cache_dir, decode
from ssl_zoo.data.images import TEST_NAMES, Images, first_labelled, held_out
from ssl_zoo.data.labels import Classes
from ssl_zoo.data.parquet import split_of
from ssl_zoo.data.spans import Scan, Spans, column, indexed
from ssl_zoo.errors import UserError

VERSION = 1  # of meta.json
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
Part = tuple[Path, Scan]
log = logging.getLogger("ssl_zoo")


def find(root: Path) -> dict[str, tuple[Part, ...]]:
    """The shards below `root` (or the one that it is) of each split; hidden folders hold none."""
    files = [root] if root.is_file() else sorted(root.rglob("*"))
    files = [f for f in files if not any(p.startswith(".") for p in f.relative_to(root).parts)]
    compressed = [f for f in files if f.name.lower().endswith(COMPRESSED)]
    if compressed:
        raise UserError(f"{compressed[0]} is a compressed tar, whose images cannot be read one by one: unpack it with gunzip or the like.")
    archives = [f for f in files if f.suffix.lower() == ".tar" and f.is_file()]
    indexes = [f for f in files if f.name == "index.json"]
    if archives and indexes:
        raise UserError(f"{root} holds both tars and litdata's {indexes[0]}: give the folder of one of them.")
    found: dict[str, tuple[Part, ...]] = {}
    for file in archives or indexes:
        split = split_of(file.relative_to(root))
        found[split] = found.get(split, ()) + (((file, tars.scan),) if archives else tuple(chunks.read_index(file)))
    if not found:
        raise UserError(f"There are no shards in {root}: it should hold .tar files, or chunks of litdata beside an index.json.")
    return found


class ShardSource:
    """Tars or litdata chunks under `path`, whose names or folders hold the word train, test or validation; test before validation, unless
    only that has labels. Without either, `test_share` is held out of train. Classes: those of meta.json, else the labels themselves;
    labels=False ignores them, labels=True insists on them. image_size: pixels of a view; None decides by the images.
    decoded: as for `decode`.
    """

    def __init__(
        self,
        path: str,
        image_size: int | None = None,
        labels: bool | str = "auto",
        test_share: float = 0.1,
        cache: str | None = None,
        decoded: bool | str = "auto",
    ):
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise UserError(f"dataset.path={path} does not exist.")
        self.image_size, self.labels, self.test_share = image_size, labels, test_share
        self.cache, self.decoded = cache_dir(cache), decoded
        self.meta = read_meta(self.path)
        splits = find(self.path)
        tests = [splits[n] for n in TEST_NAMES if n in splits]
        lone = tuple(itertools.chain(*tests))  # lone test shards are still a set of images
        self.train, self.tests = (splits["train"], tests) if "train" in splits else (lone, [])

    def load(self, split: str) -> Images:
        """The "train" or "test" images."""
        if self.tests:
            return self._load(self.train if split == "train" else first_labelled(self.tests, self._numbers))
        images = self._load(self.train)
        train, test = held_out(len(images), self.test_share)
        return images.take(train if split == "train" else test)

    @functools.cache  # noqa: B019 - a source lives as long as its run
    def _load(self, parts: tuple[Part, ...]) -> Images:
        files, _, captions = self._index(parts)
        pixels, kept, skipped, size = decode(files, self.image_size, self.cache, self.decoded, files.stamp)
        labels = self._numbers(parts)
        labels = None if labels is None else labels[torch.tensor(kept)]
        said = None if captions is None else [captions[i].as_py() or [] for i in kept]
        return Images(pixels, labels, self._classes.names if self._classes else None, size, said, skipped)

    @functools.cache  # noqa: B019
    def _index(self, parts: tuple[Part, ...]) -> tuple[Spans, pa.DictionaryArray, pa.ListArray | None]:
        """Images, labels as they are written, and captions (or None) of some shards."""
        tables = indexed([file for file, _ in parts], [scan for _, scan in parts], self.cache)
        files = Spans([file for file, _ in parts], tables)
        if not len(files):
            raise UserError(f"There are no images in {parts[0][0].parent}: a tar holds members such as 0001.jpg and 0001.cls.")
        split = next((s for s, p in (("train", self.train), *(("test", t) for t in self.tests)) if p == parts), "")
        stated = self.meta.get("counts", {}).get(split, len(files))
        if stated != len(files):
            log.warning("%s should hold %s %s images, but %d are there: copy its shards again", self.path, stated, split, len(files))
        captions = column(tables, "captions")
        return files, column(tables, "label").dictionary_encode(), None if captions.null_count == len(captions) else captions

    @functools.cached_property
    def _classes(self) -> Classes | None:
        found = [] if self.labels is False else self._index(self.train)[1].dictionary.to_pylist()
        if self.labels is True and not found:
            raise UserError(f"dataset.labels=true needs labels in {self.path}: add .cls files to the tars, or use labels=auto.")
        return Classes("label", self._values(found), self.meta.get("classes")) if found else None

    @functools.cache  # noqa: B019
    def _numbers(self, parts: tuple[Part, ...]) -> torch.Tensor | None:
        """Class numbers of all rows, in the numbering of train."""
        if self._classes is None:
            return None
        labels = self._index(parts)[1]
        numbers = torch.cat([self._classes.number(self._values(labels.dictionary.to_pylist())), torch.tensor([-1])])
        return numbers[torch.tensor(labels.indices.fill_null(-1).to_numpy())]

    def _values(self, labels: list[str]) -> list[int | str]:
        """Labels as numbers, where every label of train is a whole number."""
        train = self._index(self.train)[1].dictionary.to_pylist()
        whole = re.compile(r"-?\d{1,18}")
        return [int(v) if whole.fullmatch(v) else v for v in labels] if all(map(whole.fullmatch, train)) else list(labels)


def read_meta(path: Path) -> dict[str, Any]:
    """What `ssl-zoo shard` wrote beside the shards: {"version", "classes", "counts"}; empty where others wrote them."""
    file = path / "meta.json"
    if not file.is_file():
        return {}
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        classes = meta["classes"]
        if classes is not None and not (isinstance(classes, list) and classes and all(isinstance(c, str) for c in classes)):
            raise ValueError("classes are names")
        if not isinstance(meta.get("counts", {}), dict):
            raise ValueError("counts are a table")
        version = int(meta["version"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:  # of a version that is no number, among others
        raise UserError(f"{file} cannot be read ({type(e).__name__}): delete it, or write the shards again.") from e
    if version > VERSION:
        raise UserError(f"{file} was written by a newer ssl-zoo: update this one.")
    return meta

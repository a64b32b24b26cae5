"""A folder of images, with or without class sub-folders and train/test splits."""

import functools
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ssl_zoo.data.cache import stamp
from ssl_zoo.data.captioned_folder import Captions, captions_of
from ssl_zoo.data.decode import cache_dir, decode
from ssl_zoo.data.encoded import read_file
from ssl_zoo.data.images import TEST_NAMES, Images, first_labelled, held_out
from ssl_zoo.errors import UserError, one_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2", ".ico", ".jfif")
NO_IMAGE = ": not an image file name"
log = logging.getLogger("ssl_zoo")


def find(root: Path, leave_out: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Paths below `root` of files with an image suffix, and what is left out (a path and why), sorted; without hidden files and folders
    and the first-level folders `leave_out`, in any case. Links are followed once.
    """
    images: list[str] = []
    others: list[str] = []
    seen = set()

    def closed(e: OSError) -> None:
        others.append(f"{os.path.relpath(e.filename, root)}: {e.strerror}")

    for folder, inner, files in os.walk(root, onerror=closed, followlinks=True):
        real, below = os.path.realpath(folder), Path(folder).relative_to(root)
        inner[:] = sorted(d for d in inner if not d.startswith(".") and (below.parts or d.lower() not in leave_out))
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        prefix = "" if folder == str(root) else os.path.join(below, "")
        for name in (f for f in files if not f.startswith(".")):
            if name.lower().endswith(SUFFIXES):
                images.append(prefix + name)
            else:
                others.append(f"{prefix}{name}{NO_IMAGE}")
    return sorted(images, key=lambda n: n.replace(os.sep, "\0")), sorted(others)


class Files:
    """Image files below `root` by row number. The names are one block of bytes: as objects, ten million would take gigabytes."""

    blocks = None

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = str(root)
        parts = [os.fsencode(n) for n in names]
        self.text, self.ends = b"".join(parts), np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 1 << 16):
            ends = self.ends[start : start + (1 << 16) + 1].tolist()  # numpy's own numbers are slow one by one
            yield from (os.fsdecode(self.text[a:b]) for a, b in itertools.pairwise(ends))

    def name(self, row: int) -> str:
        return os.fsdecode(self.text[self.ends[row] : self.ends[row + 1]])

    def read(self, row: int) -> bytes:
        return read_file(os.path.join(self.root, self.name(row)))

    def stamp(self) -> str | None:
        """Of all files, as of `cache.stamp`."""
        return stamp(os.path.join(self.root, name) for name in self)


def _top(name: str) -> str | None:
    """The first folder of a relative path; None for a file beside the folders."""
    top, below, _ = name.partition(os.sep)
    return top if below else None


class Folder:
    """Images under `path`. Splits: folders train and test (or validation, val) where they exist, in any case; what lies beside a test
    folder is train where no folder has that name. Without a test folder `test_share` is held out for evaluation. Classes: the
    first-level sub-folders, when every image lies in one (labels="auto"); labels=False ignores them, labels=True insists on them.
    image_size: pixels of a view; None decides by the files. decoded: as for `decode`. captions: as the setting of `captions_of`.
    """

    def __init__(
        self,
        path: str,
        image_size: int | None = None,
        labels: bool | str = "auto",
        test_share: float = 0.1,
        cache: str | None = None,
        decoded: bool | str = "auto",
        captions: str | None = "auto",
    ):
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            raise UserError(f"dataset.path={path} is not a folder.")
        self.image_size, self.labels, self.test_share = image_size, labels, test_share
        self.cache, self.decoded, self.captions = cache_dir(cache), decoded, None if captions is None else str(captions)
        try:
            os.listdir(self.path)
            _, inner, files = next(os.walk(self.path), ("", [], []))
        except OSError as e:
            raise UserError(
                f"dataset.path={path} cannot be opened ({e.strerror}): check its permissions, or that its disk is there."
            ) from e
        folders = {n.lower(): self.path / n for n in sorted(inner)}
        tests = [folders[n] for n in TEST_NAMES if n in folders]
        self.train_root = folders.get("train", self.path)
        roots = (self.train_root, *tests)
        self.beside = sorted(n for n in inner + files if not n.startswith(".") and self.path / n not in roots)
        if tests and self.train_root == self.path and not self._find(self.path)[0]:  # a lone test folder is still a set of images
            self.train_root = tests.pop()
        self.classes = self._find_classes()
        self.test_root = first_labelled(tests, lambda t: self._labels(self._find(t)[0])) if tests else None
        self.unread = [t.name for t in tests if t != self.test_root]

    @functools.cache  # noqa: B019 - a source lives as long as its run
    def _find(self, root: Path) -> tuple["Files", list[str]]:
        images, others = find(root, TEST_NAMES if root == self.path else ())
        return Files(root, images), others

    @functools.cached_property
    def _said(self) -> Captions:
        roots = [self.train_root, *([self.test_root] if self.test_root else [])]
        known = ((root, *self._find(root)) for root in roots)
        listed = {r: (files, (o.removesuffix(NO_IMAGE) for o in others if o.endswith(NO_IMAGE))) for r, files, others in known}
        return captions_of(self.path, self.captions, listed, self.unread)

    def _find_classes(self) -> list[str] | None:
        if self.labels is False:
            return None
        tops = {_top(n) for n in self._find(self.train_root)[0]}
        inside = bool(tops) and None not in tops
        names = sorted(t for t in tops if t is not None)
        if self.labels is True and not inside:
            raise UserError(
                f"dataset.labels=true needs every image of {self.train_root} in a class folder: sort them into folders or use labels=auto."
            )
        return names if inside and (len(names) > 1 or self.labels is True) else None

    def load(self, split: str) -> Images:
        """The "train" or "test" images."""
        images = self._load(self.test_root if split == "test" and self.test_root else self.train_root)
        if self.test_root:
            return images
        train, test = held_out(len(images), self.test_share)
        return images.take(train if split == "train" else test)

    @functools.cache  # noqa: B019
    def _load(self, root: Path) -> Images:
        files, others = self._find(root)
        if not len(files):
            raise UserError(f"There are no images in {root}: it should hold files such as .jpg or .png, in class folders or not.")
        said = self._said
        left = [o for o in others if not said.used or os.path.abspath(root / o.removesuffix(NO_IMAGE)) not in said.used]
        if root == self.train_root != self.path:
            beside = (n for n in self.beside if os.path.abspath(self.path / n) not in said.used)
            left += [f"{n}: beside the folder {root.name}, not in it" for n in beside]
        if left:
            log.warning("%d other files or folders in %s were left out: %s", len(left), root, one_line(", ".join(left[:5])))
        pixels, kept, skipped, size = decode(files, self.image_size, self.cache, self.decoded, files.stamp)
        labels = self._labels(files.name(row) for row in kept)
        unknown = sorted({t for n in files if (t := _top(n)) is not None} - set(self.classes)) if self.classes else []
        if unknown:
            log.warning(
                "%d class folders of %s are not in train, their images are unlabelled: %s", len(unknown), root, one_line(", ".join(unknown))
            )
        skipped += left + (said.notes if root == self.train_root else [])
        captions = said.of[root]
        return Images(pixels, labels, self.classes, size, None if captions is None else [captions[row] for row in kept], skipped)

    def _labels(self, names: Iterable[str]) -> torch.Tensor | None:
        if self.classes is None:
            return None
        number: dict[str | None, int] = {c: i for i, c in enumerate(self.classes)}
        return torch.tensor([number.get(_top(n), -1) for n in names], dtype=torch.long)

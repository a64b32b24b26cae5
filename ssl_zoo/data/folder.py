"""A folder of images, with or without class sub-folders and train/test splits."""

import functools
import os
from functools import partial
from pathlib import Path

import torch

from ssl_zoo.data.decode import cache_dir, decode
from ssl_zoo.data.images import Images, held_out
from ssl_zoo.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2", ".ico", ".jfif")
TEST_NAMES = ("test", "val", "valid", "validation")


def image_files(root: Path) -> list[Path]:
    """Every file with an image suffix below `root`, sorted; hidden files and folders are left out, links are followed once."""
    found, seen = [], set()
    for folder, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = sorted(d for d in inner if not d.startswith("."))
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        found += [Path(folder) / f for f in files if not f.startswith(".") and f.lower().endswith(SUFFIXES)]
    return sorted(found)


def read_file(path: Path) -> bytes:
    return path.read_bytes()


class Folder:
    """Images under `path`. Splits: folders train and test (or val, validation) where they exist; otherwise all is train, and
    `test_share` of it is held out for evaluation. Classes: the first-level sub-folders, when every image lies in one
    (labels="auto"); labels=False ignores them, labels=True insists on them. image_size: pixels of a view; None decides by the files.
    """

    def __init__(
        self, path: str, image_size: int | None = None, labels: bool | str = "auto", test_share: float = 0.1, cache: str | None = None
    ):
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            raise UserError(f"dataset.path={path} is not a folder.")
        self.image_size, self.labels, self.test_share, self.cache = image_size, labels, test_share, cache_dir(cache)
        self.train_root = self.path / "train" if (self.path / "train").is_dir() else self.path
        tests = [self.path / n for n in TEST_NAMES if (self.path / n).is_dir()]
        self.test_root = tests[0] if tests and self.train_root != self.path else None
        self.classes = self._find_classes()

    def _find_classes(self) -> list[str] | None:
        if self.labels is False:
            return None
        parts = [f.relative_to(self.train_root).parts for f in image_files(self.train_root)]
        inside = bool(parts) and all(len(p) > 1 for p in parts)
        names = sorted({p[0] for p in parts if len(p) > 1})
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

    @functools.cache  # noqa: B019 - a source lives as long as its run
    def _load(self, root: Path) -> Images:
        files = image_files(root)
        if not files:
            raise UserError(f"There are no images in {root}: it should hold files such as .jpg or .png, in class folders or not.")
        names = [str(f.relative_to(root)) for f in files]
        pixels, kept, skipped, size = decode(names, [partial(read_file, f) for f in files], self.image_size, self.cache)
        labels = self._labels([names[i] for i in kept])
        return Images(pixels, labels, self.classes, size, skipped=skipped)

    def _labels(self, names: list[str]) -> torch.Tensor | None:
        if self.classes is None:
            return None
        number = {c: i for i, c in enumerate(self.classes)}
        return torch.tensor([number.get(Path(n).parts[0], -1) if len(Path(n).parts) > 1 else -1 for n in names])

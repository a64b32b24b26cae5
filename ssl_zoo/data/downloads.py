"""CIFAR-10, CIFAR-100 and STL-10 through torchvision, or from the parquet files of the Hugging Face hub."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchvision.datasets as D

from ssl_zoo.data.decode import cache_dir
from ssl_zoo.data.images import Images
from ssl_zoo.data.parquet import Parquet
from ssl_zoo.errors import UserError

KNOWN = {"CIFAR10": (10, 32), "CIFAR100": (100, 32), "STL10": (10, 96)}  # classes, pixels of a side
COLUMNS = (("image", "img"), ("label", "fine_label"))  # of images and labels on the hub


class Torchvision:
    """A torchvision dataset of equal-sized images by its class name: CIFAR10, CIFAR100 or STL10 (whose train split adds its
    100,000 unlabelled images). path: where the download lies or goes, or a folder of parquet files of it; None = <cache>/downloads.
    decoded: as for `decode`, of parquet files.
    """

    def __init__(
        self, name: str, path: str | None = None, image_size: int = 32, cache: str | None = None, decoded: bool | str = "auto"
    ) -> None:
        if name not in KNOWN:
            raise UserError(f"dataset.name={name} does not work: it takes CIFAR10, CIFAR100 or STL10.")
        self.name, self.image_size = name, image_size
        self.path = Path(path).expanduser() if path else cache_dir(cache) / "downloads"
        self.parquet = self._parquet(cache, decoded) if path else None

    def load(self, split: str) -> Images:
        """The "train" or "test" images."""
        if self.parquet:
            if split == "train" and (side := self.parquet.side()) not in (None, KNOWN[self.name][1]):
                raise self._other(f"images of {side} px, where {KNOWN[self.name][1]} px are needed")
            return self._checked(self.parquet.load(split))
        options = {"split": "train+unlabeled" if split == "train" else "test"} if self.name == "STL10" else {"train": split == "train"}
        try:
            data = getattr(D, self.name)(root=str(self.path), download=True, **options)
        except (OSError, RuntimeError) as e:  # URLError is an OSError
            raise UserError(
                f"{self.name} is not in {self.path} and cannot be downloaded ({str(e).splitlines()[0]}): connect once, set dataset.path "
                f"to a folder that holds torchvision's download, or parquet files of {self.name}."
            ) from e
        array = data.data if self.name == "STL10" else data.data.transpose(0, 3, 1, 2)
        labels = np.asarray(data.labels if self.name == "STL10" else data.targets, dtype=np.int64)
        pixels = torch.from_numpy(np.ascontiguousarray(array))
        if pixels.shape[-1] != self.image_size:
            raise UserError(f"{self.name} has images of {pixels.shape[-1]} px: set dataset.image_size={pixels.shape[-1]}.")
        return Images(pixels, torch.from_numpy(labels), list(data.classes), self.image_size)

    def _parquet(self, cache: str | None, decoded: bool | str) -> Parquet | None:
        """The parquet files in `path` or in folders there, whose columns have several names on the hub; None where there are none, or
        where torchvision's own download lies.
        """
        files = sorted([*self.path.glob("*.parquet"), *self.path.glob("*/*.parquet")])
        if not files or (self.path / getattr(D, self.name).base_folder).is_dir():
            return None
        try:
            names = pq.read_schema(files[0]).names
        except (pa.ArrowException, OSError):  # Parquet says so
            names = []
        image, label = (next((n for n in known if n in names), None) for known in COLUMNS)
        if names and not (image and label):
            raise self._other(f"columns {', '.join(names)}, where {' and '.join(' or '.join(known) for known in COLUMNS)} are needed")
        source = Parquet(str(self.path), self.image_size, image or "image", label or "label", cache=cache, decoded=decoded)
        if not source.tests:
            raise self._other("only one split, where files or folders named train and test are needed")
        return source

    def _other(self, found: str) -> UserError:
        """What to say of parquet files of something else, whose numbers would stand under the name of this data set."""
        return UserError(f"dataset.path={self.path} holds parquet files of {found} for {self.name}: use dataset=parquet for other images.")

    def _checked(self, images: Images) -> Images:
        classes, _ = KNOWN[self.name]
        if images.num_classes != classes:
            raise self._other(f"{images.num_classes} classes, where {classes} are needed")
        return images

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


class Torchvision:
    """A torchvision dataset of equal-sized images by its class name: CIFAR10, CIFAR100 or STL10 (whose train split adds its
    100,000 unlabelled images). path: where the download lies or goes, or a folder of parquet files of it; None = <cache>/downloads.
    """

    def __init__(self, name: str, path: str | None = None, image_size: int = 32, cache: str | None = None):
        if name not in ("CIFAR10", "CIFAR100", "STL10"):
            raise UserError(f"dataset.name={name} does not work: it takes CIFAR10, CIFAR100 or STL10.")
        self.name, self.image_size = name, image_size
        self.path = Path(path).expanduser() if path else cache_dir(cache) / "downloads"
        self.parquet = self._parquet(cache) if path else None

    def load(self, split: str) -> Images:
        """The "train" or "test" images."""
        if self.parquet:
            return self.parquet.load(split)
        options = {"split": "train+unlabeled" if split == "train" else "test"} if self.name == "STL10" else {"train": split == "train"}
        try:
            data = getattr(D, self.name)(root=str(self.path), download=True, **options)
        except (OSError, RuntimeError) as e:  # URLError is an OSError
            raise UserError(
                f"{self.name} is not in {self.path} and cannot be downloaded ({str(e).splitlines()[0]}): connect once, set dataset.path "
                f"to a folder that holds torchvision's download, or use dataset=parquet dataset.path=..."
            ) from e
        array = data.data if self.name == "STL10" else data.data.transpose(0, 3, 1, 2)
        labels = np.asarray(data.labels if self.name == "STL10" else data.targets, dtype=np.int64)
        pixels = torch.from_numpy(np.ascontiguousarray(array))
        if pixels.shape[-1] != self.image_size:
            raise UserError(f"{self.name} has images of {pixels.shape[-1]} px: set dataset.image_size={pixels.shape[-1]}.")
        return Images(pixels, torch.from_numpy(labels), list(data.classes), self.image_size)

    def _parquet(self, cache: str | None) -> Parquet | None:
        """The parquet files below `path`, whose columns have several names on the hub; None where there are none."""
        if (file := next(iter(sorted(self.path.rglob("*.parquet"))), None)) is None:
            return None
        try:
            names = pq.read_schema(file).names
        except (pa.ArrowException, OSError):  # Parquet says so
            names = []
        image, label = (next((n for n in known if n in names), known[0]) for known in (("image", "img"), ("label", "fine_label")))
        return Parquet(str(self.path), self.image_size, image, label, cache=cache)

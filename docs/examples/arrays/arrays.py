"""Images in a NumPy archive, as a data set."""

from pathlib import Path

import numpy as np
import torch

from ssl_zoo.data.images import Images, held_out
from ssl_zoo.errors import UserError


class Arrays:
    """A file .npz with `images` uint8 [N, S, S, 3] and, if there are any, `labels` int [N] with -1 for unlabelled ones.

    image_size: pixels of a view; None for S. test_share is held out for evaluation.
    """

    def __init__(self, path: str, image_size: int | None = None, test_share: float = 0.1) -> None:
        with np.load(Path(path).expanduser(), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        images = arrays.get("images", np.zeros(0))
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
            raise UserError(f"dataset.path={path} needs an array images, uint8 [N, S, S, 3].")
        self.pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        self.labels = torch.from_numpy(arrays["labels"]).long() if "labels" in arrays else None
        self.image_size, self.test_share = image_size or self.pixels.shape[-1], test_share

    def load(self, split: str) -> Images:
        """The "train" or "test" images."""
        classes = None if self.labels is None else [str(i) for i in range(int(self.labels.max()) + 1)]
        train, test = held_out(len(self.pixels), self.test_share)
        return Images(self.pixels, self.labels, classes, self.image_size).take(train if split == "train" else test)

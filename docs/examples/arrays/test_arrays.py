"""What ssl_zoo asks of a data set."""

import numpy as np
import pytest
from arrays import Arrays

from ssl_zoo.errors import UserError


def test_every_image_is_in_one_split_with_its_label(tmp_path):
    labels = np.arange(20) % 3
    np.savez(tmp_path / "a.npz", images=np.broadcast_to(labels[:, None, None, None], (20, 8, 8, 3)).astype(np.uint8), labels=labels)
    source = Arrays(str(tmp_path / "a.npz"), test_share=0.2)
    train, test = source.load("train"), source.load("test")
    assert (len(train), len(test), train.image_size, train.classes) == (16, 4, 8, ["0", "1", "2"])
    for images in (train, test):
        assert images.pixels.shape[1:] == (3, 8, 8)
        assert images.pixels[:, 0, 0, 0].tolist() == images.labels.tolist()


def test_an_archive_of_other_arrays_is_one_sentence(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8)))
    with pytest.raises(UserError, match="needs an array images"):
        Arrays(str(tmp_path / "a.npz"))

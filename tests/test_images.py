"""What is known about the images of a split, and parts of them."""

from dataclasses import replace

import pytest
import torch
from conftest import Bytes, numbered, picture
from PIL import features

from ssl_zoo.data.images import held_out
from ssl_zoo.data.pixels import decode_row
from ssl_zoo.errors import UserError


def test_only_labelled():
    images = numbered(6)
    assert images.only_labelled() is images
    assert numbered(6, labels=False).only_labelled().labels is None
    some = replace(images, labels=torch.tensor([-1, 2, -1, 0, 1, -1]), captions=[[str(i)] for i in range(6)]).only_labelled()
    assert (some.labels.tolist(), some.pixels[:, 0, 0, 0].tolist(), some.captions) == ([2, 0, 1], [1, 3, 4], [["1"], ["3"], ["4"]])


def test_subset_and_statistics():
    images = numbered(100)
    assert len(images.some(7)) == 7
    with pytest.raises(UserError, match=r"data\.subset=101 is more than the 100"):
        images.some(101)
    mean, std = images.statistics()
    assert mean[0] == pytest.approx(49.5 / 255, rel=1e-4)
    assert len(std) == 3
    train, test = held_out(100, 0.2)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(100))


def test_images_are_held_out_of_the_labelled_ones_alike_for_every_seed():
    images = replace(numbered(20), labels=torch.tensor([-1, 0] * 10))
    rest, apart = images.without(4)
    assert (len(rest), len(apart)) == (16, 4)
    assert bool((apart.labels == 0).all())
    seen = [*rest.pixels[:, 0, 0, 0].tolist(), *apart.pixels[:, 0, 0, 0].tolist()]
    assert sorted(seen) == list(range(20))
    torch.manual_seed(1)
    assert torch.equal(images.without(4)[1].pixels, apart.pixels)
    assert len(numbered(20, labels=False).without(4)[1]) == 4
    with pytest.raises(UserError, match=r"data\.held_out=10 leaves none of the 10 training images with a label"):
        images.without(10)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow has no AVIF here")
def test_whatever_a_plugin_raises_makes_a_file_unreadable():
    whole = picture((200, 30, 90), size=(64, 64), form="AVIF")
    kinds = set()
    for cut in range(len(whole) // 2, len(whole), 7):
        for data in (whole[:cut], whole[:cut] + b"\xff" * (len(whole) - cut)):
            kinds.add(type(decode_row(Bytes(data), 0, 16)))
    assert str in kinds

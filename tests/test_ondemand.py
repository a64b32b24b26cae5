"""Images that are decoded when they are asked for, beside the array of the same images."""

import pickle

import pytest
import torch
from conftest import Bytes, picture, write

from ssl_zoo.data import ondemand
from ssl_zoo.data.encoded import sample
from ssl_zoo.data.folder import Files, Folder
from ssl_zoo.data.images import Images
from ssl_zoo.data.ondemand import OnDemand
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.features import extract, raw_pixels


def pictures(n, bad=()):
    return Bytes(*[None if i in bad else picture((i, 2 * i, 0), size=(12, 8)) for i in range(n)])


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        write(tmp_path / "in", f"{'ab'[i % 2]}/{i:02}.png", picture((20 * i, 0, 0), size=(20, 16)))
    return lambda decoded, **options: Folder(str(tmp_path / "in"), cache=str(tmp_path / "cache"), decoded=decoded, **options)


def test_it_stands_where_the_array_stands(folder):
    whole, lazy = (folder(decoded).load("train") for decoded in (True, False))
    array, images = whole.pixels, lazy.pixels
    assert isinstance(images, OnDemand)
    assert (images.shape, images.numel(), len(images)) == (array.shape, array.numel(), len(array))
    for index in (slice(None), slice(2, 7), slice(-3, None), torch.tensor([4, 0, 4]), torch.tensor([], dtype=torch.long)):
        assert torch.equal(images[index], array[index])
    assert torch.equal(images[3], array[3])
    assert torch.equal(images[-1], array[-1])
    assert [len(part) for part in images.split(4)] == [len(part) for part in array.split(4)]
    assert torch.equal(torch.cat([*images.split(4)]), array)
    some = torch.tensor([7, 1, 2])
    assert torch.equal(lazy.take(some).take(torch.tensor([2, 0])).pixels[:], array[torch.tensor([2, 7])])
    assert torch.equal(pickle.loads(pickle.dumps(lazy.take(some).pixels))[:], array[some])
    assert (lazy.labels.tolist(), lazy.classes, lazy.image_size) == (whole.labels.tolist(), whole.classes, whole.image_size)
    assert lazy.statistics() == whole.statistics()


def test_features_are_those_of_the_array(folder):
    whole, lazy = (folder(decoded, image_size=8).load("train").pixels for decoded in (True, False))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    args = (8, (0.5,) * 3, (0.25,) * 3)
    assert torch.equal(extract(net, whole, *args, "cpu", batch_size=4), extract(net, lazy, *args, "cpu", batch_size=4))
    assert torch.equal(raw_pixels(whole, *args), raw_pixels(lazy, *args))


def test_opening_reads_a_sample_only(tmp_path, monkeypatch):
    for i in range(200):
        write(tmp_path / "in", f"{i}.png", picture((i, 0, 0), size=(16, 16)))
    read, seen = Files.read, []
    monkeypatch.setattr(Files, "read", lambda self, row: seen.append(row) or read(self, row))
    Folder(str(tmp_path / "in"), cache=str(tmp_path / "cache"), decoded=False).load("train")
    assert len(seen) == 64
    assert not (tmp_path / "cache").exists()


def test_the_next_readable_image_takes_the_place():
    images = OnDemand(pictures(10, bad=(2, 3, 9)), 8)
    found = images.collect(images.__getitems__([2, 9, 5]))
    assert found.shown.tolist() == [4, 0, 5]
    assert found.pixels[:, 0, 0, 0].tolist() == [4, 0, 5]
    assert images.skipped == [f"picture {i}: the disk is broken" for i in (2, 3, 9)]
    part = images.take(torch.tensor([8, 9, 1]))  # never an image that was not taken
    assert part.collect(part.__getitems__([1])).shown.tolist() == [2]
    assert part.skipped is images.skipped
    assert len(images.skipped) == 3


def test_many_unreadable_files_are_warned_of_with_restraint(caplog):
    images = OnDemand(pictures(251, bad=range(1, 250, 2)), 8)
    images[:]
    images[:]
    assert len(images.skipped) == 125
    assert [r.message for r in caplog.records if "takes its place" in r.message] == [
        f"skipped {line}; the next image takes its place" for line in images.skipped[:20]
    ]
    assert [r.message for r in caplog.records][20:] == ["100 files could not be read so far"]


def test_where_nothing_can_be_read_it_ends(monkeypatch):
    monkeypatch.setattr(ondemand, "IN_A_ROW", 5)
    images = OnDemand(pictures(20, bad=range(3, 8)), 8)
    assert images[torch.tensor([4])][0, 0, 0, 0] == 8
    with pytest.raises(UserError, match=r"None of 5 files in a row .*the first: picture 3: the disk is broken"):
        images[torch.tensor([3])]
    with pytest.raises(UserError, match="None of 2 files"):
        images.take(torch.tensor([3, 4]))[:]


def test_images_that_show_another_are_not_judged():
    pixels = OnDemand(pictures(6, bad=(1,)), 8)
    images = Images(pixels, torch.tensor([0, 1, 0, -1, 1, 0]), ["a", "b"], 8, skipped=pixels.skipped)
    known = images.only_labelled()
    assert (len(known), known.labelled.tolist()) == (5, [0, 1, 2, 3, 4])
    known.pixels[:]
    assert known.labelled.tolist() == [0, 2, 3, 4]
    assert images.labelled.tolist() == [0, 2, 4, 5]
    assert len(images.only_labelled()) == 5  # the same on every rank, whichever of them met the file


def test_what_another_rank_could_not_read_is_not_judged_here(monkeypatch):
    lazy = Images(OnDemand(pictures(9), 8), torch.zeros(9, dtype=torch.long), ["a"], 8)
    monkeypatch.setattr("ssl_zoo.evaluation.features.union", lambda items: [*items, (4, "said by another rank")])
    net = torch.nn.Flatten()
    net.num_features = 192
    extract(net, lazy.pixels, 8, (0.5,) * 3, (0.5,) * 3, "cpu")
    assert lazy.labelled.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


def test_a_sample_of_blocks_opens_few_of_them():
    assert sample(100, None, 5).tolist() == [0, 20, 40, 60, 80]
    assert sample(3, None, 5).tolist() == [0, 1, 2]
    rows = sample(1000, [10] * 100, 64)
    assert len(rows) == 64
    assert len({int(r) // 10 for r in rows}) == 16
    assert torch.equal(rows.sort().values, rows)
    assert len(sample(40, [1] * 40, 64)) == 16
    assert sample(6, [6], 3).tolist() == [0, 2, 4]

"""Sources and decoding, on images that people really have."""

import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Bytes, needs, picture, write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssl_zoo.build import build_data
from ssl_zoo.config import compose
from ssl_zoo.data import pixels as D
from ssl_zoo.data.downloads import Torchvision
from ssl_zoo.data.folder import Files, Folder
from ssl_zoo.data.loader import Loader
from ssl_zoo.data.ondemand import OnDemand
from ssl_zoo.data.parquet import Parquet, Rows
from ssl_zoo.data.shapes import Shapes
from ssl_zoo.errors import UserError


# ---------------------------------------------------------------------------------------------- decoding
def test_every_kind_of_image_becomes_upright_rgb():
    for mode, form in (("RGB", "JPEG"), ("L", "PNG"), ("CMYK", "JPEG"), ("P", "GIF"), ("1", "PNG"), ("RGBA", "PNG"), ("LA", "PNG")):
        image = D.to_rgb(picture(mode=mode, form=form))
        assert (image.mode, image.size) == ("RGB", (40, 30)), mode


def test_transparency_is_laid_on_white_and_16_bits_are_scaled():
    out = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(out, "PNG")
    assert D.to_rgb(out.getvalue()).getpixel((0, 0)) == (255, 255, 255)
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(out, "PNG")
    assert D.to_rgb(out.getvalue()).getpixel((0, 0)) == (128, 128, 128)


def encoded(array, kind):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def test_the_range_of_deep_images_is_that_of_their_mode():
    half = np.full((4, 4), 0.5, np.float32)
    half[0, 0] = np.nan
    found = np.asarray(D.to_rgb(encoded(half, "TIFF")))
    assert (found[1, 1] == 128).all()
    assert (found[0, 0] == 0).all()
    assert (np.asarray(D.to_rgb(encoded(np.full((4, 4), 120.0, np.float32), "TIFF"))) == 120).all()
    assert np.asarray(D.to_rgb(encoded(np.full((4, 4), 120, np.uint16), "PNG"))).max() <= 1  # a dark frame stays dark


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    assert D.to_rgb(out.getvalue()).size == (20, 40)


@pytest.mark.parametrize("turned", [False, True])
def test_large_photographs_are_decoded_small(turned):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:1200, :1600] / 100
    detail = 60 * np.stack([np.sin(x * 3 + y), np.sin(y * 7), np.sin(x * y)], -1) + rng.normal(0, 12, (1200, 1600, 3)) + 120
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    out = io.BytesIO()
    Image.fromarray(detail.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90, exif=exif)
    small, whole = D.to_rgb(out.getvalue(), 128), D.to_rgb(out.getvalue())
    assert (small.size, whole.size) == (((300, 400), (1200, 1600)) if turned else ((400, 300), (1600, 1200)))
    off = np.abs(D.fit(small, 128).astype(int) - D.fit(whole, 128))
    assert off.mean() < 1
    assert off.max() < 16
    assert D.to_rgb(out.getvalue(), 601).size == whole.size  # not where it would be enlarged again


def test_the_first_frame_of_an_animation():
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), c) for c in ((250, 0, 0), (0, 250, 0))]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert D.to_rgb(out.getvalue()).getpixel((0, 0))[0] > 200


def test_canvas_is_the_centre():
    image = Image.new("RGB", (60, 20), (0, 0, 0))
    image.paste((255, 255, 255), (20, 0, 40, 20))
    assert D.fit(image, 20).min() == 255


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 5))
def test_wild_bytes_are_an_image_or_a_reason(data, cut):
    whole = picture()
    for wild in (data, whole[: len(whole) // (cut + 1)], whole[:20] + data + whole[20:]):
        result = D.decode_row(Bytes(wild), 0, 16)
        assert (isinstance(result, np.ndarray) and result.shape == (3, 16, 16)) or (
            isinstance(result, str) and result and "\n" not in result
        )


# ---------------------------------------------------------------------------------------------- folder
def test_class_folders(tmp_path):
    for i in range(10):
        write(tmp_path, f"{'cat' if i % 2 else 'dog'}/{i}.png", picture((20 * i, 0, 0)))
    source = Folder(str(tmp_path))
    train, test = source.load("train"), source.load("test")
    assert source.classes == ["cat", "dog"]
    assert (len(train), len(test)) == (9, 1)
    assert train.image_size == 30
    reds = torch.cat([train.pixels, test.pixels])[:, 0, 0, 0]
    assert sorted(reds.tolist()) == [20 * i for i in range(10)]
    assert all(int(label) == (0 if r // 20 % 2 else 1) for r, label in zip(train.pixels[:, 0, 0, 0].tolist(), train.labels, strict=True))
    assert Folder(str(tmp_path), labels=False).load("train").labels is None


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_split_folders(tmp_path, test_name):
    for split, count in (("train", 4), (test_name, 2)):
        for i in range(count):
            write(tmp_path / split, f"c{i % 2}/{i}.jpg", picture(form="JPEG"))
    source = Folder(str(tmp_path))
    assert (len(source.load("train")), len(source.load("test"))) == (4, 2)
    assert source.load("test").labels.tolist() == [0, 1]


def test_unlabelled_nested_and_hidden_files(tmp_path):
    write(tmp_path, "2020/05/a.JPG", picture(form="JPEG"))
    write(tmp_path, "b.webp", picture(form="WEBP"))
    write(tmp_path, ".hidden/c.png", picture())
    write(tmp_path, "notes.txt", b"not an image")
    source = Folder(str(tmp_path), test_share=0.5)
    assert source.classes is None
    assert len(source.load("train")) + len(source.load("test")) == 2
    with pytest.raises(UserError, match="labels=true needs"):
        Folder(str(tmp_path), labels=True)


def test_one_sub_folder_is_not_a_class(tmp_path):
    for i in range(3):
        write(tmp_path, f"images/{i}.png", picture())
    assert Folder(str(tmp_path)).classes is None


def test_bad_files_are_counted_and_named(tmp_path, caplog):
    for i in range(4):
        write(tmp_path, f"{i}.png", picture())
    write(tmp_path, "empty.png", b"")
    write(tmp_path, "broken.jpg", b"\xff\xd8\xff nothing")
    write(tmp_path, "cut.png", picture(size=(300, 300))[:200])
    (tmp_path / "gone.png").symlink_to(tmp_path / "missing.png")
    source = Folder(str(tmp_path))
    train = source.load("train")
    assert len(train) + len(source.load("test")) == 4
    assert sorted(s.split(":")[0] for s in train.skipped) == ["broken.jpg", "cut.png", "empty.png", "gone.png"]
    assert "4 of 8 files could not be read" in caplog.text


def test_files_that_are_no_images_are_counted_and_named(tmp_path, caplog):
    write(tmp_path, "a.png", picture())
    write(tmp_path, "deep/b.png", picture())
    for name in ("notes.txt", "deep/table.csv", ".hidden.txt", ".git/config"):
        write(tmp_path, name, b"not an image")
    assert Folder(str(tmp_path)).load("train").skipped == ["deep/table.csv: not an image file name", "notes.txt: not an image file name"]
    assert f"2 other files or folders in {tmp_path} were left out: deep/table.csv" in caplog.text


def test_what_lies_beside_train_is_named(tmp_path):
    for name in ("train/a/1.png", "train/b/2.png", "test/a/3.png", "car/4.png", "labels.csv"):
        write(tmp_path, name, picture())
    source = Folder(str(tmp_path))
    assert source.load("train").skipped == [f"{n}: beside the folder train, not in it" for n in ("car", "labels.csv")]
    assert source.load("test").skipped == []


def test_split_folders_in_any_case(tmp_path):
    for name in ("Train/a/1.png", "Train/b/2.png", "TEST/a/3.png", "Val/a/4.png", "Val/b/5.png"):
        write(tmp_path, name, picture())
    source = Folder(str(tmp_path))
    assert source.classes == ["a", "b"]
    assert (len(source.load("train")), len(source.load("test"))) == (2, 1)


@pytest.mark.parametrize("test_name", ["test", "Val"])
def test_a_test_folder_without_a_train_folder(tmp_path, test_name):
    for name in ("cat/1.png", "dog/2.png", "dog/3.png", f"{test_name}/dog/4.png"):
        write(tmp_path, name, picture((40 * int(name[-5]), 0, 0)))
    source = Folder(str(tmp_path))
    train, test = source.load("train"), source.load("test")
    assert source.classes == ["cat", "dog"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 1], [1])
    assert test.pixels[0, 0, 0, 0] == 160


def test_a_lone_test_folder_is_a_set_of_images(tmp_path):
    for i in range(10):
        write(tmp_path, f"test/{'cat' if i % 2 else 'dog'}/{i}.png", picture())
    source = Folder(str(tmp_path))
    assert source.classes == ["cat", "dog"]
    assert (len(source.load("train")), len(source.load("test"))) == (9, 1)


def test_class_folders_that_train_lacks_are_named(tmp_path, caplog):
    for name in ("train/a/1.png", "train/b/2.png", "test/b/3.png", "test/zebra/4.png"):
        write(tmp_path, name, picture())
    assert Folder(str(tmp_path)).load("test").labels.tolist() == [1, -1]
    assert "are not in train, their images are unlabelled: zebra" in caplog.text


def test_unlabelled_test_images_give_way_to_labelled_validation_images(tmp_path):
    for name in ("train/a/1.png", "train/b/2.png", "test/images/3.png", "val/b/4.png", "val/a/5.png"):
        write(tmp_path, "folder/" + name, picture())
    assert Folder(str(tmp_path / "folder")).load("test").labels.tolist() == [0, 1]
    write_parquet(tmp_path / "p" / "train.parquet", 4, label=[0, 1, 0, 1])
    write_parquet(tmp_path / "p" / "test.parquet", 3, label=[-1, -1, -1])
    assert Parquet(str(tmp_path / "p")).load("test").labels.tolist() == [-1] * 3
    write_parquet(tmp_path / "p" / "validation.parquet", 2, label=[1, 0])
    assert Parquet(str(tmp_path / "p")).load("test").labels.tolist() == [1, 0]
    write_parquet(tmp_path / "p" / "test.parquet", 3, label=[-1, 0, -1])
    assert Parquet(str(tmp_path / "p")).load("test").labels.tolist() == [-1, 0, -1]


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        Folder(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="There are no images"):
        Folder(str(tmp_path)).load("train")
    write(tmp_path, "a.png", b"")
    with pytest.raises(UserError, match="None of the 1 files could be read"):
        Folder(str(tmp_path)).load("train")


def test_large_photographs_get_a_canvas(tmp_path):
    write(tmp_path, "a.jpg", picture(size=(900, 700), form="JPEG"))
    write(tmp_path, "b.jpg", picture(size=(600, 900), form="JPEG"))
    images = Folder(str(tmp_path)).load("train")
    assert (images.image_size, images.pixels.shape[-1]) == (224, 256)
    images = Folder(str(tmp_path), image_size=96).load("train")
    assert (images.image_size, images.pixels.shape[-1]) == (96, 96)


# ---------------------------------------------------------------------------------------------- parquet
def write_parquet(file, rows, names=None, **columns):
    image = [{"bytes": picture((10 * i, 0, 0), size=(16, 16)), "path": None} for i in range(rows)]
    table = pa.table({"image": image, **({"label": [i % 2 for i in range(rows)]} | columns)})
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=3)


def test_hugging_face_layout(tmp_path):
    for i in range(2):
        write_parquet(tmp_path / "data" / f"train-0000{i}-of-00002.parquet", 8, ["cat", "dog"], captions=[["a cat", "one"]] * 8)
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", 5, ["cat", "dog"])
    source = Parquet(str(tmp_path))
    train, test = source.load("train"), source.load("test")
    assert (len(train), len(test)) == (16, 5)
    assert train.classes == ["cat", "dog"]
    assert train.labels.tolist() == [0, 1] * 8
    assert train.pixels[:, 0, 0, 0].tolist() == [10 * i for i in range(8)] * 2
    assert train.captions[3] == ["a cat", "one"]
    assert test.captions is None


def test_an_epoch_opens_each_row_group_once(tmp_path, monkeypatch):
    image = [{"bytes": picture((i, 0, 0), size=(8, 8)), "path": None} for i in range(240)]
    pq.write_table(pa.table({"image": image}), tmp_path / "train.parquet", row_group_size=3)
    opened, read = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, group, **k: opened.append(group) or read(self, group, **k))
    images = Parquet(str(tmp_path), image_size=8, test_share=0.1, decoded=False).load("train")
    loader = Loader(images, 8, 0, workers=2, worker_kind="thread")
    for epoch in range(2):
        opened.clear()
        loader.set_epoch(epoch)
        assert len({int(i) for b in loader for i in b["index"]}) == 216
        assert len(opened) <= 80 + 32  # of 80, of which the last epoch may have left some in memory


def test_one_file_holds_its_test_images_out(tmp_path):
    write_parquet(tmp_path / "some.parquet", 20)
    source = Parquet(str(tmp_path / "some.parquet"), test_share=0.25)
    train, test = source.load("train"), source.load("test")
    assert (len(train), len(test)) == (15, 5)
    assert train.classes == ["0", "1"]
    assert not set(train.pixels[:, 0, 0, 0].tolist()) & set(test.pixels[:, 0, 0, 0].tolist())


def test_text_labels_nulls_and_paths(tmp_path):
    write(tmp_path, "x.png", picture((70, 0, 0), size=(16, 16)))
    image = [{"bytes": picture(size=(16, 16)), "path": None}, {"bytes": None, "path": "x.png"}, None, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"image": image, "label": ["b", None, "a", "a"]}), tmp_path / "train.parquet")
    source = Parquet(str(tmp_path), test_share=0.4)
    images = source._load((tmp_path / "train.parquet",))
    assert images.labels.tolist() == [1, -1]
    assert int(images.pixels[1, 0, 0, 0]) == 70
    assert len(images.skipped) == 2


def labels_of(folder, train, test=None, names=None, split="test"):
    write_parquet(folder / "train.parquet", len(train), names, label=train)
    if test is not None:
        write_parquet(folder / "test.parquet", len(test), names, label=test)
    images = Parquet(str(folder)).load(split)
    return images.labels.tolist(), images.classes


def test_text_labels_of_test_are_numbered_as_in_train(tmp_path, caplog):
    found = labels_of(tmp_path, ["owl", "ant", "cat"], ["cat", "zebra", None, "owl", "zebra"])
    assert found == ([1, -1, -1, 2, -1], ["ant", "cat", "owl"])
    assert "2 labels are not among the classes of train and count as unlabelled: zebra" in caplog.text


@pytest.mark.parametrize(
    ("train", "test", "expected", "classes"),
    [
        ([2, 0, 1], [1, 2], [1, 2], ["0", "1", "2"]),
        ([2050000, 1001, 2**40, -7], [1001, 2**40, 5], [1, 3, -1], ["-7", "1001", "2050000", str(2**40)]),
        ([3.0, None, 1.0], [3.0, float("nan"), 1.0], [1, -1, 0], ["1", "3"]),
        ([True, False], [False, None], [0, -1], ["0", "1"]),
        ([1, 0, -1, None], [-1, 1, None], [-1, 1, -1], ["0", "1"]),
        ([None, None], [None, -1], [-1, -1], []),
    ],
)
def test_number_labels_in_the_wild(tmp_path, train, test, expected, classes):
    assert labels_of(tmp_path, train, test) == (expected, classes)


def test_class_names_hold_the_labels_together(tmp_path):
    assert labels_of(tmp_path, [2, 0], [1, -1, 2], ["ant", "cat", "owl"]) == ([1, -1, 2], ["ant", "cat", "owl"])
    for bad in (3, -2):
        with pytest.raises(UserError, match=rf"holds the label {bad}, but the file names 3 classes \(0 to 2\): .*dataset\.label_column"):
            labels_of(tmp_path, [2, 0], [bad], ["ant", "cat", "owl"])


def test_files_that_name_their_classes_differently_are_refused(tmp_path):
    labels_of(tmp_path, [0, 1], [0], ["ant", "cat"])
    other = pq.read_table(tmp_path / "test.parquet")
    info = {"info": {"features": {"label": {"names": ["cat", "ant"]}}}}
    pq.write_table(other.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "test.parquet")
    with pytest.raises(UserError, match="names its classes differently"):
        Parquet(str(tmp_path)).load("test")


@pytest.mark.parametrize("bad", [[1, 2], {"a": 1}, 0.5, float("inf"), b"x"])
def test_labels_that_are_no_classes_are_said(tmp_path, bad):
    with pytest.raises(UserError, match=r"'label' holds .*, which is no class label .*dataset\.label_column"):
        labels_of(tmp_path, [bad, None], split="train")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("cifar10-train.parquet", "cifar10-test.parquet"),
        ("data_train_001.parquet", "data_test_001.parquet"),
        ("Train/0000.parquet", "Test/0000.parquet"),
        ("default/train/part/0.parquet", "default/Validation/part/0.parquet"),
        ("test-drive/train2017.parquet", "test-drive/val2017.parquet"),
        ("latest.parquet", "some.test.parquet"),
    ],
)
def test_the_split_is_a_word_of_the_path(tmp_path, train, test):
    write_parquet(tmp_path / train, 4)
    write_parquet(tmp_path / test, 3)
    source = Parquet(str(tmp_path))
    assert (len(source.load("train")), len(source.load("test"))) == (4, 3)


def test_encoded_rows_travel_to_another_process(tmp_path):
    write_parquet(tmp_path / "a.parquet", 8)
    write(tmp_path, "x/ü.png", picture())
    rows, files = Rows((tmp_path / "a.parquet",), "image"), Files(tmp_path, ["x/ü.png", "gone.png"])
    whole = [rows.read(i) for i in range(8)]
    for source in (rows, pickle.loads(pickle.dumps(rows))):
        assert [source.read(i) for i in range(8)] == whole
        assert (source.blocks, source.name(7)) == ([3, 3, 2], "row 7")
    for source in (files, pickle.loads(pickle.dumps(files))):
        assert (len(source), source.name(0), source.name(1), source.blocks) == (2, "x/ü.png", "gone.png", None)
        assert source.read(0) == picture()
        with pytest.raises(OSError, match="gone"):
            source.read(1)


def test_bad_parquet_is_said(tmp_path):
    with pytest.raises(UserError, match=r"no \.parquet files"):
        Parquet(str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        Parquet(str(tmp_path)).load("train")
    pq.write_table(pa.table({"img": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"has no column 'image' but img: set dataset\.image_column"):
        Parquet(str(tmp_path)).load("train")


def test_real_cifar10_parquet():
    source = Parquet(str(needs("cifar10")))
    test = source.load("test")
    assert test.pixels.shape == (10000, 3, 32, 32)
    assert test.classes[:2] == ["airplane", "automobile"]
    assert test.labels.bincount().tolist() == [1000] * 10


def test_held_out_images_take_the_place_of_the_test_split():
    words = ["dataset.train_size=50", "dataset.test_size=7"]
    whole = build_data(compose("train", words))
    data = build_data(compose("train", [*words, "data.held_out=10", "data.subset=30"]))
    assert (len(data.train), len(data.test)) == (30, 10)
    them = {x.numpy().tobytes() for x in data.test.pixels}
    assert them <= {x.numpy().tobytes() for x in whole.train.pixels}
    assert not them & {x.numpy().tobytes() for x in data.train.pixels}


def hub(folder, classes, image, label, side=32):
    """A data set of one training image for each class and two test images, in columns as the hub calls them."""
    for split, rows in (("train", classes), ("test", 2)):
        pictures = [{"bytes": picture((i, 0, 0), size=(side, side)), "path": None} for i in range(rows)]
        table = pa.table({image: pictures, label: list(range(rows))})
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize(("name", "classes", "image", "label"), [("CIFAR10", 10, "img", "label"), ("CIFAR100", 100, "image", "fine_label")])
def test_cifar_is_read_from_parquet_files(tmp_path, name, classes, image, label):
    hub(tmp_path / "data" / "plain_text", classes, image, label)
    source = Torchvision(name, str(tmp_path / "data"), cache=str(tmp_path / "cache"))
    assert [source.load(s).pixels.shape for s in ("train", "test")] == [(classes, 3, 32, 32), (2, 3, 32, 32)]
    assert source.load("train").labels.tolist() == list(range(classes))
    late = Torchvision(name, str(tmp_path / "data"), cache=str(tmp_path / "cache"), decoded=False)
    assert isinstance(late.load("train").pixels, OnDemand)
    other = {"CIFAR10": "CIFAR100", "CIFAR100": "CIFAR10"}[name]
    with pytest.raises(UserError, match=f"files of {classes} classes, where .* are needed for {other}: use dataset=parquet"):
        Torchvision(other, str(tmp_path / "data"), cache=str(tmp_path / "cache")).load("train")
    (tmp_path / "data/plain_text/test-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        Torchvision(name, str(tmp_path / "data"), cache=str(tmp_path / "cache")).load("test")


@pytest.mark.parametrize("missing", ["train", "test"])
def test_half_of_cifar_is_not_split_anew(tmp_path, missing):
    hub(tmp_path, 10, "img", "label")
    (tmp_path / f"{missing}-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match="only one split, where files or folders named train and test are needed for CIFAR10"):
        Torchvision("CIFAR10", str(tmp_path))


def test_other_columns_than_those_of_cifar_are_named(tmp_path):
    hub(tmp_path, 10, "pixels", "labels")
    with pytest.raises(UserError, match="columns pixels, labels, where image or img and label or fine_label are needed"):
        Torchvision("CIFAR10", str(tmp_path))


def test_digits_are_not_taken_for_cifar(tmp_path):
    hub(tmp_path, 10, "image", "label", side=28)
    with pytest.raises(UserError, match="files of images of 28 px, where 32 px are needed for CIFAR10: use dataset=parquet"):
        Torchvision("CIFAR10", str(tmp_path), cache=str(tmp_path / "cache")).load("train")
    with pytest.raises(UserError, match="where 96 px are needed for STL10"):
        Torchvision("STL10", str(tmp_path), 28, cache=str(tmp_path / "cache")).load("train")


def test_parquet_files_beside_a_download_are_another_data_set(tmp_path):
    hub(tmp_path / "flowers", 10, "image", "label")
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert Torchvision("CIFAR10", str(tmp_path)).parquet is None


def test_downloads_say_what_to_do_offline(tmp_path, monkeypatch):
    def refuse(*a, **k):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", refuse)
    with pytest.raises(UserError, match="connect once"):
        Torchvision("CIFAR10", path=str(tmp_path)).load("train")
    with pytest.raises(UserError, match="takes CIFAR10"):
        Torchvision("MNIST")


# ---------------------------------------------------------------------------------------------- shapes
def test_shapes_are_deterministic_disjoint_and_labelled():
    source = Shapes(train_size=300, test_size=100)
    train, test = source.load("train"), source.load("test")
    assert torch.equal(train.pixels, Shapes(train_size=300).load("train").pixels)
    assert torch.equal(train.pixels[:50], Shapes(train_size=50).load("train").pixels)
    assert not torch.equal(train.pixels, Shapes(train_size=300, seed=1).load("train").pixels)
    both = torch.cat([train.pixels, test.pixels]).flatten(1)
    assert len(both.unique(dim=0)) == 400
    assert set(train.labels.tolist()) == set(range(len(train.classes)))
    for label, captions in zip(train.labels.tolist(), train.captions, strict=True):
        assert train.classes[label] in captions[0]


@pytest.mark.parametrize("size", [16, 32, 64, 224])
def test_shapes_come_in_any_size(size):
    images = Shapes(image_size=size, train_size=3, test_size=2).load("train")
    assert images.pixels.shape == (3, 3, size, size)
    assert images.pixels.dtype == torch.uint8


@pytest.mark.parametrize("bad", [{"image_size": 8}, {"train_size": 0}, {"clutter": 2.0}, {"min_size": 0.9, "max_size": 0.3}])
def test_shapes_refuse_bad_fields(bad):
    with pytest.raises(UserError, match="shapes"):
        Shapes(**bad)

"""`ssl-zoo shard`, and training on what it writes."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_shards import picture, write_chunks

from ssl_zoo.data import pack as P
from ssl_zoo.data.folder import Folder
from ssl_zoo.data.images import Images
from ssl_zoo.data.loader import Loader
from ssl_zoo.data.parquet import Parquet
from ssl_zoo.data.shapes import Shapes
from ssl_zoo.data.shards import ShardSource
from ssl_zoo.errors import UserError

TINY = ["method.hidden_dim=64", "batch_size=16", "epochs=2", "trainer=cpu", "evaluation.linear.max_iter=5", "evaluation.linear.l2=[0.01]"]


@pytest.fixture(params=["tar", "litdata"])
def form(request):
    if request.param == "litdata":
        pytest.importorskip("litdata")
    return request.param


def pack(source, out, form, size=None, step=lambda: None, largest=None):
    largest = largest or {"tar": 20_000, "litdata": 1_500}[form]  # about ten small images
    return P.pack({s: source.load(s) for s in ("train", "test")}, out, form, largest, size, step)


def write_folder(root, names, size=(16, 16), form="PNG"):
    for i, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(i, size, form))
    return root


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def same(a: Images, b: Images) -> None:
    assert torch.equal(a.pixels[:], b.pixels[:])
    assert (a.labels is None) == (b.labels is None)
    assert a.labels is None or torch.equal(a.labels, b.labels)
    assert (a.classes, a.captions, a.image_size) == (b.classes, b.captions, b.image_size)


# ---------------------------------------------------------------------------------------------- round trips
@pytest.mark.parametrize(
    "names",
    [
        [f"{'cat' if i % 2 else 'dog'}/{i}.png" for i in range(50)],
        [f"{i}.png" for i in range(50)],
        [f"{'val' if i % 5 == 0 else 'train'}/c{i % 3}/{i}.png" for i in range(50)],
        [f"train/c{i % 3}/{i}.png" if i % 5 else f"test/{i}.png" for i in range(50)],
    ],
    ids=["classes", "no classes", "splits", "unlabelled test"],
)
def test_a_folder_comes_back(tmp_path, form, names):
    root = str(write_folder(tmp_path / "in", names))
    packed = pack(Folder(root, decoded=False), tmp_path / "out", form)
    assert (packed.images, packed.left) == (50, [])
    assert packed.shards > 2
    for split in ("train", "test"):
        same(ShardSource(str(tmp_path / "out")).load(split), Folder(root, decoded=True).load(split))


def test_parquet_with_captions_comes_back(tmp_path, form):
    image = [{"bytes": picture(i), "path": None} for i in range(30)]
    captions = [["a cat", "one \u2013 \U0001f431"] if i % 3 else [] for i in range(30)]
    table = pa.table({"image": image, "label": [(i + 2) % 3 - 1 for i in range(30)], "captions": captions})
    pq.write_table(table, tmp_path / "train.parquet")
    pq.write_table(table.slice(20), tmp_path / "test.parquet")
    pack(Parquet(str(tmp_path), decoded=False), tmp_path / "out", form)
    for split in ("train", "test"):
        same(ShardSource(str(tmp_path / "out")).load(split), Parquet(str(tmp_path), decoded=True).load(split))
    if form == "tar":
        with tarfile.open(tmp_path / "out" / "test" / "00000.tar") as tar:
            assert tar.getnames()[:4] == ["00000000.png", "00000000.cls", "00000000.json", "00000001.png"]
            assert "00000002.cls" not in tar.getnames()  # unlabelled


def test_pixels_are_written_as_png(tmp_path, form):
    source = Shapes(train_size=60, test_size=20)
    pack(source, tmp_path / "out", form)
    for split in ("train", "test"):
        same(ShardSource(str(tmp_path / "out")).load(split), source.load(split))


def test_shards_can_be_packed_again(tmp_path):
    source = Shapes(train_size=60, test_size=20)
    pack(source, tmp_path / "tar", "tar")
    chunks = write_chunks(tmp_path / "chunks" / "train", [{"image": picture(i), "label": i} for i in range(20)])
    pack(ShardSource(str(chunks.parent), decoded=False), tmp_path / "again", "tar")
    assert len(ShardSource(str(tmp_path / "again")).load("train")) == 18
    pack(ShardSource(str(tmp_path / "tar"), decoded=False), tmp_path / "same", "tar")
    assert contents(tmp_path / "same") == contents(tmp_path / "tar")


def test_the_same_images_give_the_same_bytes(tmp_path, form, monkeypatch):
    root = write_folder(tmp_path / "in", [f"c{i % 2}/{i}.jpg" for i in range(60)], (40, 30), "JPEG")
    pack(Folder(str(root), decoded=False), tmp_path / "a", form, size=24)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(P, "AT_ONCE", 7)
    pack(Folder(str(root), decoded=False), tmp_path / "b", form, size=24)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_litdata_reads_what_is_written(tmp_path):
    streaming = pytest.importorskip("litdata.streaming.dataset")
    root = write_folder(tmp_path / "in", [f"c{i % 2}/{i:02}.png" for i in range(30)])
    source = Folder(str(root), decoded=False)
    pack(source, tmp_path / "out", "litdata")
    data, train = streaming.StreamingDataset(str(tmp_path / "out" / "train")), source.load("train")
    assert len(data) == 27
    for i in (26, 0, 13):
        assert data[i] == {"image": train.pixels.files.read(train.pixels.row(i)), "label": int(train.labels[i])}


# ---------------------------------------------------------------------------------------------- images
@pytest.mark.parametrize(("size", "kind"), [(32, "PNG"), (160, "JPEG")])
def test_with_a_size_images_are_written_anew(tmp_path, size, kind):
    root = write_folder(tmp_path / "in", [f"{i}.png" for i in range(10)], (400, 200))
    pack(Folder(str(root), decoded=False), tmp_path / "out", "tar", size=size)
    source = ShardSource(str(tmp_path / "out"))
    image = Image.open(io.BytesIO(source._index(source.train)[0].read(0)))
    assert (image.format, image.size) == (kind, (2 * size, size))


def test_files_are_copied_as_they_are(tmp_path, form):
    root = write_folder(tmp_path / "in", [f"{i}.png" for i in range(10)])
    for kind in ("GIF", "BMP", "WEBP", "TIFF"):
        (root / f"x.{kind.lower()}").write_bytes(picture(99, form=kind))
    pack(Folder(str(root), decoded=False), tmp_path / "out", form)
    source = ShardSource(str(tmp_path / "out"))
    files = [source._index(part)[0] for part in (source.train, *source.tests)]
    assert {f.read(i) for f in files for i in range(len(f))} == {f.read_bytes() for f in root.iterdir()}


@pytest.mark.parametrize(("size", "left"), [(None, ["empty.png", "wild.jpg"]), (24, ["cut.png", "empty.png", "wild.jpg"])])
def test_what_is_no_image_is_left_out(tmp_path, size, left, caplog):
    root = write_folder(tmp_path / "in", [f"{i}.png" for i in range(20)], (64, 64))
    (root / "empty.png").write_bytes(b"")
    (root / "wild.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (root / "cut.png").write_bytes(picture(1, (300, 300))[:200])
    packed = pack(Folder(str(root), decoded=False), tmp_path / "out", "tar", size=size)
    assert sorted(line.split(":")[0] for line in packed.left) == left
    assert packed.images == 23 - len(left)
    assert sum(json.loads((tmp_path / "out" / "meta.json").read_text())["counts"].values()) == packed.images
    assert "left out wild.jpg: cannot identify image file" in caplog.text


def test_nothing_readable_is_said(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(b"no")
    with pytest.raises(UserError, match="None of the 9 train images can be read"):
        pack(Folder(str(tmp_path), decoded=False), tmp_path / "out", "tar")
    assert not [f for f in tmp_path.iterdir() if f.is_dir()]


def test_shards_that_are_missing_are_told(tmp_path, caplog):
    pack(Shapes(train_size=60, test_size=20), tmp_path / "out", "tar")
    (tmp_path / "out" / "train" / "00001.tar").unlink()
    ShardSource(str(tmp_path / "out")).load("train")
    assert "should hold 60 train images, but" in caplog.text


# ---------------------------------------------------------------------------------------------- interrupts
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupt_leaves_nothing(tmp_path, form, error):
    steps = []

    def step():
        steps.append(1)
        if len(steps) == 40:
            raise error

    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError
    with pytest.raises(expected, match="" if expected is KeyboardInterrupt else "No space left on device.*free space"):
        pack(Shapes(train_size=60, test_size=20), tmp_path / "out", form, step=step)
    assert not list(tmp_path.iterdir())
    pack(Shapes(train_size=60, test_size=20), tmp_path / "out", form)


def test_a_killed_conversion_is_not_read_as_whole(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from ssl_zoo.data.pack import pack; from ssl_zoo.data.shapes import Shapes\n"
        "s, n = Shapes(train_size=60, test_size=20), []\n"
        "step = lambda: n.append(1) or (len(n) > 70 and os.kill(os.getpid(), signal.SIGKILL))\n"
        "pack({k: s.load(k) for k in ('train', 'test')}, Path('sets/out'), 'tar', 20_000, None, step)"
    )
    (tmp_path / "sets").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "sets" / "out").exists()
    with pytest.raises(UserError, match="There are no shards"):
        ShardSource(str(tmp_path / "sets"))


# ---------------------------------------------------------------------------------------------- order and resuming
@pytest.fixture
def streamed(tmp_path, form):
    pack(Shapes(train_size=200, test_size=20), tmp_path / "out", form)
    return ShardSource(str(tmp_path / "out"), decoded=False).load("train")


def shown(images, epoch=1, state=None, stop=None, **options):
    """Indices of the batches of an epoch, checked against the pixels of their images, and the state after `stop` batches."""
    loader = Loader(images, options.pop("batch_size", 8), seed=3, **options)
    if state:
        loader.load_state_dict(state)
    loader.set_epoch(epoch)
    found, batches = [], iter(loader)
    for batch in batches:
        assert torch.equal(batch["image"], images.pixels[batch["index"]])
        assert torch.equal(batch["label"], images.labels[batch["index"]])
        found.append(batch["index"].tolist())
        if len(found) == stop:
            break
    return found, loader.state_dict()


def flat(batches):
    return [i for batch in batches for i in batch]


def test_the_order_does_not_depend_on_the_workers(streamed):
    order, _ = shown(streamed, workers=0)
    assert sorted(flat(order)) == list(range(200))
    assert order != shown(streamed, epoch=2, workers=0)[0]
    for kind in ("thread", "process"):
        for workers in (1, 2):
            assert shown(streamed, workers=workers, worker_kind=kind)[0] == order


def test_neighbours_in_the_order_lie_near_each_other(tmp_path, form):
    pack(Shapes(train_size=2000, test_size=10), tmp_path / "out", form, largest={"tar": 60_000, "litdata": 10_000}[form])
    images = ShardSource(str(tmp_path / "out"), decoded=False).load("train")
    ends = torch.tensor(images.pixels.blocks).cumsum(0)
    assert len(ends) > 60
    order = torch.tensor(flat(shown(images, workers=0, batch_size=20)[0]))
    blocks = torch.bucketize(order, ends, right=True)
    assert all(len(blocks[i : i + 100].unique()) <= 32 for i in range(0, 2000, 100))  # of two windows; a shuffle has more than 45


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_where_it_stopped(streamed, workers):
    whole, _ = shown(streamed, workers=workers)
    first, state = shown(streamed, stop=9, workers=workers)
    again = ShardSource(str(streamed.pixels.files.files[0].parents[1]), decoded=False).load("train")  # as another process would
    rest, _ = shown(again, state=state, workers=2 - workers)
    assert first + rest == whole


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_an_epoch_goes_on_with_another_number_of_ranks(streamed, before, after):
    """The ranks together take the images in the order of the epoch, whatever their number."""
    stop, batch = 12 // before, 4
    order = flat(shown(streamed, workers=0)[0])
    parts = [shown(streamed, stop=stop, rank=r, world_size=before, batch_size=batch, workers=0) for r in range(before)]
    assert all(state == parts[0][1] for _, state in parts)
    first = [i for step in zip(*(flat(p) for p, _ in parts), strict=True) for i in step]
    rest = [flat(shown(streamed, state=parts[0][1], rank=r, world_size=after, batch_size=batch, workers=0)[0]) for r in range(after)]
    second = [i for step in zip(*rest, strict=True) for i in step]
    assert first + second == order[: len(first + second)]
    assert len(first + second) > 200 - after * batch


# ---------------------------------------------------------------------------------------------- the command
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data=in"], "out is needed: add out=... to the command."),
        (["out=o"], "shard takes one data set"),
        (["data=in", "dataset=shapes", "out=o"], "shard takes one data set"),
        (["data=inn", "out=o"], "There is no folder, file or data set 'inn'"),
        (["data=shape", "out=o"], "did you mean 'shapes'?"),
        (["data=in", "out=in"], "out=in is not empty"),
        (["data=in", "out=in/shards"], "lies inside the data"),
        (["data=in", "out=."], "name a new folder in it"),
        (["data=in/1.png", "out=o"], "neither parquet nor a tar"),
        (["data=in", "out=o", "format=zip"], "format takes tar or litdata"),
        (["data=in", "out=o", "shard_mb=0.5"], "shard_mb takes a whole number of megabytes"),
        (["data=in", "out=o", "size=big"], "size takes null or a whole number"),
        (["data=in", "out=o", "sise=64"], "did you mean 'size'?"),
    ],
)
def test_a_slip_is_told_before_torch_is_loaded(tmp_path, monkeypatch, words, sentence):
    write_folder(tmp_path / "in", ["1.png"])
    code = "import sys; from ssl_zoo.cli import run\ntry: run(sys.argv[1:])\nexcept ValueError as e: print(e, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "shard", *words], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)  # fmt: skip
    assert sentence in done.stdout, done.stderr
    assert done.stdout.strip().endswith("False")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_without_litdata_it_says_what_to_install(monkeypatch):
    from pathlib import Path

    from ssl_zoo.shard import check_shard

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package litdata: pip install 'ssl-zoo\[shards\]'"):
        check_shard(Path("nowhere"), None, "litdata")


def test_what_data_means(tmp_path):
    from ssl_zoo.shard import dataset_words

    write_folder(tmp_path / "it's photos", ["a/1.png"])
    (tmp_path / "tables" / "deep").mkdir(parents=True)
    (tmp_path / "tables" / "deep" / "a.parquet").touch()
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "a.tar").touch()
    kinds = {"it's photos": "folder", "tables": "parquet", "tables/deep/a.parquet": "parquet", "packed": "shards", "packed/a.tar": "shards"}
    for name, kind in kinds.items():
        assert dataset_words([f"data={tmp_path / name}", "out=o"], [])[0] == f"dataset={kind}"
    for odd in ("a${b}", "a\\"):
        write_folder(tmp_path / odd, ["a/1.png"])
        with pytest.raises(UserError, match="cannot be named in a config"):
            dataset_words([f"data={tmp_path / odd}", "out=o"], [])
    assert dataset_words(["data=cifar10", "out=o"], []) == ["dataset=cifar10", "out=o"]


@pytest.mark.slow
def test_training_on_shards(tmp_path, form, cli):
    write_folder(tmp_path / "it's photos", [f"c{i % 3}/{i}.jpg" for i in range(100)], (40, 32), "JPEG")
    done = cli("shard", "data=it's photos", "out=my shards", f"format={form}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("100 images in 2 shards, ")
    assert done.stdout.strip().endswith("train on them with: ssl-zoo dataset=shards dataset.path='my shards'")
    words = ["dataset=shards", "dataset.path='my shards'", *TINY, f"data.decoded={str(form == 'tar').lower()}", "data.workers=2", "run=r"]
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert (summary["steps"], summary["data"]["train"], summary["data"]["classes"]) == (10, 90, 3)

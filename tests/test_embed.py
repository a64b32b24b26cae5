"""`ssl-zoo embed`: every readable image once, whatever stops it, with the features that the run gives it."""

import json
import os
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Bytes, command, finished, picture, write
from hypothesis import given, settings
from hypothesis import strategies as st

import ssl_zoo
from ssl_zoo.data.images import Images
from ssl_zoo.data.ondemand import OnDemand
from ssl_zoo.embedding import check_embed, embed, embed_config
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation import embed as parts
from ssl_zoo.evaluation.embedded import read_embedding, same
from ssl_zoo.evaluation.features import Subject
from ssl_zoo.overrides import override

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("runs") / "run", "backbone=tiny", "dataset.image_size=16")


@pytest.fixture
def photos(tmp_path):
    """Nine pictures in two classes, and two files that are none."""
    rng = np.random.default_rng(0)
    for i in range(9):
        write(tmp_path / "photos", f"{'ab'[i % 2]}/{i}.png", picture(tuple(rng.integers(0, 255, 3).tolist()), (20 + i, 24)))
    write(tmp_path / "photos", "a/broken.png", b"not a picture")
    write(tmp_path / "photos", "b/empty.jpg", b"")
    return tmp_path / "photos"


def made(run, out, *words):
    config = embed_config([override("run", run), override("out", out), *words], [])
    return embed(config, check_embed(config))


def test_a_row_is_what_the_run_makes_of_the_file(run, photos, tmp_path):
    lines = made(run, tmp_path / "f.parquet", f"data={photos}")
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["row", "name", "split", "label", "class", "features"]
    rows = table.to_pylist()
    assert {r["name"] for r in rows} == {f"{'ab'[i % 2]}/{i}.png" for i in range(9)}
    net = ssl_zoo.load(run)
    for r in rows:
        with torch.no_grad():
            wanted = net(net.transform(photos / r["name"])[None])[0]
        torch.testing.assert_close(torch.tensor(r["features"]), wanted, rtol=0, atol=1e-5)
        assert r["class"] == r["name"][0] == "ab"[r["label"]]
    assert any("2 that cannot be read" in line and "broken.png" in line for line in lines)
    assert not list(tmp_path.glob("*.parts*"))


def test_an_array_has_its_index_beside_it(run, photos, tmp_path):
    made(run, tmp_path / "f.parquet", f"data={photos}")
    made(run, tmp_path / "f.npy", f"data={photos}")
    table, index = pq.read_table(tmp_path / "f.parquet"), pq.read_table(tmp_path / "f.index.parquet")
    assert index.to_pylist() == table.drop_columns("features").to_pylist()
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy"), np.array(table["features"].to_pylist(), dtype=np.float32))
    for file in ("f.parquet", "f.npy"):
        about, rows, features = read_embedding(tmp_path / file)
        assert (about["rows"], about["dim"], len(rows)) == (9, 256, 9)
        assert features.shape == (9, 256)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_alone(run, tmp_path, split):
    made(run, tmp_path / "f.parquet", f"split={split}")
    assert set(pq.read_table(tmp_path / "f.parquet")["split"].to_pylist()) == {split}
    made(run, tmp_path / "all.parquet")
    both = pq.read_table(tmp_path / "all.parquet")
    assert both["row"].to_pylist() == list(range(48))
    assert both["split"].to_pylist() == ["train"] * 32 + ["test"] * 16


def test_names_tell_folders_of_splits_apart(run, tmp_path):
    for split in ("train", "test"):
        for i in range(2):
            write(tmp_path / "data", f"{split}/{i}.png", picture((9 * i, 0, 0)))
    made(run, tmp_path / "f.parquet", f"data={tmp_path / 'data'}")
    assert pq.read_table(tmp_path / "f.parquet")["name"].to_pylist() == ["train/0.png", "train/1.png", "test/0.png", "test/1.png"]


# ---------------------------------------------------------------------------------------------- stopping and going on
class Sums(torch.nn.Module):
    """Features that tell the image: its mean, its count among all calls nowhere."""

    def forward(self, x):
        return x.flatten(1)[:, :3]


SUBJECT = Subject(Sums(), 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
READABLE = [picture((i, 2 * i, 3 * i), (8, 8)) for i in range(40)]


def splits_of(good, train):
    """Images on demand whose first pixel holds their number; those that are not `good` cannot be read."""
    files = Bytes(*(data if ok else b"broken" for data, ok in zip(READABLE, good, strict=False)))
    whole = Images(OnDemand(files, 8), torch.arange(len(good)) % 3 - 1, ["a", "b"], 8)
    return {"train": whole.take(torch.arange(train)), "test": whole.take(torch.arange(train, len(good)))}


def write_all(splits, file, stops=(), batch=4):
    """Embed, being stopped after each number of images in `stops` and started again."""
    of = parts.identity(splits, "weights", 8)
    for stop in (*stops, None):
        done = 0

        def step(images, stop=stop):
            nonlocal done
            done += images
            if stop is not None and done >= stop:
                raise KeyboardInterrupt

        try:
            return parts.embed(SUBJECT, splits, file, of, torch.device("cpu"), batch, step)
        except KeyboardInterrupt:
            assert not file.exists()
    raise AssertionError


@settings(deadline=None, max_examples=40)
@given(
    good=st.lists(st.booleans(), min_size=2, max_size=40).filter(any),
    train=st.integers(1, 39),
    stops=st.lists(st.integers(1, 40), max_size=4),
    seconds=st.sampled_from([-1.0, 1e9]),
    batch=st.integers(2, 9),
)
def test_every_readable_image_is_there_once_whatever_stops_it(tmp_path_factory, good, train, stops, seconds, batch):
    """seconds: a part for each batch, or one when it is stopped."""
    file, train = tmp_path_factory.mktemp("embed") / "f.parquet", min(train, len(good) - 1)
    before, parts.SECONDS = parts.SECONDS, seconds
    try:
        result = write_all(splits_of(good, train), file, stops, batch)
    finally:
        parts.SECONDS = before
    rows = pq.read_table(file).to_pylist()
    kept = [i for i, ok in enumerate(good) if ok]
    assert [r["row"] for r in rows] == kept
    assert [r["name"] for r in rows] == [f"picture {i}" for i in kept]
    assert [round(r["features"][0] * 255) for r in rows] == kept
    assert [r["split"] for r in rows] == ["train" if i < train else "test" for i in kept]
    assert [r["label"] for r in rows] == [None if i % 3 == 0 else i % 3 - 1 for i in kept]
    assert (result.rows, len(result.left)) == (len(kept), len(good) - len(kept))
    assert not list(file.parent.glob("*.parts"))


def test_a_damaged_part_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SECONDS", -1.0)
    splits = splits_of([True] * 20, 15)
    with pytest.raises(KeyboardInterrupt):
        parts.embed(SUBJECT, splits, tmp_path / "f.npy", parts.identity(splits, "w", 8), torch.device("cpu"), 4, stopped_at(13))
    left = sorted((tmp_path / "f.npy.parts").glob("*.parquet"))
    assert len(left) >= 3
    left[1].write_bytes(b"cut")
    done = []
    parts.embed(SUBJECT, splits, tmp_path / "f.npy", parts.identity(splits, "w", 8), torch.device("cpu"), 4, done.append)
    assert done[0] == 4  # the first part alone was kept
    assert np.load(tmp_path / "f.npy").shape == (20, 3)


def stopped_at(number):
    count = 0

    def step(images):
        nonlocal count
        count += images
        if count >= number:
            raise KeyboardInterrupt

    return step


def test_parts_of_another_embedding_are_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SECONDS", -1.0)
    splits, cpu = splits_of([True] * 12, 9), torch.device("cpu")
    with pytest.raises(KeyboardInterrupt):
        parts.embed(SUBJECT, splits, tmp_path / "f.npy", parts.identity(splits, "w", 8), cpu, 4, stopped_at(5))
    for of in (parts.identity(splits, "other", 8), parts.identity(splits, "w", 16), parts.identity(splits_of([True] * 13, 9), "w", 8)):
        with pytest.raises(UserError, match="beginning of another embedding"):
            parts.embed(SUBJECT, splits, tmp_path / "f.npy", of, cpu, 4, lambda n: None)
    (tmp_path / "f.npy.parts" / "about.json").write_text("[1]")
    with pytest.raises(UserError, match="beginning of another embedding"):
        parts.embed(SUBJECT, splits, tmp_path / "f.npy", parts.identity(splits, "w", 8), cpu, 4, lambda n: None)


def test_stamps_count_where_both_are_known():
    one = {"weights": "w", "stamp": "a"}
    assert same(one, {"weights": "w", "stamp": None})
    assert not same(one, {"weights": "w", "stamp": "b"})
    assert not same(one, {"weights": "v", "stamp": "a"})


def test_features_that_are_no_numbers_are_not_written(tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * float("nan")

    splits = splits_of([True] * 6, 3)
    with pytest.raises(UserError, match="diverged"):
        parts.embed(Subject(Broken(), 8, (0, 0, 0), (1, 1, 1)), splits, tmp_path / "f.npy", {}, torch.device("cpu"), 4, lambda n: None)
    assert not (tmp_path / "f.npy").exists()


def _kill_at_third_batch():
    parts.SECONDS, feed, count = -1.0, parts.feed, iter(range(10**6))

    def killing(*args):
        for batch in feed(*args):
            if next(count) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    parts.feed = killing


def test_a_killed_command_goes_on(run, photos, tmp_path):
    words = ("embed", f"run={run}", f"data={photos}", "batch_size=2", "out=f.parquet")
    killed = command(*words, cwd=tmp_path, before=_kill_at_third_batch)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "f.parquet").exists()
    assert (tmp_path / "f.parquet.parts").is_dir()
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "for 5 images" in done.stdout or "for 7 images" in done.stdout, done.stdout  # of 11: the rest had been done
    made(run, tmp_path / "whole.parquet", f"data={photos}", "batch_size=2")
    assert pq.read_table(tmp_path / "f.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))


def test_wrong_input_is_one_sentence(run, photos, tmp_path):
    (tmp_path / "there.npy").touch()
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "i.index.parquet").touch()
    for out, words, said in (
        ("i.npy", (), "is there already"),
        ("/proc/f.npy", (), "cannot be made"),
        ("f.csv", (), "end it with .parquet or .npy"),
        ("there.npy", (), "is there already"),
        ("no/f.npy", (), "does not exist: make it first"),
        ("f.npy", ("split=half",), "split takes all, train, test"),
        ("f.npy", ("data=nowhere",), "There is no folder, file or data set 'nowhere'"),
        ("f.npy", (f"data={photos}", "dataset=shapes"), "embed takes one data set"),
        ("f.npy", ("device=tpu",), "device"),
    ):
        with pytest.raises(UserError, match=said.replace(".", r"\.")):
            made(run, tmp_path / out, *words)
    with pytest.raises(UserError, match="is not a run folder"):
        made(tmp_path, tmp_path / "f.npy")
    with pytest.raises(UserError, match="no embedding that ssl-zoo embed wrote"):
        read_embedding(tmp_path / "text.txt")


def test_metadata_say_what_it_is_of(run, tmp_path):
    made(run, tmp_path / "f.parquet")
    about = json.loads(pq.read_schema(tmp_path / "f.parquet").metadata[b"ssl_zoo"])
    assert {"weights", "image_size", "images", "rows", "dim"} <= about.keys()


def test_files_that_vanish_are_not_taken_for_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SECONDS", -1.0)
    good = [True] * 10 + [False] * 150
    files = Bytes(*(picture((i, 0, 0), (8, 8)) if ok else None for i, ok in enumerate(good)))
    splits = {"train": Images(OnDemand(files, 8), None, None, 8)}
    of = parts.identity(splits, "w", 8)
    with pytest.raises(UserError, match="files in a row could be opened"):
        parts.embed(SUBJECT, splits, tmp_path / "f.npy", of, torch.device("cpu"), 200, lambda n: None)
    files.data = tuple(picture((i, 0, 0), (8, 8)) for i in range(160))  # the disk is back
    splits = {"train": Images(OnDemand(files, 8), None, None, 8)}
    done = []
    found = parts.embed(SUBJECT, splits, tmp_path / "f.npy", of, torch.device("cpu"), 200, done.append)
    assert (done[0], found.rows, found.left) == (10, 160, [])


def test_many_broken_files_in_a_row_are_left_out(tmp_path):
    files = Bytes(*(b"broken" if i < 150 else picture((i, 0, 0), (8, 8)) for i in range(160)))
    splits = {"train": Images(OnDemand(files, 8), None, None, 8)}
    found = parts.embed(SUBJECT, splits, tmp_path / "f.npy", {}, torch.device("cpu"), 200, lambda n: None)
    assert (found.rows, len(found.left)) == (10, 150)


def test_a_part_without_a_readable_image(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SECONDS", -1.0)
    splits = splits_of([True] * 6 + [False] * 4, 6)
    found = parts.embed(SUBJECT, splits, tmp_path / "f.npy", {}, torch.device("cpu"), 2, lambda n: None)
    assert (found.rows, len(found.left), np.load(tmp_path / "f.npy").shape) == (6, 4, (6, 3))
    with pytest.raises(UserError, match="None of the images could be read"):
        parts.embed(SUBJECT, splits_of([False] * 4, 2), tmp_path / "g.npy", {}, torch.device("cpu"), 2, lambda n: None)
    assert not (tmp_path / "g.npy.parts").exists()


def test_a_few_files_that_cannot_be_opened_wait_for_the_next_part(tmp_path, monkeypatch):
    """They are left out in the end, but not where the command was stopped before anything after them could be read."""
    monkeypatch.setattr(parts, "SECONDS", -1.0)
    files = Bytes(*(None if 4 <= i < 8 else picture((i, 0, 0), (8, 8)) for i in range(12)))
    splits = {"train": Images(OnDemand(files, 8), None, None, 8)}
    with pytest.raises(KeyboardInterrupt):
        parts.embed(SUBJECT, splits, tmp_path / "f.npy", {}, torch.device("cpu"), 4, stopped_at(8))
    files.data = tuple(picture((i, 0, 0), (8, 8)) for i in range(12))
    splits = {"train": Images(OnDemand(files, 8), None, None, 8)}
    assert parts.embed(SUBJECT, splits, tmp_path / "f.npy", {}, torch.device("cpu"), 4, lambda n: None).rows == 12
    for gap in ((4, 8), (8, 12)):  # in the middle, at the end
        files = Bytes(*(None if gap[0] <= i < gap[1] else picture((i, 0, 0), (8, 8)) for i in range(12)))
        splits = {"train": Images(OnDemand(files, 8), None, None, 8)}
        found = parts.embed(SUBJECT, splits, tmp_path / f"g{gap[0]}.parquet", {}, torch.device("cpu"), 4, lambda n: None)
        assert (found.rows, len(found.left)) == (8, 4)


def test_stopped_between_the_index_and_the_array(run, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(np.lib.format, "write_array_header_1_0", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(run, tmp_path / "f.npy")
    assert (tmp_path / "f.index.parquet").exists()
    made(run, tmp_path / "f.npy")
    assert np.load(tmp_path / "f.npy").shape == (48, 256)

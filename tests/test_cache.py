"""The cache of decoded images: made once, whole or not at all, by processes that may be killed."""

import hashlib
import multiprocessing as mp
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import picture, write

import ssl_zoo.data.cache
from ssl_zoo.data.cache import Cache, _remove_leftovers, locked, stamp
from ssl_zoo.data.folder import Files, Folder
from ssl_zoo.data.ondemand import OnDemand
from ssl_zoo.data.parquet import Parquet
from ssl_zoo.data.pixels import decode_row
from ssl_zoo.errors import UserError


def test_the_cache_follows_the_content(tmp_path, monkeypatch):
    write(tmp_path / "in", "a.png", picture((10, 0, 0)))
    write(tmp_path / "in", "b.png", picture((10, 0, 0)))
    cache = tmp_path / "cache"
    load = lambda: Folder(str(tmp_path / "in"), cache=str(cache)).load("train").pixels  # noqa: E731
    first = load()
    monkeypatch.setattr(Cache, "_fill", lambda *a: pytest.fail("decoded twice"))
    assert torch.equal(load(), first)
    monkeypatch.undo()
    before = os.stat(tmp_path / "in" / "a.png")
    changed = picture((90, 0, 0))
    write(tmp_path / "in", "a.png", changed)
    write(tmp_path / "in", "b.png", changed)
    os.utime(tmp_path / "in" / "a.png", (before.st_atime, before.st_mtime))
    assert int(load()[0, 0, 0, 0]) == 90
    assert len(list(cache.glob("images-*"))) == 2


def test_skipped_files_have_the_names_they_have_now(tmp_path):
    for folder, name in (("a", "old.png"), ("b", "new.png")):
        write(tmp_path, f"{folder}/good.png", picture(size=(16, 16)))
        write(tmp_path, f"{folder}/second.png", picture(size=(16, 16)))
        write(tmp_path, f"{folder}/{name}", b"no image")
        skipped = Folder(str(tmp_path / folder), cache=str(tmp_path / "cache")).load("train").skipped
        assert [line.partition(":")[0] for line in skipped] == [name]


def test_a_damaged_cache_is_made_again(tmp_path):
    write(tmp_path / "in", "a.png", picture((10, 0, 0)))
    write(tmp_path / "in", "b.png", picture((10, 0, 0)))
    cache = tmp_path / "cache"
    load = lambda: Folder(str(tmp_path / "in"), cache=str(cache)).load("train").pixels  # noqa: E731
    load()
    folder = next(cache.iterdir())
    (folder / "pixels.u8").write_bytes(b"short")
    assert int(load()[0, 0, 0, 0]) == 10
    (folder / "meta.json").write_text("{")
    assert int(load()[0, 0, 0, 0]) == 10
    assert [p.name for p in cache.iterdir()] == [folder.name]


def _decode_there(folder, cache, start, queue):
    fills, fill = [], Cache._fill

    def slow_fill(self, folder):
        fills.append(folder)
        time.sleep(1)  # so that the other process comes meanwhile
        return fill(self, folder)

    Cache._fill = slow_fill
    start.wait()
    pixels = Folder(folder, cache=cache).load("train").pixels
    queue.put((len(fills), hashlib.sha256(pixels.numpy().tobytes()).hexdigest(), len(pixels)))


def test_of_two_processes_at_once_one_decodes(tmp_path):
    for i in range(30):
        write(tmp_path / "in", f"{i}.png", picture((i, 0, 0)))
    context = mp.get_context("spawn")
    queue, start = context.Queue(), context.Barrier(2)
    asked = (str(tmp_path / "in"), str(tmp_path / "cache"), start, queue)
    workers = [context.Process(target=_decode_there, args=asked) for _ in range(2)]
    for w in workers:
        w.start()
    found = [queue.get(timeout=120) for _ in workers]
    for w in workers:
        w.join()
    assert sorted(fills for fills, _, _ in found) == [0, 1]
    assert len({content for _, content, _ in found}) == 1
    assert [count for _, _, count in found] == [27, 27]
    assert [p.name.split("-")[0] for p in sorted((tmp_path / "cache").iterdir())] in (["files", "images"], ["images"])


def _decode_and_hang(folder, cache, queue):
    def hang(files, row, canvas):
        if row == 5:
            queue.put(row)
            time.sleep(600)
        return decode_row(files, row, canvas)

    ssl_zoo.data.cache.decode_row = hang
    Folder(folder, cache=cache).load("train")


@pytest.mark.parametrize("changed", [False, True])
def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(tmp_path, changed):
    for i in range(8):
        write(tmp_path / "in", f"{i}.png", picture((10 * i, 0, 0)))
    context, cache = mp.get_context("spawn"), tmp_path / "cache"
    queue = context.Queue()
    killed = context.Process(target=_decode_and_hang, args=(str(tmp_path / "in"), str(cache), queue))
    killed.start()
    queue.get(timeout=120)
    assert len(list(cache.glob("images-*.part-*"))) == 1
    killed.kill()
    killed.join()
    if changed:  # another array, but the leftover is removed all the same
        write(tmp_path / "in", "0.png", picture((99, 0, 0)))
    source = Folder(str(tmp_path / "in"), cache=str(cache))
    reds = torch.cat([source.load(s).pixels for s in ("train", "test")])[:, 0, 0, 0].tolist()
    assert sorted(reds) == sorted([99 if changed else 0, *(10 * i for i in range(1, 8))])
    assert len([p for p in cache.glob("images-*") if p.is_dir()]) == 1


def test_a_part_in_the_making_is_left_alone(tmp_path):
    part = tmp_path / "images-a.part-x"
    part.mkdir()
    with locked(tmp_path / "images-a"):
        _remove_leftovers(tmp_path / "images-b")
        assert part.exists()
        _remove_leftovers(tmp_path / "images-a")
    assert not part.exists()


@pytest.fixture
def old_files(monkeypatch):
    """Files count as written long ago."""
    monkeypatch.setattr("ssl_zoo.data.cache.TICK", 0)


def test_files_that_did_not_change_are_not_read_again(tmp_path, old_files, monkeypatch):
    for i in range(4):
        write(tmp_path / "in", f"{i}.bmp", picture((10, 0, 0), form="BMP"))
    load = lambda: Folder(str(tmp_path / "in"), image_size=16, cache=str(tmp_path / "cache")).load("train").pixels  # noqa: E731
    first = load()
    with monkeypatch.context() as patch:
        patch.setattr(Files, "read", lambda *a: pytest.fail("read again"))
        assert torch.equal(load(), first)
    before = os.stat(tmp_path / "in" / "0.bmp")
    for i in range(4):
        write(tmp_path / "in", f"{i}.bmp", picture((90, 0, 0), form="BMP"))
        os.utime(tmp_path / "in" / f"{i}.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert before.st_size == os.stat(tmp_path / "in" / "0.bmp").st_size
    assert int(load()[0, 0, 0, 0]) == 90


def test_files_that_just_changed_have_no_stamp(tmp_path):
    write(tmp_path, "a.png", picture())
    assert stamp([tmp_path / "a.png"]) is None
    assert stamp([tmp_path / "gone.png"]) != stamp([tmp_path / "lost.png"])


def test_auto_decodes_many_files_on_demand_unless_they_are_in_the_cache(tmp_path, old_files, monkeypatch):
    for i in range(8):
        write(tmp_path / "in", f"{i}.png", picture((10, 0, 0), size=(16, 16)))
    load = lambda decoded="auto": Folder(str(tmp_path / "in"), cache=str(tmp_path / "cache"), decoded=decoded).load("train").pixels  # noqa: E731
    monkeypatch.setattr("ssl_zoo.data.decode.MOST_FILES", 7)
    with monkeypatch.context() as patch:
        patch.setattr(Files, "stamp", lambda *a: pytest.fail("looked at every file"))
        assert isinstance(load(), OnDemand)
    assert not (tmp_path / "cache").exists()
    whole = load(True)
    assert isinstance(whole, torch.Tensor)
    assert torch.equal(load(), whole)
    monkeypatch.setattr("ssl_zoo.data.decode.MOST_FILES", 8)
    monkeypatch.setattr("ssl_zoo.data.decode.MOST_BYTES", 8 * 3 * 20 * 20)
    load = lambda size: Folder(str(tmp_path / "in"), size, cache=str(tmp_path / "other")).load("train").pixels  # noqa: E731
    assert isinstance(load(21), OnDemand)
    assert isinstance(load(20), torch.Tensor)


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    write(tmp_path / "in", "a.png", picture())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"set data\.cache"):
        Folder(str(tmp_path / "in"), cache=str(tmp_path / "file" / "cache")).load("train")


def test_another_column_of_a_file_is_another_array(tmp_path, old_files):
    images = [{"bytes": picture((grey, 0, 0), size=(8, 8)), "path": None} for grey in (10, 200)]
    pq.write_table(pa.table({"image": [images[0]] * 10, "other": [images[1]] * 10}), tmp_path / "a.parquet")
    for column, value in (("image", 10), ("other", 200)):
        found = Parquet(str(tmp_path / "a.parquet"), image_column=column, cache=str(tmp_path / "cache")).load("train").pixels
        assert (found[:, 0] == value).all()

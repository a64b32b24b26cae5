"""Batches: the same whoever makes them, each image once over all ranks, going on exactly."""

import io
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Bytes, numbered, picture, write
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssl_zoo.data import parquet
from ssl_zoo.data.encoded import BLOCKS
from ssl_zoo.data.feed import plan
from ssl_zoo.data.images import Images
from ssl_zoo.data.loader import Loader
from ssl_zoo.data.memory import free_memory
from ssl_zoo.data.ondemand import OnDemand, cpus
from ssl_zoo.data.order import local_permutation, permutation
from ssl_zoo.data.shapes import Shapes
from ssl_zoo.errors import UserError


def encoded(n, bad=(), blocks=None):
    """n images that are decoded on demand, of which some cannot be read."""
    data = [None if i in bad else picture((5 * i, 0, 0), size=(8, 8)) for i in range(n)]
    return of(OnDemand(Bytes(*data, blocks=blocks), 8))


def of(pixels):
    return Images(pixels, torch.arange(len(pixels)) % 3, ["a", "b", "c"], 8, skipped=pixels.skipped)


@settings(max_examples=50, deadline=None)
@given(st.integers(4, 200), st.integers(1, 16), st.integers(1, 4), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_shows_each_image_at_most_once_over_all_ranks(n, batch, world, seed, epoch):
    if n < batch * world:
        return
    shown = []
    for r in range(world):
        loader = Loader(numbered(n), batch, seed, rank=r, world_size=world)
        loader.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader) == n // (batch * world)
        for b in batches:
            assert len(b["index"]) == batch
            assert torch.equal(b["image"][:, 0, 0, 0].long(), b["index"])
            assert torch.equal(b["label"], b["index"] % 3)
        shown += [int(i) for b in batches for i in b["index"]]
    assert len(shown) == len(set(shown)) == n // (batch * world) * batch * world


def test_epochs_and_seeds_give_other_orders():
    assert torch.equal(permutation(0, 1, 50), permutation(0, 1, 50))
    orders = {tuple(permutation(s, e, 50).tolist()) for s in range(3) for e in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_loader_goes_on_where_it_was(stop):
    images = numbered(50)
    loader = Loader(images, 8, seed=1)
    loader.set_epoch(2)
    whole = [b["index"].tolist() for b in loader]
    iterator = iter(loader)
    for _ in range(stop):
        next(iterator)
    other = Loader(images, 8, seed=1)
    other.load_state_dict(loader.state_dict())
    other.set_epoch(2)
    assert [b["index"].tolist() for b in other] == whole[stop:]
    other.set_epoch(3)
    assert len(list(other)) == 6


def test_resident_and_mapped_give_the_same(tmp_path):
    images = numbered(20)
    a, b = Loader(images, 4, 0, resident=True), Loader(images, 4, 0, resident=False)
    assert (a.resident, b.resident) == (True, False)
    assert all(torch.equal(x["image"], y["image"]) for x, y in zip(a, b, strict=True))


def test_mapped_images_never_ask_the_device_for_the_order():
    batch = next(iter(Loader(numbered(20), 4, 0, device="meta", resident=False)))  # reading from the meta device is an error
    assert (batch["image"].shape, batch["index"].device.type, batch["label"].shape) == ((4, 3, 8, 8), "meta", (4,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_batches_on_a_gpu_without_waiting(resident):
    loader = Loader(numbered(40), 4, 0, device="cuda", resident=resident)
    batches = iter(loader)
    found = [next(batches)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found += list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(b["image"][:, 0, 0, 0].long(), b["index"]) for b in found)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_the_sequence_does_not_depend_on_who_decodes(workers, kind):
    images = encoded(40, bad=(3, 4, 17))
    whole = [encoded(40, bad=(3, 4, 17)).pixels[torch.tensor([i])] for i in range(40)]
    loader = Loader(images, 6, seed=1, workers=workers, worker_kind=kind)
    order = permutation(1, 0, 40)[:36]
    instead = {3: 5, 4: 5, 17: 18}
    batches = list(loader)
    assert [int(i) for b in batches for i in b["index"]] == [instead.get(i, i) for i in order.tolist()]
    for b in batches:
        assert torch.equal(b["image"], torch.cat([whole[i] for i in b["index"].tolist()]))
        assert torch.equal(b["label"], b["index"] % 3)
    shown = [f"picture {i}: the disk is broken" for i in (17, 3, 4)]
    assert sorted(images.skipped) == shown
    assert len(list(loader)) == 6
    assert sorted(images.skipped) == shown  # each is counted once


@pytest.mark.parametrize("decoded", [False, True])
def test_batches_made_ahead_do_not_count_as_seen(decoded):
    loader = Loader(numbered(40) if decoded else encoded(40), 4, 0, resident=False, workers=2)
    batches = iter(loader)
    for n in range(3):
        assert loader.state_dict() == {"epoch": 0, "seen": 4 * n}
        next(batches)


@pytest.mark.parametrize(("world", "batch"), [(1, 8), (2, 4), (3, 2), (2, 5)])
def test_other_ranks_and_batches_go_on_exactly(world, batch):
    """From 2 ranks x 4 images to `world` x `batch`, after 3 batches of 10."""
    state = {}
    for r in range(2):
        loader = Loader(numbered(83), 4, 7, rank=r, world_size=2)
        loader.set_epoch(5)
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        state = loader.state_dict()
    assert state == {"epoch": 5, "seen": 24}
    ranks = []
    for r in range(world):
        loader = Loader(numbered(83), batch, 7, rank=r, world_size=world)
        loader.load_state_dict(state)
        loader.set_epoch(5)
        ranks.append([int(i) for b in loader for i in b["index"]])
        loader.set_epoch(6)
        assert len(list(loader)) == 83 // (batch * world)
    count = (83 - 24) // (batch * world) * batch
    assert [i for step in zip(*ranks, strict=True) for i in step] == permutation(7, 5, 83)[24 : 24 + count * world].tolist()


def test_the_place_of_an_older_version():
    loader = Loader(numbered(50), 4, 0, rank=1, world_size=2)
    loader.load_state_dict({"epoch": 3, "batch": 2})
    assert loader.state_dict() == {"epoch": 3, "seen": 16}
    assert [int(i) for b in loader for i in b["index"]] == permutation(0, 3, 50)[17:48:2].tolist()


READER = """
import json, sys, torch
sys.path[:0] = {paths!r}
from test_loader import encoded
from ssl_zoo.data.loader import Loader
loader = Loader(encoded(60), 4, seed=2, workers=2, worker_kind={kind!r})
loader.set_epoch(1)
for batch in loader:
    print(json.dumps([batch["index"].tolist(), loader.state_dict()]), flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_killed_run_goes_on_where_it_was(kind):
    here = Path(__file__).parent
    code = READER.format(paths=[str(here), str(here.parent)], kind=kind)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        taken = []
        for _ in range(5):
            taken.append(json.loads(reader.stdout.readline()))
            print(file=reader.stdin, flush=True)
        reader.kill()
    again = Loader(encoded(60), 4, seed=2, workers=1)
    again.load_state_dict(taken[-1][1])
    again.set_epoch(1)
    found = [i for index, _ in taken for i in index] + [int(i) for b in again for i in b["index"]]
    assert found == permutation(2, 1, 60).tolist()


class Deadly(Bytes):
    """Whose third image kills the process that reads it, unless that is `spared`."""

    spared = os.getpid()

    def read(self, row):
        if row == 2 and os.getpid() != self.spared:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(row)


def test_workers_end_with_the_last_batch():
    others = set(multiprocessing.active_children())  # of tests before this one
    for b, batch in enumerate(loader := Loader(encoded(20), 4, 0, workers=2, worker_kind="process")):
        assert len(set(multiprocessing.active_children()) - others) == (0 if b + 1 == len(loader) else 2)
        assert torch.equal(batch["image"][:, 0, 0, 0].long(), 5 * batch["index"])


def test_a_killed_worker_is_one_clear_error():
    images = Images(OnDemand(Deadly(*[picture(size=(8, 8))] * 20), 8), None, None, 8)
    loader = Loader(images, 4, 0, workers=2, worker_kind="process")
    with pytest.raises(UserError, match=r"A data worker \(pid.*: set data\.workers lower, or data\.worker_kind=thread"):
        list(loader)


def test_nothing_readable_is_one_clear_error():
    for kind in ("thread", "process"):
        images = Images(OnDemand(Bytes(*[None] * 20), 8), None, None, 8)
        with pytest.raises(UserError, match=r"None of 20 files in a row .*picture \d+: the disk is broken.*check dataset\.path"):
            list(Loader(images, 4, 0, workers=2, worker_kind=kind))


def test_images_may_come_ungathered():
    loader = Loader(numbered(20), 4, 0, resident=True, gather=False)
    whole = [b["index"].tolist() for b in Loader(numbered(20), 4, 0)]
    for batch, index in zip(loader, whole, strict=True):
        assert set(batch) == {"pixels", "index", "label"}
        assert batch["pixels"] is loader.pixels
        assert batch["index"].tolist() == index
        assert torch.equal(batch["label"], batch["index"] % 3)
    assert "image" in next(iter(Loader(numbered(20), 4, 0, resident=False, gather=False)))


def test_the_order_of_blocks_is_local():
    blocks = [5, 1, 9, 0, 4] * 20
    order = local_permutation(0, 1, blocks)
    assert torch.equal(order, local_permutation(0, 1, blocks))
    assert sorted(order.tolist()) == list(range(sum(blocks)))
    assert not torch.equal(order, local_permutation(0, 2, blocks))
    assert not torch.equal(order, local_permutation(1, 1, blocks))
    windows = (local_permutation(0, 1, [20] * 40) // 20).split(20 * BLOCKS)  # the block of each image
    assert [len(w.unique()) for w in windows] == [16, 16, 8]
    assert len(windows[0][:50].unique()) > 8  # mixed within
    assert torch.equal(local_permutation(0, 0, [7]).sort().values, torch.arange(7))


def test_a_loader_of_blocks_takes_its_order_from_them():
    images = encoded(40, blocks=[10] * 4)
    part = images.take(torch.arange(5, 35))
    assert part.pixels.blocks == [5, 10, 10, 5]
    found = [int(i) for b in Loader(part, 5, 3) for i in b["index"]]
    assert found == local_permutation(3, 0, [5, 10, 10, 5]).tolist()


@pytest.mark.parametrize(
    ("resident", "free", "local", "held"), [("auto", 7680, 1, True), ("auto", 7679, 1, False), ("auto", 7680, 2, False), (True, 0, 1, True)]
)
def test_images_are_held_where_there_is_room(monkeypatch, resident, free, local, held):
    monkeypatch.setattr("ssl_zoo.data.loader.free_memory", lambda device: free)
    loader = Loader(numbered(20), 4, 0, resident=resident, local=local)  # 20 x 3 x 8 x 8 bytes
    assert loader.resident == held
    assert loader.about() == f"20 images of 8 px (0 MB) {'held on cpu' if held else 'memory-mapped'}"


def test_images_on_demand_are_never_held():
    assert Loader(encoded(20), 4, 0).about() == f"20 images of 8 px (0 MB when decoded) decoded on demand with {plural(cpus(), 'process')}"
    assert Loader(encoded(20), 4, 0, workers=0).about().endswith("decoded on demand")
    with pytest.raises(UserError, match=r"data\.resident=true needs decoded images: set data\.decoded=true"):
        Loader(encoded(20), 4, 0, resident=True)


def plural(count, word):
    return f"{count} {word}{'es' if count > 1 else ''}"


def test_large_images_are_decoded_by_threads():
    files = Bytes(*[picture(size=(8, 8))] * 8)
    assert [plan(OnDemand(files, size), 3, "auto", 1)[1] for size in (127, 128)] == ["process", "thread"]
    assert plan(OnDemand(files, 128), "auto", "process", 10**6) == (1, "process")
    assert plan(numbered(4).pixels, 2, "process", 1) == (2, "thread")


def test_memory_is_what_the_control_group_leaves(monkeypatch):
    files = {
        "/proc/meminfo": ["MemFree: 1 kB", "MemAvailable: 5000 kB"],
        "/proc/self/cgroup": ["0::/a/b"],
        "/sys/fs/cgroup/a/memory.max": ["3000000"],
        "/sys/fs/cgroup/a/memory.current": ["2000000"],
        "/sys/fs/cgroup/a/memory.stat": ["anon 5", "inactive_file 400000"],
        "/sys/fs/cgroup/a/b/memory.max": ["max"],
    }
    monkeypatch.setattr("ssl_zoo.data.memory._lines", lambda file: files.get(str(file), []))
    assert free_memory(torch.device("cpu")) == 1_400_000
    files["/sys/fs/cgroup/a/memory.max"] = ["max"]
    assert free_memory(torch.device("cpu")) == 5_120_000
    files["/proc/self/cgroup"] = ["7:memory:/x", "3:cpu:/x"]
    files |= {"/sys/fs/cgroup/memory/memory.limit_in_bytes": ["900"], "/sys/fs/cgroup/memory/memory.usage_in_bytes": ["100"]}
    assert free_memory(torch.device("cpu")) == 800


def test_the_wait_for_batches_adds_up(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("ssl_zoo.data.loader.time.perf_counter", lambda: next(ticks))
    loader = Loader(numbered(20), 4, 0)
    batches = iter(loader)
    next(batches)
    assert loader.waited == 1
    for _ in range(10):
        next(ticks)  # the step itself
    assert len(list(batches)) == 4
    assert loader.waited == 5


@pytest.mark.slow
def test_runs_do_not_depend_on_who_decodes(cli, tmp_path):
    shapes = Shapes(train_size=160).load("train")
    for i, image in enumerate(shapes.pixels):
        out = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(out, "PNG")
        write(tmp_path / "in", f"{shapes.classes[int(shapes.labels[i])]}/{i}.png", out.getvalue())
    found = []
    for n, how in enumerate((["data.decoded=true"], ["data.decoded=false", "data.workers=0"], ["data.decoded=false", "data.workers=2"])):
        words = ["dataset=folder", "dataset.path=in", "epochs=2", "batch_size=32", "method.hidden_dim=64", "trainer=cpu", f"run=run{n}"]
        done = cli(*words, *how, "evaluation.every_n_epochs=1", "evaluation.linear.max_iter=5", "evaluation.linear.l2=[0.01]")
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / f"run{n}" / "summary.json").read_text()))
        assert f"data          {found[n]['data']['source']}" in done.stdout
        assert 0 <= found[n]["speed"]["data_wait"] <= 100
    assert [s["data"]["source"].partition(" (")[2].partition(") ")[2] for s in found] == [
        "held on cpu", "decoded on demand", "decoded on demand with 2 processes"
    ]  # fmt: skip
    assert cli("resume", "run=run1", "epochs=3").returncode == 0
    found.append(json.loads((tmp_path / "run1" / "summary.json").read_text()))
    found[3]["final"]["loss"] = found[0]["final"]["loss"]  # of another epoch
    for s in found[1:]:
        assert s["final"]["loss"] == pytest.approx(found[0]["final"]["loss"], rel=1e-5)
        assert s["baselines"] == found[0]["baselines"]


def test_fewer_images_than_a_batch_is_said():
    with pytest.raises(UserError, match="10 training images, fewer than the global batch of 16: set batch_size=5 or less"):
        Loader(numbered(10), 8, 0, world_size=2)


def test_row_groups_are_mixed_as_far_as_memory_holds_them(tmp_path, monkeypatch):
    images = [{"bytes": picture((i, 0, 0), size=(8, 8)), "path": None} for i in range(60)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=3)
    one = len(images[0]["bytes"]) * 3
    monkeypatch.setattr(parquet, "GROUP_BYTES", 5 * one)
    source = parquet.Parquet(str(tmp_path), cache=str(tmp_path / "cache"), decoded=False, test_share=0.1)
    pixels = source.load("train").pixels
    assert 2 <= pixels.window <= 5
    opened = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, g, **k: opened.append(g) or read(self, g, **k))
    list(Loader(source.load("train"), 6, 0, workers=0))
    assert len(opened) <= 20 + 3  # each of the 20 about once


def test_an_epoch_of_which_too_little_is_left_is_over():
    loader = Loader(numbered(50), 5, 0)
    loader.load_state_dict({"epoch": 3, "seen": 48})
    assert [int(i) for b in loader for i in b["index"]] == permutation(0, 4, 50)[:50].tolist()

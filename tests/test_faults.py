"""What goes wrong with data on real machines: a clear sentence or a counted skip, and never a hang. docs/troubleshooting.md has a line
for each of these tests.
"""

import ctypes
import io
import multiprocessing
import os
import re
import shutil
import signal
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, Bytes, picture, write
from PIL import Image

from ssl_zoo.build import build_data
from ssl_zoo.config import compose
from ssl_zoo.data.cache import Cache
from ssl_zoo.data.feed import _say_full
from ssl_zoo.data.folder import Folder
from ssl_zoo.data.images import Images
from ssl_zoo.data.loader import Loader
from ssl_zoo.data.ondemand import OnDemand
from ssl_zoo.data.parquet import Parquet
from ssl_zoo.data.pixels import decode_row
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.labelled import labelled_pair

linux = pytest.mark.skipif(sys.platform != "linux", reason="faults of Linux")
BOUND = 30  # seconds


@pytest.fixture(autouse=True)
def no_hang():
    """Every test here ends within the bound."""

    def expired(*_):
        raise AssertionError(f"hangs: not over after {BOUND} seconds")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(BOUND)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def png(size, depth, colour, values):
    """A PNG of one colour with `depth` bits per channel, as Pillow does not write it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    w, h = size
    row = b"\0" + struct.pack(f">{len(values)}{'H' if depth == 16 else 'B'}", *values) * w
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)
    body = zlib.compress(row * h) if w * h < 10**6 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def animated(form):
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), c) for c in ((240, 16, 32), (0, 250, 0))]
    options = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(out, form, save_all=True, append_images=frames[1:], **options)
    return out.getvalue()


def turned():
    """Red above blue when it is upright, stored on its side."""
    image = Image.new("RGB", (32, 16), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    out = io.BytesIO()
    image.save(out, "JPEG", quality=100, subsampling=0, exif=exif)
    return out.getvalue()


IMAGES = {  # bytes, and the colour of the centre
    "grayscale": (picture((90, 90, 90), mode="L"), (90, 90, 90)),
    "gray with alpha": (picture((90, 90, 90), mode="LA"), (90, 90, 90)),
    "RGBA": (picture((200, 30, 90), mode="RGBA"), (200, 30, 90)),
    "palette": (picture((200, 30, 90), mode="P", form="PNG"), None),
    "bilevel": (picture((255, 255, 255), mode="1"), (255, 255, 255)),
    "16-bit gray": (png((4, 4), 16, 0, [0x8080]), (128, 128, 128)),
    "16-bit gray, dark": (png((4, 4), 16, 0, [0x0202]), (2, 2, 2)),
    "16-bit RGB": (png((4, 4), 16, 2, [0xFFFF, 0x8080, 0x4040]), (255, 128, 64)),
    "16-bit RGBA": (png((4, 4), 16, 6, [0xFFFF, 0x8080, 0x4040, 0xFFFF]), (255, 128, 64)),
    "16-bit gray with alpha": (png((4, 4), 16, 4, [0, 0x8080]), (127, 127, 127)),
    "CMYK JPEG": (picture(mode="CMYK", form="JPEG", quality=100), (200, 30, 90)),
    "animated GIF": (animated("GIF"), (240, 16, 32)),
    "animated WebP": (animated("WEBP"), (240, 16, 32)),
    "animated PNG": (animated("PNG"), (240, 16, 32)),
    "1 x 1": (picture(size=(1, 1)), (200, 30, 90)),
    "1 x 5000": (picture(size=(1, 5000)), (200, 30, 90)),
    "5000 x 1": (picture(size=(5000, 1)), (200, 30, 90)),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_unusual_images_keep_their_colours(kind):
    data, colour = IMAGES[kind]
    found = decode_row(Bytes(data), 0, 16)
    assert not isinstance(found, str), found
    assert found.shape == (3, 16, 16)
    if colour is not None:
        assert np.abs(found[:, 8, 8].astype(int) - colour).max() <= 2


def test_photographs_are_turned_upright():
    found = decode_row(Bytes(turned()), 0, 16).astype(int)
    assert found[0, 2].mean() > 200 > 50 > found[2, 2].mean()  # red above
    assert found[2, 13].mean() > 200 > 50 > found[0, 13].mean()


JPEG = picture(size=(300, 300), form="JPEG")
UNREADABLE = {
    "zero bytes": b"",
    "a truncated JPEG": JPEG[: len(JPEG) // 2],
    "a truncated PNG": picture(size=(300, 300))[:200],
    "text named .jpg": b"dear diary\n" * 50,
    "a page of HTML": b"<!doctype html><html>404</html>",
    "a decompression bomb": png((60000, 60000), 8, 2, [0, 0, 0]),
    "a broken link": Path("missing.jpg"),
    "a link to itself": Path("bad.jpg"),
    "a folder": None,
    "a pipe": os.mkfifo,
}


@linux
@pytest.mark.parametrize("decoded", [True, False])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_files_are_skipped_and_counted(tmp_path, kind, decoded):
    for i in range(6):
        write(tmp_path / "in", f"{i}.png", picture((10 * i, 0, 0), size=(16, 16)))
    bad, what = tmp_path / "in" / "bad.jpg", UNREADABLE[kind]
    if isinstance(what, bytes):
        bad.write_bytes(what)
    elif isinstance(what, Path):
        bad.symlink_to(what)
    elif what is None:
        bad.mkdir()
    else:
        what(bad)
    source = Folder(str(tmp_path / "in"), image_size=16, cache=str(tmp_path / "cache"), decoded=decoded)
    splits = [source.load(s) for s in ("train", "test")]
    assert sum(len(s.pixels[:]) for s in splits) == (6 if decoded or what is None else 7)
    found = [*splits[0].skipped]
    assert [line.partition(":")[0] for line in found] == ([] if what is None else ["bad.jpg"])


@linux
def test_links_in_a_circle_end(tmp_path):
    for i in range(4):
        write(tmp_path / "in", f"a/{i}.png", picture((10 * i, 0, 0), size=(16, 16)))
    (tmp_path / "in" / "a" / "again").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in" / "loop")
    source = Folder(str(tmp_path / "in"), cache=str(tmp_path / "cache"))
    assert len(source.load("train")) + len(source.load("test")) == 4


@linux
@pytest.mark.parametrize("decoded", [True, False])
def test_any_file_name_is_a_file_name(tmp_path, decoded):
    names = [
        b"plain.png",
        b"new\nline.png",
        b"latin\xe9.png",
        b"tab\t and ; , \" '.png",
        "\u2603\u202e.png".encode(),
        b"-rf.png",
        b"%s{0}$.png",
    ]
    (tmp_path / "in").mkdir()
    for i, name in enumerate(names):
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name)).write_bytes(picture((10 * i, 0, 0), size=(16, 16)))
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/bad " + name)).write_bytes(b"no")
    source = Folder(str(tmp_path / "in"), test_share=0.5, cache=str(tmp_path / "cache"), decoded=decoded)
    train, test = source.load("train"), source.load("test")
    reds = torch.cat([train.pixels[:], test.pixels[:]])[:, 0, 0, 0].tolist()
    assert {10 * i for i in range(len(names))} == set(reds)
    assert len(train.skipped) == len(names)


# ---------------------------------------------------------------------------------------------- too few
def test_no_images_are_one_sentence(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="There are no images in"):
        Folder(str(tmp_path / "in")).load("train")


def test_one_image_is_one_sentence(tmp_path):
    write(tmp_path / "in", "a.png", picture())
    with pytest.raises(UserError, match="There are 1 training and 0 test images: at least 2 and 1 are needed"):
        build_data(compose("train", ["dataset=folder", f"dataset.path={tmp_path}/in"]))


def test_fewer_images_than_a_batch_are_one_sentence():
    pixels = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="10 training images, fewer than the global batch of 32: set batch_size=5 or less"):
        Loader(Images(pixels, None, None, 8), 16, 0, world_size=2)


def test_one_class_is_said_and_not_judged(tmp_path):
    for i in range(6):
        write(tmp_path / "in", f"only/{i}.png", picture(size=(16, 16)))
    source = Folder(str(tmp_path / "in"), labels=True, cache=str(tmp_path / "cache"))
    assert labelled_pair(source.load("train"), source.load("test")) == "there is only one class"
    source = Folder(str(tmp_path / "in"), cache=str(tmp_path / "cache"))
    assert labelled_pair(source.load("train"), source.load("test")) == "the images have no labels"


# ---------------------------------------------------------------------------------------------- folders
def in_child(work, *args):
    """What `work` returned in a forked process, whose mounts and rights are its own; the test is skipped where they cannot be had."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def go():
        try:
            queue.put(work(*args))
        except PermissionError as e:
            queue.put(e)

    child = context.Process(target=go)
    child.start()
    child.join(BOUND)
    if child.is_alive():
        child.kill()
        pytest.fail("hangs")
    assert child.exitcode == 0
    found = queue.get()
    if isinstance(found, PermissionError):
        pytest.skip(f"needs more rights ({found})")
    return found


def small_disk(folder, megabytes=1):
    """Mount so little at `folder`, seen by this process and its children alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    private = (1 << 14) | (1 << 18)  # MS_REC | MS_PRIVATE
    for failed in (
        libc.unshare(0x00020000),  # CLONE_NEWNS
        libc.mount(b"none", b"/", None, ctypes.c_ulong(private), None),
        libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(0), f"size={megabytes}m".encode()),
    ):
        if failed:
            raise PermissionError(os.strerror(ctypes.get_errno()))


def _load_as_nobody(folder):
    os.chmod(folder, 0o755)
    os.chmod(folder / "in" / "closed", 0)
    os.chdir(folder)
    if os.getuid() == 0:
        os.seteuid(65534)  # root may open anything
    found = Folder("in", image_size=16, cache=str(folder / "cache"), decoded=False).load("train")
    told = [*found.skipped]
    os.chdir("in/files")
    try:
        Folder("../closed")
    except UserError as e:
        told.append(str(e))
    return told


@linux
def test_a_folder_that_cannot_be_opened_is_named(tmp_path):
    for i in range(4):
        write(tmp_path / "in", f"files/{i}.png", picture(size=(16, 16)))
    write(tmp_path / "in", "closed/1.png", picture())
    found = in_child(_load_as_nobody, tmp_path)
    assert found[0] == "closed: Permission denied"
    assert found[1].startswith("dataset.path=../closed cannot be opened (Permission denied)")


@linux
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_files_that_vanish_are_skipped_and_a_folder_that_vanishes_is_one_sentence(tmp_path, kind):
    for i in range(40):
        write(tmp_path / "in", f"{i:02}.png", picture((5 * i, 0, 0), size=(16, 16)))
    images = Folder(str(tmp_path / "in"), cache=str(tmp_path / "cache"), decoded=False).load("train")
    loader = Loader(images, 4, 0, workers=2, worker_kind=kind)
    batches = iter(loader)
    next(batches)
    for i in range(0, 40, 2):
        (tmp_path / "in" / f"{i:02}.png").unlink()
    assert len([*batches]) == 8
    assert 5 <= len(images.skipped) <= 20
    assert "No such file" in images.skipped[0]
    shutil.rmtree(tmp_path / "in")
    loader.set_epoch(1)
    with pytest.raises(UserError, match=r"None of 36 files in a row could be read .*No such file.*check dataset\.path"):
        list(loader)


# ---------------------------------------------------------------------------------------------- disks, memory, workers
def _cache_on(folder, full):
    small_disk(full)
    try:
        Folder(str(folder), image_size=128, cache=str(full / "cache")).load("train")
    except UserError as e:
        return str(e), len([p for p in (full / "cache").rglob("*") if p.suffix == ".u8"])
    return "", -1


@linux
def test_a_cache_on_a_full_disk_is_one_sentence(tmp_path):
    for i in range(60):  # 3 MB when they are decoded
        write(tmp_path / "in", f"{i}.png", picture((i, 0, 0), size=(128, 128)))
    (tmp_path / "full").mkdir()
    told, left = in_child(_cache_on, tmp_path / "in", tmp_path / "full")
    assert re.match(r"Decoded images cannot be cached in .* \(No space left on device\): free space, set data\.cache .*decoded=false", told)
    assert left == 0


@pytest.mark.parametrize("damage", ["cut", "meta", "gone"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    for i in range(4):
        write(tmp_path / "in", f"{i}.png", picture((10 * i, 0, 0), size=(16, 16)))
    load = lambda: Folder(str(tmp_path / "in"), cache=str(tmp_path / "cache")).load("train").pixels  # noqa: E731
    whole = load().clone()
    (folder,) = [p for p in (tmp_path / "cache").glob("images-*") if p.is_dir()]
    if damage == "cut":
        os.truncate(folder / "pixels.u8", 100)
    elif damage == "meta":
        (folder / "meta.json").write_bytes(b"\xff{")
    else:
        (folder / "pixels.u8").unlink()
    fills, fill = [], Cache._fill
    Cache._fill = lambda self, f: fills.append(1) or fill(self, f)
    try:
        assert torch.equal(load(), whole)
    finally:
        Cache._fill = fill
    assert fills == [1]


def photographs(n, size=256, files=Bytes):
    return Images(OnDemand(files(*[picture(size=(size, size))] * n), size), None, None, size)


def _load_without_shared_memory(kind):
    small_disk("/dev/shm")
    found = [int(i) for b in Loader(photographs(40), 8, 0, workers=2, worker_kind=kind) for i in b["index"]]
    return sorted(found), _say_full.cache_info().currsize


@linux
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_full_shared_memory_slows_down_and_loses_nothing(kind):
    _say_full.cache_clear()
    found, said = in_child(_load_without_shared_memory, kind)
    assert found == list(range(40))
    assert said == (kind == "process")


class Deadly(Bytes):
    """Whose third image is the end of the process that reads it, unless that is `spared`."""

    spared, number = os.getpid(), signal.SIGKILL

    def read(self, row):
        if row == 2 and os.getpid() != self.spared:
            os.kill(os.getpid(), self.number)
        return super().read(row)


class BusError(Deadly):
    number = signal.SIGBUS


@linux
@pytest.mark.parametrize("files", [Deadly, BusError])
def test_a_killed_worker_is_one_sentence(files):
    with pytest.raises(UserError, match=r"A data worker \(pid.*: set data\.workers lower, or data\.worker_kind=thread"):
        list(Loader(photographs(20, 16, files), 4, 0, workers=2, worker_kind="process"))


# ---------------------------------------------------------------------------------------------- parquet
def table(folder, rows=40, group=10):
    images = [{"bytes": picture((5 * i, 0, 0), size=(16, 16)), "path": None} for i in range(rows)]
    pq.write_table(pa.table({"image": images}), folder / "a.parquet", row_group_size=group)
    return folder / "a.parquet"


@pytest.mark.parametrize("decoded", [True, False])
def test_damaged_rows_of_parquet_are_skipped_and_counted(tmp_path, decoded):
    file = table(tmp_path)
    column = pq.read_metadata(file).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(file.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(data)
    source = Parquet(str(tmp_path), image_size=16, cache=str(tmp_path / "cache"), decoded=decoded)
    train, test = source.load("train"), source.load("test")
    reds = set(torch.cat([train.pixels[:], test.pixels[:]])[:, 0, 0, 0].tolist())
    assert reds == {5 * i for i in range(40) if not 10 <= i < 20}
    assert sorted({line.partition(":")[0] for line in train.skipped}) == [f"row {i}" for i in range(10, 20)]


@pytest.mark.parametrize("how", ["cut", "text", "empty"])
def test_a_damaged_file_of_parquet_is_one_sentence(tmp_path, how):
    file = table(tmp_path)
    file.write_bytes({"cut": file.read_bytes()[:-20], "text": b"PAR1 no", "empty": b""}[how])
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as parquet"):
        Parquet(str(tmp_path)).load("train")


# ---------------------------------------------------------------------------------------------- the page
def test_every_line_of_the_page_has_its_test():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)` in `(tests/test_\w+\.py)`", text)
    lines = [x for x in text.splitlines() if x.startswith("| ") and not x.startswith(("| what happens", "| ---"))]
    assert len(named) >= len(lines) > 20
    for test, file in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test
    here = re.findall(r"^def (test_\w+)\(", Path(__file__).read_text(encoding="utf-8"), re.MULTILINE)
    assert set(here) - {"test_every_line_of_the_page_has_its_test"} <= {test for test, _ in named}

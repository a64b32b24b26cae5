"""Tars and litdata chunks: read in any order, written alike, and never trusted."""

import io
import json
import multiprocessing as mp
import os
import pickle
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ssl_zoo.data import tars
from ssl_zoo.data.shards import ShardSource
from ssl_zoo.errors import UserError


def picture(red, size=(16, 16), form="PNG"):
    out = io.BytesIO()
    Image.new("RGB", size, (red, 30, 90)).save(out, form)
    return out.getvalue()


def write_tar(file, members, **header):
    """members: {name: bytes}, or (name, bytes) pairs where names repeat."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in header.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return file


def samples(count, first=0):
    return {f"{i:04d}.{kind}": data for i in range(first, first + count) for kind, data in (("png", picture(i)), ("cls", b"%d" % (i % 3)))}


def reds(images):
    return images.pixels[:, 0, 0, 0].tolist()


def write_chunks(folder, items, chunk_bytes=1000):
    writer = pytest.importorskip("litdata.streaming.writer").BinaryWriter(str(folder), chunk_bytes=chunk_bytes)
    for i, item in enumerate(items):
        writer.add_item(i, item)
    writer.done()
    os.replace(folder / "0.index.json", folder / "index.json")
    return folder


# ---------------------------------------------------------------------------------------------- tars
def test_samples_share_a_stem(tmp_path):
    about = {"label": "cat", "captions": ["a cat", "another"]}
    images = {"a/1.jpg": picture(0, form="JPEG"), "a/b/2.webp": picture(10, form="WEBP"), "3.JPEG": picture(20, form="JPEG")}
    members = images | {"a/1.json": json.dumps(about).encode(), "a/b/2.cls": b"dog\n", "a/b/2.txt": b"a dog", "._3.jpg": b""}
    write_tar(tmp_path / "some.tar", members)
    source = ShardSource(str(tmp_path / "some.tar"), test_share=0.3)
    files, labels, captions = source._index(source.train)
    assert [files.name(i) for i in range(3)] == ["some.tar: a/1.jpg", "some.tar: a/b/2.webp", "some.tar: 3.jpeg"]
    assert labels.to_pylist() == ["cat", "dog", None]
    assert captions.to_pylist() == [["a cat", "another"], ["a dog"], None]
    assert files.read(1) == picture(10, form="WEBP")
    assert source.load("train").classes == ["cat", "dog"]


def test_splits_labels_and_blocks(tmp_path):
    write_tar(tmp_path / "train" / "0.tar", samples(5))
    write_tar(tmp_path / "train" / "1.tar", samples(4, 5))
    write_tar(tmp_path / "val-000.tar", samples(2, 50))
    source = ShardSource(str(tmp_path))
    train, test = source.load("train"), source.load("test")
    assert (reds(train), reds(test)) == (list(range(9)), [50, 51])
    assert (train.classes, train.labels.tolist(), test.labels.tolist()) == (["0", "1", "2"], [0, 1, 2] * 3, [2, 0])
    assert source._index(source.train)[0].blocks == [5, 4]
    assert ShardSource(str(tmp_path), labels=False).load("train").labels is None


def test_without_a_test_split_images_are_held_out(tmp_path):
    write_tar(tmp_path / "some.tar", samples(20))
    source = ShardSource(str(tmp_path), test_share=0.25)
    train, test = source.load("train"), source.load("test")
    assert (len(train), sorted(reds(train) + reds(test))) == (15, list(range(20)))


def test_numbers_are_classes_in_their_order(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{i}.{k}": d for i in (2, 10, 1) for k, d in (("png", picture(i)), ("cls", str(i).encode()))})
    source = ShardSource(str(tmp_path))
    assert source._classes.names == ["1", "2", "10"]
    assert source._numbers(source.train).tolist() == [1, 2, 0]


def test_an_image_beside_its_mask_and_names_with_dots(tmp_path):
    names = ["1.png", "1.mask.png", "2024.05.png", "2024.06.png"]
    texts = {"1.cls": b"0", "2024.05.cls": b"1", "2024.cls": b"2"}
    source = ShardSource(str(write_tar(tmp_path / "a.tar", {n: picture(i) for i, n in enumerate(names)} | texts)))
    files, labels, _ = source._index(source.train)
    assert [files.read(i) for i in range(len(files))] == [picture(0), picture(2), picture(3)]
    assert labels.to_pylist() == ["0", "1", "2"]


def test_labels_that_are_none_are_named(tmp_path, caplog):
    bad = [b'{"label": [1]}', b"{", b"[" * 100_000, b'{"label": 2.0}', b'{"label": null}', b'{"caption": 7}', b'{"label": "\\ud800"}']
    members = {f"{i}.{k}": d for i, text in enumerate(bad) for k, d in (("png", picture(i)), ("json", text))}
    source = ShardSource(str(write_tar(tmp_path / "a.tar", members)))
    assert source._index(source.train)[1].to_pylist() == [None, None, None, "2", None, None, "?"]
    assert "1 labels that are neither text nor a whole number: 0" in caplog.text
    assert "2 .json files that cannot be read: 1, 2" in caplog.text


def test_labels_may_be_insisted_on(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": picture(1), "2.png": picture(2)})
    with pytest.raises(UserError, match="labels=true needs labels"):
        ShardSource(str(tmp_path), labels=True).load("train")


# ---------------------------------------------------------------------------------------------- hostile tars
def test_names_never_become_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["../../up.png", "/tmp/absolute.png", "a/../../b.png", "\x1b[31mred.png", "sur\udcffrogate.png"]
    write_tar(tmp_path / "in" / "a.tar", {n: picture(i) for i, n in enumerate(names)})
    source = ShardSource(str(tmp_path / "in"), test_share=0.2, cache=str(tmp_path / "cache"))
    assert len(source.load("train")) == 4
    shown = [source._index(source.train)[0].name(i) for i in range(5)]
    assert shown[0] == "a.tar: ../../up.png"
    assert all(s.isprintable() for s in shown)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "in"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_left_out(tmp_path, caplog, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, name in enumerate(("1.png", "2.png")):
            info = tarfile.TarInfo(name)
            info.size = len(picture(i))
            tar.addfile(info, io.BytesIO(picture(i)))
        link = tarfile.TarInfo("3.png")
        link.type, link.linkname = kind, "/etc/passwd"
        tar.addfile(link)
    source = ShardSource(str(tmp_path))
    assert len(source._index(source.train)[0]) == 2
    assert "1 members that are links or devices, left out: 3.png" in caplog.text


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_pickles_are_never_opened(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Bomb())
    members = {"1.png": picture(1), "2.png": picture(2)} | {f"1.{k}": bomb for k in ("pkl", "pyd", "pth", "pickle", "npy", "pt")}
    members["2.pkl"] = bytes(tars.LONGEST_TEXT + 1)
    source = ShardSource(str(write_tar(tmp_path / "a.tar", members)))
    source.load("train")
    assert not (tmp_path / "exploded").exists()
    assert not caplog.text  # not even looked at
    assert len(source._index(source.train)[0]) == 2


def test_of_a_name_twice_the_last_counts(tmp_path, caplog):
    source = ShardSource(str(write_tar(tmp_path / "a.tar", [("1.png", picture(1)), ("2.png", picture(2)), ("1.png", picture(9))])))
    files = source._index(source.train)[0]
    assert [files.read(i) for i in range(len(files))] == [picture(2), picture(9)]
    assert "1 members of the same name, of which the last counts: 1.png" in caplog.text


def test_a_cut_tar_gives_what_is_whole(tmp_path, caplog):
    whole = write_tar(tmp_path / "a.tar", samples(10)).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 512 * 4 * 6 + 540])  # a sample is 2 headers and 2 blocks: cut within the seventh image
    source = ShardSource(str(tmp_path))
    assert len(source._index(source.train)[0]) == 6
    assert caplog.text.count("breaks off") == 1
    caplog.clear()
    ShardSource(str(tmp_path)).load("train")
    assert caplog.text.count("breaks off") == 1  # from the cached index as well
    (tmp_path / "a.tar").write_bytes(whole[: 512 * 4 * 6])  # between two members
    assert len(ShardSource(str(tmp_path))._index(ShardSource(str(tmp_path)).train)[0]) == 6


def test_damage_within_a_tar_is_told(tmp_path, caplog):
    data = bytearray(write_tar(tmp_path / "a.tar", samples(10)).read_bytes())
    data[512 * 4 * 6 : 512 * 4 * 6 + 512] = os.urandom(512)
    (tmp_path / "a.tar").write_bytes(data)
    source = ShardSource(str(tmp_path))
    assert len(source._index(source.train)[0]) == 6
    assert "breaks off" in caplog.text


@pytest.mark.parametrize("size", [2**62, -1024, -(2**40), 3 * 10**9])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
def test_forged_sizes_end_the_tar(tmp_path, caplog, size, kind):
    """Python's own tarfile would allocate such a size, or go round in circles."""
    good = write_tar(tmp_path / "good.tar", samples(3)).read_bytes().rstrip(b"\0")
    good += bytes(-len(good) % 512)
    header = tarfile.TarInfo("x.png")
    header.size, header.type = 0, kind
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = bytes([128 if size >= 0 else 255]) + (size % 256**11).to_bytes(11, "big")
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
    (tmp_path / "good.tar").write_bytes(good + bytes(block) + bytes(1024))
    source = ShardSource(str(tmp_path))
    assert len(source._index(source.train)[0]) == 3
    assert "breaks off" in caplog.text


def test_a_header_is_never_read_whole_when_it_claims_gigabytes(tmp_path):
    with open(write_tar(tmp_path / "a.tar", samples(1)), "rb") as file, pytest.raises(tarfile.ReadError):
        tars._Headers(file).read(3 * 10**9)


def test_members_too_large_are_left_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tars, "LARGEST", 1000)
    members = {"1.png": picture(1), "2.png": picture(2) + bytes(1000), "1.cls": b"1" * (tars.LONGEST_TEXT + 1)}
    source = ShardSource(str(write_tar(tmp_path / "a.tar", members)))
    assert source._index(source.train)[1].to_pylist() == [None]
    assert "2 members that are too large, left out: 2.png, 1.cls" in caplog.text


def test_images_that_are_none_are_skipped(tmp_path):
    members = samples(4) | {"empty.png": b"", "wild.jpg": b"\xff\xd8\xff nothing"}
    train = ShardSource(str(write_tar(tmp_path / "a.tar", members)), test_share=0.25).load("train")
    assert (len(train), len(train.labels)) == (3, 3)
    assert sorted(s.partition(":")[2].split(":")[0].strip() for s in train.skipped) == ["empty.png", "wild.jpg"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tar", b"no tar" * 500, "cannot be read as a tar"),
        ("a.tar", b"", "There are no images"),
        ("a.tar", bytes(10240), "There are no images"),
        ("a.tar", b"\x1f\x8b" + bytes(600), "compressed with gzip.*unpack it with gunzip"),
        ("a.tar.gz", b"\x1f\x8b", "compressed tar, whose images cannot be read one by one: unpack"),
        ("a.txt", b"", "There are no shards"),
        ("index.json", b"{", "cannot be read as an index of litdata"),
        ("meta.json", b"[]", "meta.json cannot be read"),
        ("meta.json", b'{"version": 99, "classes": null}', "newer ssl-zoo"),
    ],
)
def test_what_is_no_shard_is_said(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        ShardSource(str(tmp_path)).load("train")


def test_hidden_folders_hold_no_shards(tmp_path):
    write_tar(tmp_path / ".half" / "a.tar", samples(4))
    with pytest.raises(UserError, match="There are no shards"):
        ShardSource(str(tmp_path))


# ---------------------------------------------------------------------------------------------- the index
def test_the_index_is_made_once_and_follows_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_zoo.data.cache.TICK", 0)  # files count as written long ago
    file, cache = write_tar(tmp_path / "in" / "a.tar", samples(4)), tmp_path / "cache"
    count = lambda: len(ShardSource(str(tmp_path / "in"), cache=str(cache))._index(((file, tars.scan),))[0])  # noqa: E731
    assert count() == 4
    scans = []
    scan = tars.scan
    monkeypatch.setattr(tars, "scan", lambda path: scans.append(path) or scan(path))
    assert (count(), scans) == (4, [])
    for kept in cache.glob("index-*.parquet"):
        kept.write_bytes(b"damaged")
    assert count() == 4
    write_tar(file, samples(6))
    assert count() == 6


def test_a_rewritten_tar_of_the_same_size_and_time_is_indexed_anew(tmp_path, monkeypatch):
    file, cache = tmp_path / "in" / "a.tar", tmp_path / "cache"
    for labels in ("01", "10"):
        write_tar(file, [m for i, c in enumerate(labels) for m in ((f"{i}.png", picture(i)), (f"{i}.cls", c.encode()))])
        os.utime(file, ns=(10**18, 10**18))
        monkeypatch.setattr("ssl_zoo.data.cache.TICK", 0)
        assert ShardSource(str(tmp_path / "in"), cache=str(cache), test_share=0.5)._index(((file, tars.scan),))[1].to_pylist() == list(
            labels
        )


def test_an_index_that_cannot_be_cached_is_used_all_the_same(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("ssl_zoo.data.cache.TICK", 0)
    write_tar(tmp_path / "in" / "a.tar", samples(4))
    (tmp_path / "file").write_text("")
    source = ShardSource(str(tmp_path / "in"), cache=str(tmp_path / "file"))
    assert len(source._index(source.train)[0]) == 4
    assert "cannot be cached" in caplog.text


def _sum_there(files, rows):
    return [files.read(r) for r in rows]


def test_rows_are_read_from_any_thread_and_process(tmp_path):
    for i in range(5):
        write_tar(tmp_path / f"{i}.tar", samples(20, 20 * i))
    source = ShardSource(str(tmp_path))
    files = source._index(source.train)[0]
    rows = np.random.RandomState(0).permutation(len(files)).tolist()
    expected = [picture(r) for r in rows]
    threads = threading.active_count()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(files.read, rows)) == expected
    for method in ("fork", "spawn"):
        with mp.get_context(method).Pool(1) as pool:
            assert pool.apply(_sum_there, (files, rows)) == expected
    assert threading.active_count() == threads


def test_a_file_that_changes_under_the_run_is_an_error(tmp_path):
    file = write_tar(tmp_path / "a.tar", samples(4))
    source = ShardSource(str(tmp_path))
    files = source._index(source.train)[0]
    write_tar(file, samples(8))
    with pytest.raises(OSError, match="has changed"):
        files.read(0)


# ---------------------------------------------------------------------------------------------- litdata
def test_chunks_of_others(tmp_path):
    """As litdata.optimize leaves them: rows of plain values (in Arrow), wrapped files, lists."""
    types = pytest.importorskip("litdata.types")
    layouts = {
        "plain": lambda i: {"image": picture(i), "label": i % 3, "caption": f"number {i}"},
        "file": lambda i: {"jpg": types.File(bytes=picture(i)), "class": i % 3, "text": f"number {i}", "width": 16},
        "list": lambda i: [picture(i), i % 3, f"number {i}"],
    }
    for name, item in layouts.items():
        source = ShardSource(str(write_chunks(tmp_path / name, [item(i) for i in range(40)])))
        files, labels, captions = source._index(source.train)
        assert [files.read(i) for i in range(40)] == [picture(i) for i in range(40)], name
        assert labels.to_pylist() == [str(i % 3) for i in range(40)], name
        assert captions.to_pylist() == [[f"number {i}"] for i in range(40)], name
        assert len(files.blocks) > 1
        assert sum(files.blocks) == 40


def index_of(folder, change):
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i["config"].update(data_format=["bytes", "pickle"]), "stores 'pickle', which is not read"),
        (lambda i: i["config"].update(data_format=["tensor", "int"]), "stores 'tensor'"),
        (lambda i: i["config"].update(compression="zstd"), "compression=zstd"),
        (lambda i: i["config"].update(encryption={"a": 1}), "encryption="),
        (lambda i: i["config"].update(item_loader="TokensLoader"), "TokensLoader"),
        (lambda i: i["config"].update(data_format=["int", "int"]), "has no field 'image'"),
        (lambda i: i["config"].update(data_format=None), "cannot be read as an index"),
        (lambda i: i["config"].update(data_spec="[1, {}]"), "cannot be read as an index"),
        (lambda i: i["config"].update(data_format=["bytes"]), "nested samples"),
        (lambda i: i.pop("chunks"), "cannot be read as an index"),
        (lambda i: i.update(chunks=7), "cannot be read as an index"),
        (lambda i: i["chunks"][0].update(filename="../secret.bin"), "which cannot be"),
        (lambda i: i["chunks"][0].update(filename="/etc/passwd"), "which cannot be"),
        (lambda i: i["chunks"][0].update(filename="gone.bin"), "which is not beside it"),
        (lambda i: i["chunks"][0].update(chunk_size=-5), "which cannot be"),
        (lambda i: i["chunks"][0].update(chunk_size=True), "which cannot be"),
    ],
)
def test_a_hostile_index_is_refused(tmp_path, change, message):
    write_chunks(tmp_path / "a", [{"image": picture(i), "label": i} for i in range(10)])
    index_of(tmp_path / "a", change)
    with pytest.raises(UserError, match=message):
        ShardSource(str(tmp_path / "a")).load("train")


@pytest.mark.parametrize("plain", [True, False])
def test_damaged_chunks_give_what_is_whole_or_say_so(tmp_path, plain, caplog):
    types = pytest.importorskip("litdata.types")
    image = (lambda i: picture(i)) if plain else (lambda i: types.File(bytes=picture(i)))
    write_chunks(tmp_path, [{"image": image(i), "label": i} for i in range(10)], chunk_bytes=100_000)
    file = tmp_path / "chunk-0-0.bin"
    whole = file.read_bytes()
    random = np.random.RandomState(0)
    for trial in range(60):
        data = bytearray(whole)
        for place in random.randint(0, len(data), 8) if trial % 2 else random.randint(0, 60, 3):
            data[place] = random.randint(256)
        file.write_bytes(data[: len(data) - (trial % 5) * 37])
        try:
            source = ShardSource(str(tmp_path), cache=str(tmp_path / f"cache{trial}"))
            files = source._index(source.train)[0]
        except UserError as e:
            assert "\n" not in str(e)  # noqa: PT017
            continue
        assert all(len(files.read(i)) == files.size[i] for i in range(len(files)))
    if plain:
        ends = np.cumsum([0, *(len(picture(i)) for i in range(10))]).astype("<i4")
        ends[5] = 2**30
        file.write_bytes(whole.replace(ends[[0, 1, 2, 3, 4]].tobytes(), ends[[0, 1, 2, 3, 5]].tobytes()))
        with pytest.raises(UserError, match="cannot be read as a chunk"):
            ShardSource(str(tmp_path)).load("train")
    else:
        file.write_bytes(whole[:-50])
        assert len(ShardSource(str(tmp_path))._index(ShardSource(str(tmp_path)).train)[0]) == 9
        assert "1 images that are cut or damaged, left out: item 9" in caplog.text


def test_reading_chunks_needs_no_litdata(tmp_path, monkeypatch):
    write_chunks(tmp_path, [{"image": picture(i), "label": i} for i in range(10)])
    monkeypatch.setitem(__import__("sys").modules, "litdata", None)
    assert len(ShardSource(str(tmp_path)).load("train")) == 9

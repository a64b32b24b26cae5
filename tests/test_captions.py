"""Captions: from tables and text files in a folder, from parquet and shards, cleaned, and made of the names of classes."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, needs, numbered, picture, write
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_zoo.config import compose, conf_dir, plain
from ssl_zoo.data import caption_tables, captioned_folder
from ssl_zoo.data.caption_lines import Notes
from ssl_zoo.data.caption_tables import read_table
from ssl_zoo.data.captions import Counts, captioned, cleaned, prompted, prompted_too, templates
from ssl_zoo.data.folder import Folder
from ssl_zoo.data.pack import pack
from ssl_zoo.data.parquet import Parquet
from ssl_zoo.data.shapes import Shapes
from ssl_zoo.data.shards import ShardSource
from ssl_zoo.errors import UserError
from ssl_zoo.fingerprint import changes, config_hash, group_hash
from ssl_zoo.rules import RULES
from ssl_zoo.saved import load_run, save_config

A, B = ["a cat", "it sleeps"], ["a dog"]


def photos(folder, *names):
    """A picture under each name, whose red is ten times its number."""
    for i, name in enumerate(names):
        write(folder, name, picture((10 * i, 0, 0), size=(16, 16)))
    return folder


def told(folder, split="train", **options):
    """{number of a picture: its captions} of a split, and what was left out."""
    images = Folder(str(folder), **options).load(split)
    return images.captions and dict(zip((images.pixels[:, 0, 0, 0] // 10).tolist(), images.captions, strict=True)), images.skipped


def both(folder, **options):
    train, skipped = told(folder, **options)
    test, _ = told(folder, "test", **options)
    return {**(train or {}), **(test or {})}, skipped


# ---------------------------------------------------------------------------------------------- tables
TABLES = {
    "metadata.csv": b"file_name,caption\na.png,a cat\na.png,it sleeps\nb.png,a dog\n",
    "metadata.jsonl": b'{"file_name": "a.png", "captions": ["a cat", "it sleeps"]}\n{"file_name": "b.png", "text": "a dog", "id": 3}\n',
    "captions.csv": b"\xef\xbb\xbfImage ;Caption_1;width; caption_2\r\na.png;a cat;7;it sleeps\r\n\r\n"
                    b"b.png;\"a dog\";7\r\nb.png;a dog;7;a dog\r\n",
    "captions.jsonl": b'\xef\xbb\xbf{"path": "./a.png", "caption": "a cat"}\r\n{"path": "x/..//a.png", "caption": "it sleeps"}\r\n'
                      b'{"path": ".\\\\b.png", "caption": "a dog"}',
    "captions.json": b'{"a.png": ["a cat", "it sleeps"], "b.png": "a dog"}',
}  # fmt: skip
OTHERS = {
    "list.json": json.dumps([{"image": "a.png", "captions": A}, {"image": "b.png", "caption": "a dog"}]).encode(),
    "coco.json": json.dumps({"images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
                             "annotations": [{"image_id": i, "caption": c} for i, c in ((7, A[0]), (9, B[0]), (7, A[1]))]}).encode(),
    "flickr.csv": b"image_name| comment_number| comment\na.png| 0| a cat\na.png| 1| it sleeps\nb.png| 0| a dog\n",
    "kaggle.txt": b"image,caption\na.png,a cat\na.png,it sleeps\nb.png,a dog\n",
    "mac.csv": b"file,caption\ra.png,a cat\ra.png,it sleeps\rb.png,a dog",
    "excel.csv": "file_name\tcaption\na.png\ta cat\na.png\tit sleeps\nb.png\ta dog\n".encode("utf-16"),
    "raw.csv": b'filename,captions\na.png,"[""a cat"", ""it sleeps""]"\nb.png,a dog\n',
}  # fmt: skip


@pytest.mark.parametrize("name", [*TABLES, *OTHERS])
def test_every_kind_of_table(tmp_path, name):
    write(photos(tmp_path, "a.png", "b.png", "c.png"), name, (TABLES | OTHERS)[name])
    found, skipped = both(tmp_path, **({} if name in TABLES else {"captions": name}))
    assert {i: [c.strip() for c in said] for i, said in found.items()} == {0: A, 1: B, 2: []}
    assert not [s for s in skipped if "not an image" in s or "name" in s]


def test_the_folder_of_hugging_face(tmp_path):
    photos(tmp_path, "train/a.png", "train/deep/b.png", "test/a.png")
    write(tmp_path, "train/metadata.csv", b"file_name,text\na.png,a cat\ndeep/b.png,a dog\n")
    write(tmp_path, "test/metadata.jsonl", b'{"file_name": "a.png", "text": "another cat"}\n')
    assert told(tmp_path) == ({0: ["a cat"], 1: B}, [])
    assert told(tmp_path, "test") == ({2: ["another cat"]}, [])
    top = photos(tmp_path / "top", "train/a.png", "train/deep/b.png", "test/a.png", "val/c.png")
    write(top, "metadata.csv", b"file_name,text\ntrain/a.png,a cat\ntrain/deep/b.png,a dog\ntest/a.png,another cat\nval/c.png,unread\n")
    assert told(top) == ({0: ["a cat"], 1: B}, [])
    assert told(top, "test") == ({2: ["another cat"]}, [])


def test_a_table_without_captions_is_no_table_of_captions(tmp_path):
    write(photos(tmp_path, "a.png", "b.png"), "metadata.csv", b"file_name,width\na.png,3\n")
    found, skipped = told(tmp_path)
    assert found is None
    assert any("begins with 'file_name,width'" in s for s in skipped)
    write(tmp_path, "captions.csv", TABLES["metadata.csv"])
    assert both(tmp_path)[0] == {0: A, 1: B}
    with pytest.raises(UserError, match="begins with 'file_name,width', where the names of its columns should stand"):
        Folder(str(tmp_path), captions="metadata.csv").load("train")
    assert told(tmp_path, captions=None)[0] is None
    assert "captions.csv: not an image file name" in told(tmp_path, captions=None)[1]


def test_columns_of_one_name_are_all_read(tmp_path):
    for head in ("file_name,caption,caption", "file_name,Caption,caption"):
        (tmp_path / "said.csv").write_text(f"{head}\na.png,first,second\n")
        notes = Notes()
        assert read_table(tmp_path / "said.csv", tmp_path, notes) == {"a.png": ["first", "second"]}, head


def test_names_without_folders_and_tables_elsewhere(tmp_path, monkeypatch):
    photos(tmp_path / "data", "images/a.png", "images/b.png", "more/c.png", "images/c.png")
    write(tmp_path, "said.csv", b"file_name,caption\na.png,a cat\nimages/b.png,a dog\nc.png,which one\n")
    monkeypatch.chdir(tmp_path)
    found, skipped = both(tmp_path / "data", captions="said.csv")
    assert found == {0: ["a cat"], 1: B, 2: [], 3: []}
    assert skipped == ["captions: 1 rows whose file name fits several images: c.png"]
    write(tmp_path, "absolute.csv", f"file_name,caption\n{tmp_path}/data/images/a.png,a cat\n".encode())
    assert both(tmp_path / "data", captions="absolute.csv") == ({0: ["a cat"], 1: [], 2: [], 3: []}, [])


FAULTS = {
    "a.png,a cat\ngone.png,a ghost\n": "1 rows that name no image in the folder: gone.png",
    "a.png,a cat\n../a.png,a ghost\n/etc/passwd,x\n": "2 rows that name no file in the folder: line 3 ../a.png, line 4 /etc/passwd",
    "a.png,a cat\nx/../../a.png,a ghost\n": "1 rows that name no file in the folder",
    "a.png,a cat\na.png,a cat\na.png, a cat\n": "1 captions that are there twice: line 3",
    "a.png,a cat\nb.png,a dog, asleep\n": "1 rows with more cells than columns (put captions in quotes): line 3",
    "a.png,a cat\nb.png\n": "1 rows that are cut: line 3",
    'a.png,a cat\nb.png,"a dog\n': "1 rows whose quotes do not match: line 3",
    'b.png,"a 5" nail\na.png,a cat\n': "1 rows whose quotes do not match: line 2",
    "a.png,a cat\nb.png,chien \udce9tendu\n": "1 captions that are not UTF-8 (save the file as UTF-8): line 3",
    "a.png,a cat\n,nothing\n": "1 rows that name no file in the folder: line 3",
    "a.png,a cat\n" + "b" * 1_200_000 + ",long\n": "1 lines longer than 1 MB: line 3",
}


@pytest.mark.parametrize("rows", FAULTS, ids=[f"{i}" for i in range(len(FAULTS))])
def test_faulty_rows_are_counted_and_named(tmp_path, rows, caplog):
    write(photos(tmp_path, "a.png", "b.png"), "captions.csv", f"file_name,caption\n{rows}".encode(errors="surrogateescape"))
    found, skipped = both(tmp_path)
    assert found[0][0] == "a cat"
    assert found[1] == []
    assert any(FAULTS[rows] in s for s in skipped), skipped
    assert FAULTS[rows] in caplog.text


def test_faulty_lines_of_json(tmp_path):
    lines = [
        b'{"file_name": "a.png", "caption": "a cat"}', b"{", b"[1]", b"[" * 100_000, b'{"caption": "of nothing"}', b'{"file_name": 3}',
        b'{"file_name": "b.png"}', b'{"file_name": "b.png", "caption": [1, null, "\\ud800"]}', b"\xff\xfe\x00", b"9" * 5000,
    ]  # fmt: skip
    write(photos(tmp_path, "a.png", "b.png"), "captions.jsonl", b"\n".join(lines))
    found, skipped = both(tmp_path)
    assert found == {0: ["a cat"], 1: []}
    assert [s.partition(": ")[2].split(":")[0] for s in skipped] == [
        "5 lines that are no JSON table", "2 rows that name no file in the folder", "3 rows without a caption",
        "1 captions that are not UTF-8 (save the file as UTF-8)",
    ]  # fmt: skip


def test_a_quote_that_is_never_closed_costs_one_row(tmp_path):
    rows = [f'{i}.png,"number {i}' if i in (3, 150) else f"{i}.png,number {i}" for i in range(300)]
    write(tmp_path, "t.csv", ("file_name,caption\n" + "\n".join(rows) + '\nlast.png,"in two\nlines, ""quoted"""\n').encode())
    notes = Notes()
    found = read_table(tmp_path / "t.csv", tmp_path, notes)
    assert len(found) == 299
    assert found["last.png"] == ['in two\nlines, "quoted"']
    assert notes.lines("t.csv") == ["t.csv: 2 rows whose quotes do not match: line 5, line 152"]


@pytest.mark.parametrize(
    ("name", "data", "answer"),
    [
        ("t.csv", b"", "begins with ''"),
        ("t.csv", b"a.png,a cat\n", "begins with 'a.png,a cat', where the names of its columns should stand"),
        ("t.jsonl", b"a.png,a cat\n", 'holds no line such as {"file_name": "1.jpg", "caption": "a cat"}'),
        ("t.json", b"{", "cannot be read as JSON"),
        ("t.json", b"[" * 100_000, "cannot be read as JSON"),
        ("t.json", b"3", "is neither a list of tables nor a table"),
        ("t.json", b"\xff\xfe\x00\xd8", "cannot be read as JSON"),
        ("t.csv", b"file_name,caption\nz.png,a cat\n", "gives no image in .* a caption .*that name no image in the folder: z.png"),
    ],
)
def test_what_is_no_table_is_one_sentence(tmp_path, name, data, answer):
    write(photos(tmp_path / "d", "a.png", "b.png"), f"../{name}", data)
    with pytest.raises(UserError, match=answer):
        Folder(str(tmp_path / "d"), captions=str(tmp_path / name)).load("train")


def test_places_that_hold_no_table(tmp_path, monkeypatch):
    photos(tmp_path, "a.png", "b.png")
    (tmp_path / "inner").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for setting, answer in (("nowhere.csv", "does not exist"), ("inner", "is no file"), ("pipe.csv", "is no file"), ("x" * 5000, "exist")):
        with pytest.raises(UserError, match=rf"dataset\.captions={setting} {answer}|{answer}"):
            Folder(str(tmp_path), captions=setting).load("train")
    monkeypatch.setattr(caption_tables, "LARGEST_JSON", 10)
    write(tmp_path, "big.json", b'{"a.png": "a cat"}')
    with pytest.raises(UserError, match="write it as JSONL"):
        Folder(str(tmp_path), captions="big.json").load("train")


# ---------------------------------------------------------------------------------------------- sidecars
def test_text_files_beside_the_images(tmp_path):
    photos(tmp_path, "a.png", "deep/b.jpg", "deep/c.png", "d.png", "e.png", "f.png")
    texts = {"a.txt": "a cat\r\n\nit sleeps\na cat\n".encode("utf-8-sig"), "deep/b.TXT": b"a dog", "d.txt": b" \n", "e.txt": b"\xe9t\xe9",
             "notes.txt": b"of nothing", "c.txt": b"of another folder"}  # fmt: skip
    for name, data in texts.items():
        write(tmp_path, name, data)
    (tmp_path / "f.txt").mkdir()
    found, skipped = both(tmp_path)
    assert found == {0: A, 1: B, 2: [], 3: [], 4: [], 5: []}
    assert sorted(skipped) == [
        "c.txt: not an image file name", "captions: 1 text files left out (empty): d.txt",
        "captions: 1 text files left out (not UTF-8: save it as UTF-8): e.txt", "notes.txt: not an image file name",
    ]  # fmt: skip
    assert told(tmp_path, captions=None)[0] is None


def test_text_files_of_each_split(tmp_path):
    photos(tmp_path, "train/a.png", "train/b.png", "test/a.png")
    for name, text in (("train/a", b"a cat"), ("train/b", b"a dog"), ("test/a", b"another")):
        write(tmp_path, f"{name}.txt", text)
    assert told(tmp_path) == ({0: ["a cat"], 1: B}, [])
    assert told(tmp_path, "test") == ({2: ["another"]}, [])


@pytest.mark.parametrize("decoded", [True, False])
def test_captions_beside_images_that_cannot_be_read(tmp_path, decoded):
    photos(tmp_path, *(f"train/{i}.png" for i in range(6)), "test/a.png")
    write(tmp_path, "train/2.png", b"broken")
    write(tmp_path, "train/metadata.csv", ("file_name,text\n" + "".join(f"{i}.png,number {i}\n" for i in range(6))).encode())
    images = Folder(str(tmp_path), decoded=decoded).load("train")
    known = [f"{int(red) // 10}" for red in images.pixels[:][:, 0, 0, 0]]
    said = [c.split()[1] for (c,) in images.captions]
    assert said == (["0", "1", "3", "4", "5"] if decoded else ["0", "1", "2", "3", "4", "5"])
    assert known == [n if n != "2" else "3" for n in said]  # on demand, the next image takes its place


def test_a_folder_without_captions_is_only_listed(tmp_path, monkeypatch):
    """Nothing is looked at for each image where there is no table and no text file."""
    photos(tmp_path, *(f"{i}.png" for i in range(5)))
    write(tmp_path, "notes.md", b"x")
    for name in ("_match", "_read"):
        monkeypatch.setattr(captioned_folder, name, None)

    class Untouched:
        def __iter__(self):
            raise AssertionError("the images were gone through")

    found = captioned_folder.captions_of(tmp_path, "auto", {tmp_path: (Untouched(), ["notes.md"])}, [])
    assert (found.of, found.used, found.notes) == ({tmp_path: None}, set(), [])
    assert told(tmp_path) == (None, ["notes.md: not an image file name"])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["metadata.csv", "metadata.jsonl", "captions.json", "a.txt"]),
    st.one_of(
        st.binary(max_size=400),
        st.text(max_size=200).map(lambda s: s.encode("utf-16", "surrogatepass")),
        st.lists(st.sampled_from(["caption", ",", "\n", '"', "a.png", ";", "{", "}", "[", ":", "\r", "\ud800", "\\"]), max_size=40)
        .map("".join).map(lambda s: f"file_name,caption\n{s}".encode(errors="surrogatepass")),
        st.dictionaries(st.sampled_from(["file_name", "caption", "captions", "images", "annotations"]),
                        st.recursive(st.none() | st.just("a.png") | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)))
        .map(lambda d: json.dumps(d).encode()),
    ),
)  # fmt: skip
def test_wild_bytes_are_captions_or_a_reason(name, data):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / name).write_bytes(data)
        roots = {folder: (["a.png", "b.png"], [name])}
        found = captioned_folder.captions_of(folder, "auto", roots, [])
        rows = found.of[folder]
        assert rows is None or (len(rows) == 2 and all(isinstance(c, str) for own in rows for c in own))
        assert all(isinstance(c.encode(), bytes) for own in rows or () for c in own)
        said = ""
        try:
            captioned_folder.captions_of(folder, name, roots, [])
        except UserError as e:
            said = str(e)
        assert "\n" not in said


# ---------------------------------------------------------------------------------------------- cleaning
def with_captions(*captions):
    return replace(numbered(len(captions)), captions=list(captions))


def test_cleaning():
    images = with_captions(
        ["a&nbsp;cat &amp;amp; a\tdog\r\n", "", " \x00\u200b "],
        [],
        ["\u202eevil\u202c", "a &rlm;cat", "👩\u200d🚀"],
        ["&lrm;", "&#0;&#x20;&lt;b&gt;"],
    )
    found, counts = cleaned(images)
    assert found.captions == [["a cat & a dog"], ["evil", "a cat", "👩\u200d🚀"], ["\ufffd <b>"]]
    assert (found.pixels[:, 0, 0, 0].tolist(), found.labels.tolist()) == ([0, 2, 3], [0, 2, 0])
    assert counts == Counts(3, 5, 3, 1)
    assert counts.line() == "5 captions of 3 images (3 empty captions and 1 images without a caption left out)"
    assert images.captions[1] == []  # as they were


def test_nothing_to_clean_copies_nothing():
    images = with_captions(["a"], ["b"])
    found, counts = cleaned(images)
    assert found.pixels.data_ptr() == images.pixels.data_ptr()
    assert counts.line() == "2 captions of 2 images"
    none, counts = cleaned(numbered(3))
    assert (len(none), counts) == (0, Counts(0, 0, 0, 3))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(st.text(st.characters(), max_size=20) | st.sampled_from(["&amp;", "&#1;", "\ud800", "\r\n", "&lt"]), max_size=3),
        max_size=4,
    )
)
def test_clean_captions_are_one_line_of_text(captions):
    found, counts = cleaned(with_captions(*captions)) if captions else cleaned(numbered(0))
    for own in found.captions or ():
        assert own
        for c in own:
            assert c == c.strip()
            assert c.encode()
            assert len(c.splitlines()) == 1
            assert "  " not in c
    assert counts.images + counts.without == len(captions)
    assert counts.captions + counts.empty == sum(map(len, captions))
    again = cleaned(found)[1] if captions else counts
    assert (again.images, again.without) == (counts.images, again.without)


def test_captions_stay_with_their_images():
    images = with_captions(*([f"number {i}"] for i in range(9)))
    for some in (images.take(torch.tensor([4, 2, 8])), images.some(4), images.take(torch.tensor([3, 4, 5])), cleaned(images)[0].some(2)):
        assert some.captions == [[f"number {n}"] for n in some.pixels[:, 0, 0, 0].tolist()]


# ---------------------------------------------------------------------------------------------- prompts
def test_prompts():
    images = replace(
        numbered(6), labels=torch.tensor([0, -1, 2, 1, -1, 0]), classes=["apple", "aquarium_fish", "dog"], captions=[["own"]] * 6
    )
    found = prompted(images, ["a photo of a {}.", "{}"])
    assert found.captions[2] == ["a photo of a aquarium fish.", "aquarium fish"]
    too = prompted_too(images, ["{}"])
    assert too.captions == [["apple"], [], ["dog"], ["aquarium fish"], [], ["apple"]]
    assert torch.equal(too.pixels, images.pixels)
    assert found.captions[1] == ["a photo of a dog.", "dog"]
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 2, 3, 5]
    assert found.captions[0] is found.captions[3]
    kept, counts = captioned(images, ["a {}"], "mine")
    assert kept.captions == [["a apple"], ["a dog"], ["a aquarium fish"], ["a apple"]]
    assert counts == Counts(4, 4, 0, 0)
    assert kept.captions[0] is kept.captions[3]
    assert captioned(images, None, "mine")[0].captions == [["own"]] * 6


def test_where_there_are_no_captions():
    with pytest.raises(
        UserError, match=r"dataset=cifar10 has no captions: set data\.prompts=photo to make them of its class names, or give"
    ):
        captioned(numbered(3), None, "cifar10")
    bare = replace(numbered(3, labels=False), classes=None)
    with pytest.raises(UserError, match=r"^dataset=folder has no captions: give captions with dataset\.captions="):
        captioned(bare, None, "folder")
    with pytest.raises(UserError, match=r"None of the 2 images of dataset=folder has a caption with words in it"):
        captioned(with_captions([" "], []), None, "folder")
    with pytest.raises(UserError, match=r"data\.prompts needs labels with names"):
        captioned(bare, "photo", "folder")
    with pytest.raises(UserError, match=r"data\.prompts needs labelled images"):
        prompted(replace(numbered(3), labels=torch.full((3,), -1)), ["{}"])


def test_numbers_for_names_are_told(caplog):
    prompted(replace(numbered(3), classes=["0", "1", "2"]), ["a {}"])
    assert "such as 'a 2'" in caplog.text


def test_the_shipped_sentences():
    lines = (conf_dir() / "templates" / "photo.txt").read_text().splitlines()
    assert templates("photo") == lines
    assert len(set(lines)) == 80
    assert all(line.count("{}") == 1 and line == " ".join(line.split()) for line in lines)


def test_sentences_of_ones_own(tmp_path):
    write(tmp_path, "mine.txt", b"\xef\xbb\xbfa {}\r\n\r\nthe {}\na {}\n")
    assert templates(str(tmp_path / "mine.txt")) == ["a {}", "the {}"]
    assert templates(["a {}", "b {}"]) == ["a {}", "b {}"]
    assert templates("only {}") == ["only {}"]
    for name, data in (("latin", b"caf\xe9 {}"), ("none", b" \n"), ("bare", b"a {}\na photo\n"), ("large", b"{}\n" * 1_500_000)):
        write(tmp_path, name, data)
    faults = {"latin": "it is not UTF-8", "none": "holds no sentence", "large": "larger than 4 MB", "bare": "'a photo' must hold {} once"}
    faults = {str(tmp_path / name): answer for name, answer in faults.items()} | {
        "": "must hold", "{} {}": "must hold", "potho": "is neither photo nor a file", str(tmp_path): "nor a file",
        "x" * 5000: "nor a file", "\0": "nor a file",
    }  # fmt: skip
    for value, answer in faults.items():
        with pytest.raises(UserError, match=answer):
            templates(value)
    with pytest.raises(UserError, match=r"^protocol\.templates: 'a' must hold"):
        templates(["a"], "protocol.templates")


def test_the_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "mine.txt", b"a {}\n")
    write(tmp_path, "said.csv", b"")
    folder = ["dataset=folder", f"dataset.path={tmp_path}"]
    config = compose("train", [*folder, "dataset.captions=said.csv", "data.prompts=mine.txt"])
    assert (config.dataset.captions, config.data.prompts) == (str(tmp_path / "said.csv"), str(tmp_path / "mine.txt"))
    config = compose("train", [*folder, "dataset.captions=in_the_folder.csv", "data.prompts=['a photo of a {}.']"])
    assert (config.dataset.captions, config.data.prompts) == ("in_the_folder.csv", ["a photo of a {}."])
    with pytest.raises(UserError, match="'a' must hold"):  # before torch is imported
        compose("train", ["data.prompts=[a]"])
    for key, good, bad in (
        ("data.prompts", (None, "photo", ["a {}"]), ([], 3, True, [3])),
        ("dataset.captions", (None, "auto", "x"), (["x"], True)),
    ):
        assert all(map(RULES[key][0], good))
        assert not any(map(RULES[key][0], bad))


def test_runs_from_before_there_were_prompts(tmp_path):
    now = compose("train", ["dataset=folder", f"dataset.path={tmp_path}"])
    save_config(now, tmp_path, ["ssl-zoo"])
    old = plain(now)
    del old["data"]["prompts"], old["dataset"]["captions"]
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text("".join(x for x in text.splitlines(True) if not x.startswith(("  prompts:", "  captions:"))))
    loaded = plain(load_run(tmp_path))
    assert loaded["data"]["prompts"] is None
    assert "captions" not in loaded["dataset"]
    assert config_hash(old) == config_hash(plain(now)) == config_hash(loaded)
    assert group_hash(old) == group_hash(plain(now))
    assert not changes(old, plain(now))
    for group, key, value in (("data", "prompts", "photo"), ("dataset", "captions", None)):
        other = {**plain(now), group: {**plain(now)[group], key: value}}
        assert config_hash(other) != config_hash(old)
        assert f"{group}.{key}" in changes(old, other)
    with pytest.raises(UserError, match=r"resume cannot change data\.prompts"):
        load_run(tmp_path, ["data.prompts=photo"])


# ---------------------------------------------------------------------------------------------- other sources
def test_shapes():
    train = Shapes(train_size=20, test_size=5).load("train")
    found, counts = captioned(train, None, "shapes")
    assert found.captions == train.captions
    assert counts == Counts(20, 20, 0, 0)


def test_columns_of_parquet_that_are_no_captions(tmp_path):
    image = [{"bytes": picture(size=(16, 16)), "path": None}] * 4
    table = {
        "image": image,
        "captions": [["a", None], ["b"], None, []],
        "text": ["a", "b", None, ""],
        "json": ['["a", "b"]', "[a", "[]", None],
        "number": [1, 2, 3, 4],
        "pair": [{"a": 1}] * 4,
    }
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    pq.write_table(pa.table(table), tmp_path / "test.parquet")
    for column, wanted in (
        ("captions", [["a"], ["b"], [], []]),
        ("text", [["a"], ["b"], [], [""]]),
        ("json", [["a", "b"], ["[a"], [], []]),
        ("number", [[]] * 4),
        ("pair", [[]] * 4),
    ):
        assert Parquet(str(tmp_path), caption_column=column).load("train").captions == wanted
    assert Parquet(str(tmp_path), caption_column="none").load("train").captions is None


@pytest.mark.parametrize("form", ["tar", "litdata"])
def test_shards_keep_the_captions_of_a_folder(tmp_path, form):
    if form == "litdata":
        pytest.importorskip("litdata")
    photos(tmp_path / "in", *(f"{'test' if i > 7 else 'train'}/{i}.png" for i in range(12)))
    rows = [{"file_name": f"{'test' if i > 7 else 'train'}/{i}.png", "captions": [f"number {i}", 'é 🐱, "so"'][: i % 3]} for i in range(12)]
    write(tmp_path, "in/metadata.jsonl", "\n".join(map(json.dumps, rows)).encode())
    source = Folder(str(tmp_path / "in"), decoded=False)
    pack({s: source.load(s) for s in ("train", "test")}, tmp_path / "out", form, 20_000, None, lambda: None)
    for split in ("train", "test"):
        there, here = (s.load(split) for s in (ShardSource(str(tmp_path / "out")), Folder(str(tmp_path / "in"))))
        assert torch.equal(there.pixels[:], here.pixels[:])
        assert there.captions == here.captions
        assert any(here.captions)


@pytest.mark.parametrize(("name", "train", "test", "each"), [("flickr-1k", 900, 100, 5), ("noto-emoji", 3243, 300, 1)])
def test_real_captions(name, train, test, each):
    source = Parquet(str(needs(name)), decoded=False)
    for split, count in (("train", train), ("test", test)):
        found, counts = captioned(source.load(split), None, name)
        assert counts == Counts(count, count * each, 0, 0)
        assert len(found) == count


def test_the_sentences_are_there_before_torch(tmp_path):
    code = "import sys; from ssl_zoo.prompts import templates; print(len(templates('photo')), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["80", "False"], done.stderr

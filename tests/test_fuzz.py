"""Whatever is typed, and whatever lies in the files: an answer in one sentence or a counted skip, never a traceback."""

import contextlib
import csv
import io
import json
import os
import shutil
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import Bytes, write
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from ssl_zoo.checks import check_values
from ssl_zoo.cli import main
from ssl_zoo.config import all_keys, compose, plain
from ssl_zoo.data.decode import decode
from ssl_zoo.data.folder import Folder
from ssl_zoo.data.ondemand import OnDemand
from ssl_zoo.data.parquet import Parquet
from ssl_zoo.data.pixels import decode_row
from ssl_zoo.data.shards import ShardSource
from ssl_zoo.errors import UserError
from ssl_zoo.saved import save_config

REFERENCE = plain(compose("train", []))
GROUPS = ("method", "backbone", "dataset", "augment", "optimizer", "trainer", "logger", "evaluation", "recipe", "experiment", "protocol")


MORE = int(os.environ.get("SSL_ZOO_FUZZ", 0))  # so many times the cases of the slow tests, and other ones each time


def fuzzed(few, many):
    """Run a property on `few` cases, and in a slow test on `many`: the same ones each time, for a test must not fail by chance."""
    return pytest.mark.parametrize("cases", [few, pytest.param(max(1, MORE) * many, marks=pytest.mark.slow)])


def check(cases, *strategies, examples=()):
    def run(test):
        for one in examples:
            test = example(*one)(test)
        phases = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking would take minutes where a case takes a second
        limits = settings(max_examples=cases, deadline=None, derandomize=not MORE, phases=phases, suppress_health_check=list(HealthCheck))
        limits(given(*strategies)(test))()

    return run


def answer(words):
    """(exit code, what was printed, what was said on stderr); anything but an answer fails."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors=e) for e in ("strict", "backslashreplace"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(words)
    out.flush(), err.flush()
    told, said = (stream.buffer.getvalue().decode() for stream in (out, err))
    assert ended.value.code in (0, 2), said
    if ended.value.code == 2:
        assert said.startswith("ssl-zoo: "), said
        assert len(said.splitlines()) == 1, said
    else:
        assert not said
    return ended.value.code, told


# ---------------------------------------------------------------------------------------------- overrides
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)  # no argument of a program holds a zero byte
ODD = st.sampled_from(
    ["", "null", "true", "nan", "inf", "-1", "0", "1e999", "9" * 400, "9" * 5000, "-0.0", "0x10", "1_0", "???", "[]", "{}", "[1,[2,[]]]",
     "{a:{b:1}}", "{1:2}", "{32:0.5}", "['a b',\"c\"]", "[" * 60 + "]" * 60, "${epochs}", "${oc.env:HOME}", "${nope}", "${", "\\${x}",
     "\\\\${x}",
     "'", '"', "\\", "a,b", "choice(1,2)", "range(1,3)", "range(1,99999999)", "interval(0,1)", "glob(*)", "sort(1,2)", "shuffle(1)",
     "tag(a,1)",
     "int(3)", "str([1])", "json_str(3)", "extend_list(1)", "\u2028", "\x1b[31m", "\udcff", "../..", "~nobody", "~", "x" * 3000, "a=b",
     " ", "1 2",
     "os.system", "{_target_:os.system}", "auto", "cpu", "none", "tiny", "vit_s", "simclr", "dino", "adamw", "[0.1,0.2]", "32-true", "."]
)  # fmt: skip
VALUES = st.one_of(ODD, TEXT, st.integers().map(str), st.floats().map(str), st.lists(ODD, max_size=3).map(lambda v: f"[{','.join(v)}]"))
KEYS = sorted(
    {*all_keys(REFERENCE), *GROUPS, "_target_", "hydra/launcher", "hydra.searchpath", "defaults", "augment@x", "protocol.k", "suite"}
)
NAMES = st.one_of(
    st.sampled_from(KEYS), st.sampled_from(KEYS).map(lambda k: k[1:] or k), TEXT, st.sampled_from(["a.b", ".", "a..b", "@", "/"])
)
WORDS = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), NAMES, VALUES),
    st.builds("{}{}".format, st.sampled_from(["~", "+", ""]), NAMES),
)
OPTIONS = st.sampled_from([[], [], [], [], ["-m"], ["--config-dir", "nowhere"], ["--config-dir", "."], ["-x"], ["--cfg=all"], ["--help"]])
VERBS = st.sampled_from([[], [], [], [], ["pretrain"], ["eval"], ["preview"], ["shard"], ["resume"], ["report"], ["list"], ["benchmark"]])


@fuzzed(30, 400)
def test_any_command_line_is_answered(cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/a secret")

    @check(cases, VERBS, st.lists(WORDS, max_size=3), OPTIONS,
           examples=[([], ["augment.local.blur=[choice(1,2),null]"], ["-m"]), (["eval"], ["~recipe=-54118"], []),
                     ([], ["@=" + 5000 * "9"], [])])  # fmt: skip
    def test(verb, words, options):
        code, told = answer([*verb, *words, "--cfg", "job", *options])
        assert "/a secret" not in told.replace("/a secret/.cache", "")
        assert not list(tmp_path.iterdir()), "looking at a config writes nothing"
        if code == 0 and told.startswith("epochs:") and "-m" not in options:
            assert isinstance(yaml.safe_load(told), dict)


PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(10**18, 10**400), st.floats(), TEXT, st.sampled_from(["auto", "???", "\0"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(TEXT, st.integers()), inner, max_size=3)),
    max_leaves=5,
)


@fuzzed(250, 2500)
@pytest.mark.parametrize("name", ["train", "eval", "preview", "shard"])
def test_any_value_fits_or_is_refused(cases, name):
    words = ["dataset=shapes", "out=x", "weights=x", "protocol=few_shot"][: {"train": 1, "eval": 4, "shard": 2, "preview": 1}[name]]
    words = [w for w in words if name == "eval" or not w.startswith("weights")]
    reference = plain(compose(name, [w for w in words if name != "train" or "=" in w]))
    keys = sorted(all_keys(reference))

    @check(cases, st.sampled_from(keys), PLAIN)
    def test(key, value):
        config = json.loads(json.dumps(reference))
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
        with contextlib.suppress(UserError):
            check_values(config, reference)


# ---------------------------------------------------------------------------------------------- images
def encoded():
    """A small image of every kind that is read, plain and odd."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (24, 20, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 65535, (24, 20), np.uint16))
    options = [("PNG", rgb, {}), ("PNG", rgb.convert("P"), {"transparency": 3}), ("PNG", deep, {}), ("PNG", rgb.convert("RGBA"), {}),
               ("JPEG", rgb, {}), ("JPEG", rgb.convert("CMYK"), {}), ("JPEG", rgb, {"progressive": True}), ("WEBP", rgb, {}),
               ("WEBP", rgb, {"lossless": True}), ("GIF", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}), ("BMP", rgb, {}),
               ("TIFF", rgb, {"compression": "tiff_lzw"}), ("TIFF", rgb, {"compression": "jpeg"}), ("TIFF", deep, {}),
               ("TIFF", rgb.convert("F"), {}), ("PPM", rgb, {}), ("ICO", rgb, {}), ("TGA", rgb, {}), ("JPEG2000", rgb, {}), ("AVIF",
               rgb, {})]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 50
    found = []
    for form, image, more in [*options, ("JPEG", rgb, {"exif": exif})]:
        out = io.BytesIO()
        with contextlib.suppress(OSError, KeyError):  # a Pillow without the codec
            image.save(out, form, **more)
            found.append(out.getvalue())
    assert len(found) > 12
    return found


IMAGES = encoded()
EDIT = st.tuples(
    st.floats(0, 1), st.one_of(st.binary(max_size=8), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])), st.integers(0, 8)
)


def mutate(data, edits, cut=1.0):
    """data with bytes put in the place of others, and cut short."""
    for place, put, over in edits:
        at = int(place * len(data))
        data = data[:at] + put + data[at + over :]
    return data[: int(cut * len(data))]


CUT = st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1))
MUTATED = st.builds(mutate, st.sampled_from(IMAGES), st.lists(EDIT, max_size=4), CUT)
HEADS = st.sampled_from(
    [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"MM\0*", b"RIFF\0\0\0\0WEBP", b"BM", b"P6\n", b"%!PS", b"qoif"]
)
ANY = st.one_of(MUTATED, MUTATED, st.builds(bytes.__add__, HEADS, st.binary(max_size=200)))


@fuzzed(300, 3000)
def test_any_bytes_are_an_image_or_a_reason(cases):
    @check(cases, ANY, st.sampled_from([8, 32, 224]))
    def test(data, canvas):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = decode_row(Bytes(data), 0, canvas)
        if isinstance(found, str):
            assert found
            assert "\n" not in found
        else:
            assert (found.shape, found.dtype) == ((3, canvas, canvas), np.uint8)


def test_claims_of_size_are_not_believed():
    """What a header says costs nothing before there are pixels for it."""
    bombs = []
    for side in (20_000, 60_000, 2**31 - 1):
        png = bytearray(IMAGES[0])
        png[16:24] = side.to_bytes(4, "big") * 2
        gif = bytearray(next(i for i in IMAGES if i.startswith(b"GIF")))
        gif[6:10] = min(side, 65535).to_bytes(2, "little") * 2
        ppm = b"P6\n%d %d\n255\n" % (side, side) + b"x" * 100
        bmp = bytearray(next(i for i in IMAGES if i.startswith(b"BM")))
        bmp[18:26] = side.to_bytes(4, "little") * 2
        bombs += [bytes(png), bytes(gif), ppm, bytes(bmp)]
    tracemalloc.start()
    for bomb in bombs:
        assert isinstance(decode_row(Bytes(bomb), 0, 32), str)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@fuzzed(15, 150)
def test_a_folder_of_any_bytes_gives_images_and_counted_skips(cases, tmp_path_factory):
    @check(cases, st.lists(ANY, min_size=1, max_size=4), st.booleans())
    def test(data, decoded):
        folder = tmp_path_factory.mktemp("fuzz")
        whole = [IMAGES[0], IMAGES[4]]
        for i, one in enumerate([*whole, *data]):
            write(folder, f"{i}.png", one)
        images = Folder(str(folder), 16, cache=str(folder / ".cache"), decoded=decoded)._load(folder)
        pixels = images.pixels[np.arange(len(images)).tolist()] if decoded else images.pixels[0 : len(images)]
        assert tuple(pixels.shape[1:]) == (3, 16, 16)
        assert len(pixels) + (len(images.skipped) if decoded else 0) == len(data) + 2
        bad = sum(isinstance(decode_row(Bytes(one), 0, 16), str) for one in data)
        assert len(images.skipped) == bad
        assert decoded or isinstance(images.pixels, OnDemand)


# ---------------------------------------------------------------------------------------------- tables and archives
def tables(folder):
    """Small data sets of each kind of file: {name: (bytes, how it is read)}."""
    image = [{"bytes": IMAGES[i % 3], "path": None} for i in range(6)]
    about = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["a", "b", "c"]}}}})}
    table = pa.table({"image": image, "label": [0, 1, 2] * 2, "captions": [["x"], None] * 3}).replace_schema_metadata(about)
    pq.write_table(table, folder / "t.parquet", row_group_size=2)
    import tarfile

    with tarfile.open(folder / "t.tar", "w") as tar:
        for i in range(4):
            for kind, data in (
                ("png", IMAGES[0]),
                ("cls", b"1"),
                ("json", b'{"label": 1, "captions": ["a"]}'),
                ("pyd", b"\x80\x04."),
                ("txt", b"x"),
            ):
                info = tarfile.TarInfo(f"{i}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return [("t.parquet", Parquet), ("t.tar", ShardSource)]


@fuzzed(40, 600)
@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_table_or_tar_is_a_sentence_or_a_skip(cases, which, tmp_path, tmp_path_factory):
    name, source = tables(tmp_path)[which]
    data = (tmp_path / name).read_bytes()
    count = [0]

    @check(cases, st.lists(EDIT, min_size=1, max_size=3), CUT)
    def test(edits, cut):
        count[0] += 1
        folder = tmp_path / f"{count[0]}"
        write(folder, name, mutate(data, edits, cut))
        with contextlib.suppress(UserError):
            images = source(str(folder / name), 16, cache=str(folder / "cache")).load("train")
            assert tuple(images.pixels.shape[1:]) == (3, 16, 16)
        shutil.rmtree(folder)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.just(1e999)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["classes", "version", "counts", "train", "a"]), inner)
    ),
    max_leaves=6,
)


@fuzzed(60, 600)
def test_any_meta_json_beside_shards_is_a_sentence_or_taken(cases, tmp_path):
    tables(tmp_path)
    (tmp_path / "t.parquet").unlink()

    @check(cases, st.one_of(JSON.map(lambda v: json.dumps(v).encode()), st.binary(max_size=30), st.just(b"[" * 10**5)),
           examples=[(b'{"classes": null, "version": 1, "counts": null}',), (b'{"classes": {"a": 1}, "version": 1}',),
                     (b'{"classes": null, "version": 1e999}',)])  # fmt: skip
    def test(text):
        (tmp_path / "meta.json").write_bytes(text)
        with contextlib.suppress(UserError):
            ShardSource(str(tmp_path), 16, cache=str(tmp_path / ".cache")).load("train")


# ---------------------------------------------------------------------------------------------- run folders
@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What a finished run leaves that is text, as tests/test_security.py has it."""
    from test_security import result, summary

    run = tmp_path_factory.mktemp("runs") / "one"
    (run / "eval").mkdir(parents=True)
    (run / "checkpoints").mkdir()
    (run / "figures").mkdir()
    save_config(compose("train", ["epochs=3"]), run, ["ssl-zoo epochs=3"])
    (run / "summary.json").write_text(json.dumps(summary()))
    (run / "eval" / "linear.json").write_text(json.dumps(result()))
    (run / "metrics.csv").write_text("step,epoch,train/loss,eval/knn_top1\n4,0,5.0,\n9,0,,70\n19,1,4.5,71\n")
    np.savez(run / "figures" / "data.npz", map=np.zeros((5, 2)), labels=np.arange(5), classes=np.array(["a"] * 5))
    save_file({"x": np.zeros(1)}, run / "backbone.safetensors")
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    return run


def leaf(data, key, value):
    """JSON or YAML with one value replaced, chosen by a number."""
    places: list = []

    def walk(node):
        for k in node if isinstance(node, dict) else range(len(node)):
            places.append((node, k))
            if isinstance(node[k], (dict, list)):
                walk(node[k])

    walk(data)
    node, k = places[int(key * (len(places) - 1))]
    node[k] = value
    return data


FILES = ("config.yaml", "summary.json", "metrics.csv", "eval/linear.json", "figures/data.npz")
STRANGE = st.one_of(PLAIN.filter(lambda v: v != "\0"), st.sampled_from([10**400, 1e308, -1, [], {}, "<b>", "../x", True]))


def changed(name, text, place, value, edits, cut):
    """A file of a run with a value of another kind, or with damaged bytes."""
    with contextlib.suppress(ValueError, TypeError, yaml.YAMLError, UnicodeEncodeError):
        if not edits and name.endswith(".json"):
            return json.dumps(leaf(json.loads(text), place, value)).encode()
        if not edits and name.endswith(".yaml"):
            return yaml.safe_dump(leaf(yaml.safe_load(text), place, value)).encode()
    return mutate(text, edits, cut)


@fuzzed(20, 90)
def test_any_run_folder_is_answered(cases, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if cases < 100:  # what a figure is made of is checked all the same, but drawing it takes most of the time
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: file.write(IMAGES[0]))
    count = [0]

    @check(cases, st.sampled_from(FILES), st.floats(0, 1), STRANGE, st.lists(EDIT, max_size=3), CUT,
           st.sampled_from([["report", "run={}"], ["report", "runs={}"], ["resume", "run={}", "--cfg", "job"],
                            ["eval", "run={}", "--cfg", "job"]]))  # fmt: skip
    def test(name, place, value, edits, cut, words):
        count[0] += 1
        run = tmp_path / f"{count[0]}" / "one"
        shutil.copytree(finished, run)
        (run / name).write_bytes(changed(name, (run / name).read_bytes(), place, value, edits, cut))
        answer_or_table([w.format(run) for w in words])
        shutil.rmtree(run.parent)


def answer_or_table(words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code in (0, 2), err.getvalue()
    if ended.value.code == 2:
        assert err.getvalue().startswith("ssl-zoo: ")
        assert len(err.getvalue().splitlines()) == 1


@fuzzed(60, 1500)
def test_any_metrics_csv_is_continued_or_set_aside(cases, tmp_path):
    from ssl_zoo.callbacks.csv_log import CSVLog

    text = b"step,epoch,train/loss\n4,0,5.0\n9,0,4.0\n"

    @check(cases, st.lists(EDIT, max_size=3), CUT, examples=[([(0.6, "²".encode(), 1)], 1.0), ([(0.9, b",1,2,3", 0)], 1.0)])
    def test(edits, cut):
        (tmp_path / "metrics.csv").write_bytes(mutate(text, edits, cut))
        log = CSVLog(tmp_path)
        log.log_metrics({"train/loss": 1.0, "epoch": 1}, 10)
        log.log_metrics({"train/new": 1.0}, 11)
        with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        assert [r["step"] for r in rows[-2:]] == ["10", "11"]
        assert all(int(r["step"]) < 10 for r in rows[:-2])


@fuzzed(60, 800)
def test_the_array_of_any_meta_in_the_cache_is_made_anew(cases, tmp_path):
    from ssl_zoo.data.cache import Cache

    files = Bytes(*IMAGES[:3])
    decode(files, 16, tmp_path)
    (meta,) = tmp_path.glob("images-*/meta.json")
    whole = json.loads(meta.read_text())

    @check(cases, st.floats(0, 1), STRANGE, st.one_of(st.none(), st.binary(max_size=20)))
    def test(place, value, data):
        try:
            text = json.dumps(leaf(json.loads(json.dumps(whole)), place, value)).encode() if data is None else data
        except (TypeError, ValueError):
            return
        Cache(tmp_path, files, 16).get()
        meta.write_bytes(text)
        pixels, kept, _, _ = decode(files, 16, tmp_path)
        assert len(pixels) == len(kept) == 3
        assert Path(meta).is_file()
        os.utime(meta)

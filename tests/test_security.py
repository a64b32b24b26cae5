"""Nothing that others wrote is executed, followed out of its folder, or shown as anything but text."""

import ast
import base64
import csv
import hashlib
import html.parser
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import ROOT, SMOKE, picture, write
from omegaconf import OmegaConf

from ssl_zoo import stale
from ssl_zoo.checks import check_located
from ssl_zoo.cli import main
from ssl_zoo.config import compose, plain, run_name
from ssl_zoo.data.downloads import Torchvision
from ssl_zoo.data.folder import Folder
from ssl_zoo.data.parquet import Parquet
from ssl_zoo.data.pixels import decode_row
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.feature_cache import cached
from ssl_zoo.instance import build
from ssl_zoo.nn.backbones import create
from ssl_zoo.reports.benchmark_page import write_benchmark
from ssl_zoo.reports.collect import Problem, collect
from ssl_zoo.reports.groups import group
from ssl_zoo.reports.html import write_report
from ssl_zoo.reports.table import terminal
from ssl_zoo.run_folder import readable_checkpoint
from ssl_zoo.saved import load_run, save_config

PACKAGE = ROOT / "ssl_zoo"


@pytest.fixture
def mark(tmp_path):
    """A file that only code of the attacker makes."""
    file = tmp_path / "called"
    yield file
    assert not file.exists(), "something of the attacker was called"


class Evil:
    """What runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def refused(words, *said, dirs=()):
    with pytest.raises(UserError) as e:
        compose("train", words, dirs)
    assert "\n" not in str(e.value)
    assert all(s in str(e.value) for s in said), str(e.value)


# ---------------------------------------------------------------------------------------------- what is called
def call(mark, target="os.mkdir"):
    return f"{{_target_:{target},_args_:['{mark}']}}"


@pytest.mark.parametrize("word", ["method._target_=os.mkdir", "+method._args_=[{call}] method._target_=os.mkdir", "+method.inner={call}",
                                  "+method.inner=[[{call}]]", "+method.inner={{a:[{{b:{call}}}]}}", "backbone={call}", "+anything={call}",
                                  "method._target_=[os.mkdir]", "+dataset.x={{_target_:os.mkdir,_partial_:true}}",
                                  "method._target_=builtins.eval", "method._target_=ssl_zoo.cli.os.mkdir", "method._target_=...os.mkdir",
                                  "method._target_=ssl_zoo_evil.x", "+augment.view1.extra=[{call}]", "+_target_=os.mkdir",
                                  "+method._recursive_=true +method.inner={call}"])  # fmt: skip
def test_a_target_outside_is_refused_before_anything_is_built(word, mark):
    refused(word.format(call=call(mark)).split())


@pytest.mark.parametrize(
    "target",
    ["torch.hub.load", "torch.load", "torch.os.mkdir", "torch.utils.cpp_extension.load_inline", "timm.create_model", "torch.nn.Nothing",
     "torchvision.models.get_model", "lightning.pytorch.Trainer", "torch.nn.Module.register_forward_hook", "ssl_zoo.data.pack.pack",
     "ssl_zoo.data.cache.Cache", "ssl_zoo.nn.checkpoint_file.read_checkpoint", "ssl_zoo.nn.named_weights.named_weights",
     "ssl_zoo.methods.simclr.nt_xent", "ssl_zoo.multirun.wait", "torch.jit.load", "torch.multiprocessing.Process"],
)  # fmt: skip
@pytest.mark.parametrize("slot", ["method", "backbone", "dataset", "augment"])
def test_a_trusted_name_that_is_no_part_of_a_run_is_not_called(target, slot):
    for node in ({"_target_": target}, {"_target_": "torch.nn.Identity", "a": [[{"b": {"_target_": target, "_partial_": True}}]]}):
        with pytest.raises(UserError, match=r"cannot be a|names nothing that exists"):
            check_located(node, slot, [])


def test_building_checks_what_the_config_became_since(mark):
    config = compose("train", ["backbone=resnet18"])
    OmegaConf.update(config, "backbone.kwargs", {"act_layer": [{"_target_": "torch.os.mkdir", "_args_": [str(mark)]}]}, force_add=True)
    with pytest.raises(UserError, match="cannot be a backbone"):
        build(config, "backbone")


FILES = {
    "experiment/x.yaml": "method: {_target_: os.mkdir, _args_: [MARK]}",
    "experiment/y.yaml": "trust: [os]\nmethod: {_target_: os.mkdir, _args_: [MARK]}",
    "experiment/z.yaml": "defaults:\n  - ../../secret",
    "experiment/w.yaml": "defaults:\n  - /experiment/../../secret@_global_",
    "experiment/v.yaml": "defaults:\n  - override /method: ../../secret",
    "experiment/u.yaml": "method: {temperature: '${oc.env:HOME}'}",
    "experiment/t.yaml": "method: {temperature: \"${oc.decode:'1'}\"}",
    "recipe/simclr-tiny-shapes.yaml": "method: {inner: [{_target_: os.mkdir, _args_: [MARK]}]}",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_configs_cannot_reach_further_than_a_command(name, mark, tmp_path):
    (tmp_path / "secret.yaml").write_text("epochs: 7")
    write(tmp_path / "conf", name, ("# @package _global_\n" + FILES[name].replace("MARK", str(mark))).encode())
    group, _, file = name.partition("/")
    words = [f"{group}={file[:-5]}"] if group == "experiment" else []
    with pytest.raises(UserError):
        compose("train", words, [str(tmp_path / "conf")])


def test_a_method_of_another_folder_needs_trust_from_the_command(tmp_path, mark):
    write(tmp_path / "conf", "method/mine.yaml", f"_target_: os.mkdir\n_args_: ['{mark}']\n".encode())
    refused(["method=mine", "augment=simclr"], "trust=[os]", dirs=[str(tmp_path / "conf")])
    suite = tmp_path / "suite.yaml"
    suite.write_text("method: simclr\noverrides: ['trust=[os]']\n")
    with pytest.raises(SystemExit):
        main(["benchmark", f"suite={suite}", "--cfg", "job"])


RESOLVERS = ["${oc.env:HOME}", "${oc.env:NOPE,x}", "${ oc.env:HOME }", "a${oc.env:HOME}b", "${oc.decode:'{a:1}'}", "${oc.create:[1]}",
             "${oc.select:epochs}", "${oc.dict.keys:method}", "${hydra:runtime.cwd}", "${now:%Y}", "${python_version:}", "\\${oc.env:HOME}",
             "${oc.${x}:HOME}", "${oc.env:${run}}", "{a:'${oc.env:HOME}'}", "['${oc.env:HOME}']"]  # fmt: skip


@pytest.mark.parametrize("value", RESOLVERS)
@pytest.mark.parametrize("key", ["run", "++new"])
def test_a_config_takes_nothing_from_the_environment(value, key, monkeypatch):
    monkeypatch.setenv("HOME", "/a secret")
    with pytest.raises(UserError) as e:
        compose("train", [f"{key}={value}"])
    assert "secret" not in str(e.value)


def test_a_key_may_still_name_another():
    assert compose("train", ["run=${out}/mine", "trainer.max_steps=${epochs}"]).run == "runs/mine"


@pytest.fixture
def saved(tmp_path):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    save_config(compose("train", ["epochs=3"]), run, ["ssl-zoo epochs=3"])
    return run


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize("change", [
    "method: {_target_: os.mkdir, _args_: [MARK]}", "method: {_target_: torch.hub.load}\ntrust: [torch]", "run: ${oc.env:HOME}",
    "backbone: {_target_: ssl_zoo.nn.backbones.tiny, inner: [{_target_: subprocess.Popen, args: [MARK]}]}", BOMB, "x: " + "[" * 100_000,
    "x: " + "[" * 1000 + "]" * 1000, "method: !!python/object/apply:os.mkdir [MARK]", "epochs: .nan",
    "? [a]\n: b", "out: \"a\\0b\"",
])  # fmt: skip
def test_a_run_folder_that_was_tampered_with_is_refused(saved, mark, change, capsys):
    config = yaml.safe_load((saved / "config.yaml").read_text())
    name = change.partition(":")[0]
    config.pop(name, None)
    (saved / "config.yaml").write_text(yaml.safe_dump(config) + change.replace("MARK", str(mark)))
    with pytest.raises(UserError):
        check_located(plain(load_run(saved).method), "method", [])
    for words in (["resume", f"run={saved}", "--cfg", "job"], ["report", f"runs={saved.parent}"], ["eval", f"run={saved}", "protocol=knn"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = capsys.readouterr().err
        assert ended.value.code in (0, 2)
        assert said.count("\n") <= 1


def test_a_report_composes_the_commands_of_others_without_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/a secret")
    run = stale.Run(tmp_path, {"command": "ssl-zoo +a=${oc.env:HOME}\nssl-zoo resume run=x trainer.precision=${oc.env:HOME}"}, {}, "")
    assert "does not work" in str(stale._today(run, {}))
    run.summary["command"] = "ssl-zoo\nssl-zoo resume run=x trainer.precision=${oc.env:HOME}"
    assert "does not work" in str(stale._today(run, {}))


@pytest.mark.parametrize("name", ["../../../up", "/etc/x", "..", "a/b", "hf-hub:a/b", "a\\b", "-m"])
def test_the_name_of_a_run_is_one_folder(name):
    found = run_name(["backbone=timm", f"backbone.name='{name}'"])
    assert Path(found).name == found
    assert found not in (".", "..")
    assert run_name(["backbone=timm", "backbone.name=resnet18.a1_in1k"]) == "simclr_resnet18.a1_in1k_shapes"


# ---------------------------------------------------------------------------------------------- no pickles
def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_nothing_unpickles(file):
    """One file may: it puts something harmless in the place of every object (tests/test_weights.py)."""
    reader = file.name == "checkpoint_file.py"
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
        banned = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
        assert reader or not {str(n).split(".")[0] for n in names} & banned
    for name, options in calls(tree):
        if name in ("torch.load", "load_state_dict_from_url"):
            safe = options.get("weights_only") == "True"
            assert safe or (reader and options.get("pickle_module") == "_inert_pickle()"), f"{name} in line of {file}"
        if name == "np.load":
            assert options.get("allow_pickle") == "False"
        if name.endswith(".get_state_dict") or name.endswith("trainer.fit"):
            assert options.get("weights_only") == "True"
        assert name not in ("eval", "exec", "os.system", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle")
        assert not name.endswith((".extractall", "unpack_archive")), "archives are read in place"
        if name == "yaml.load":
            assert options.get("Loader") == "LOADER"
        assert options.get("shell") != "True"


def test_pickles_in_the_place_of_our_files_are_not_run(tmp_path, mark):
    evil = pickle.dumps(Evil(mark))
    for name in ("last", "previous"):
        write(tmp_path, f"checkpoints/{name}.ckpt", b"")
        torch.save({"state_dict": Evil(mark)}, tmp_path / "checkpoints" / f"{name}.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        readable_checkpoint(tmp_path)
    for name, options in (("resnet18", {}), ("vit_tiny_patch16_224", {"depth": 1})):
        with pytest.raises(UserError, match="weights_only=True blocked"):
            create(name, image_size=32, kwargs={"checkpoint_path": str(tmp_path / "checkpoints" / "last.ckpt"), **options})
    kept = cached(tmp_path, "key", lambda: torch.ones(1))
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(evil)
    assert torch.equal(cached(tmp_path, "key", lambda: torch.ones(1)), kept)
    figures = tmp_path / "figures" / "data.npz"
    figures.parent.mkdir()
    np.savez(figures, map=np.array([Evil(mark)], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        dict(np.load(figures, allow_pickle=False))


def test_pickles_in_the_place_of_a_download_are_not_run(tmp_path, mark, monkeypatch):
    """torchvision's CIFAR is pickled: it is read only where every file has its known hash."""

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    for name in ("data_batch_1", "batches.meta", "test_batch"):
        write(tmp_path / "cifar-10-batches-py", name, pickle.dumps(Evil(mark)))
    write(tmp_path, "cifar-10-python.tar.gz", pickle.dumps(Evil(mark)))
    with pytest.raises(UserError, match="cannot be downloaded"):
        Torchvision("CIFAR10", str(tmp_path)).load("train")


# ---------------------------------------------------------------------------------------------- files that are none
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_devices_and_folders_are_skipped_not_waited_for(tmp_path):
    for i in range(4):
        write(tmp_path, f"{i}.png", picture((i, 0, 0)))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    with open(tmp_path / "sparse.png", "wb") as f:
        f.truncate(1 << 40)
    images = Folder(str(tmp_path), test_share=0.3).load("train")
    assert len(images.skipped) == 3
    assert all("no file but" in s or "more than any image" in s for s in images.skipped), images.skipped


def test_a_row_names_files_below_its_folder_only(tmp_path):
    write(tmp_path, "secret.png", picture())
    write(tmp_path / "data", "inside/a.png", picture())
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    paths = ["inside/a.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", "inside/../../secret.png", "/dev/zero", "inside"]
    images = [{"bytes": None, "path": p} for p in paths] + [{"bytes": picture(), "path": None}]
    pq.write_table(pa.table({"image": images}), tmp_path / "data" / "train.parquet")
    found = Parquet(str(tmp_path / "data"), test_share=0.1)._load((tmp_path / "data" / "train.parquet",))
    assert len(found) == 2
    assert len(found.skipped) == len(paths) - 1
    assert sum("outside of the folder" in s for s in found.skipped) == 5


def test_no_image_is_handed_to_another_program(monkeypatch):
    """Pillow gives EPS to Ghostscript."""
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"

    class One:
        def read(self, row):
            return eps

    assert "cannot identify" in decode_row(One(), 0, 16)


# ---------------------------------------------------------------------------------------------- what is shown
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\u2028\u202egnp.exe\u200f\x1b[31m|`$x$[/b]\x07"


class Page(html.parser.HTMLParser):
    """Everything of a page that is no text."""

    KNOWN = frozenset("html head meta title style body main h1 h2 h3 p section div table thead tbody tr th td a b sup small span abbr "
                      "code pre img ol ul li script".split())  # fmt: skip

    def __init__(self, text):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        assert tag in self.KNOWN, tag
        for name, value in attrs:
            assert re.fullmatch(r"[a-z-]+", name), name
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value.startswith(("data:image/", "#")) or ":" not in value.split("/")[0], value
        self.found.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def hostile(value):
    """The same facts with something hostile at the end of every text."""
    if isinstance(value, dict):
        return {k: hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return value + HOSTILE if isinstance(value, str) else value


def summary(name="simclr_tiny_shapes"):
    return {
        "name": name, "verdict": "Healthy", "final": {"knn_top1": 91.0, "linear_top1": 92.0}, "baselines": {}, "num_features": 192,
        "health": {"effective_rank": 40.0}, "best": {"epoch": 4, "knn_top1": 91.5}, "epochs": 3, "steps": 50, "global_batch": 64, "seed": 0,
        "parameters": 5_500_000, "stem": "patches", "image_size": 32, "evaluation": "kNN", "config_hash": "0123", "commit": "abc",
        "command": "ssl-zoo method=simclr", "versions": {"torch": "2"}, "run": "x", "sync": "wandb sync x",
        "data": {"train": 1000, "test": 200, "classes": 10, "resident": True, "skipped": ["a.png: bad"], "skipped_count": 1, "source": "x"},
        "seconds": {"total": 60.0, "training": 40.0, "evaluation": 10.0, "data_and_model": 10.0},
        "speed": {"images_per_s": 1000.0, "devices": 1, "device": "cpu", "precision": "32", "peak_memory_mib": None},
    }  # fmt: skip


def result():
    return {"protocol": "linear", "dataset": "mine", "top1": 50.0, "classes": ["cat", "dog"], "settings": {"a": "b", "c": ["d"]},
            "features": {"net": "auto", "layer": "x", "pool": "y", "blocks": 1}, "confusion": [[1, 2], [3, 4]], "per_class": {"cat": 1.0},
            "results": [{"labels": "1 %", "top1": 5.0}, {"labels": "x", "top1": 6.0}], "seconds": {}}  # fmt: skip


@pytest.fixture
def wild(saved):
    """A run folder whose every text is hostile."""
    config = hostile(plain(OmegaConf.load(saved / "config.yaml")))
    (saved / "config.yaml").write_text(yaml.safe_dump(config))
    (saved / "summary.json").write_text(json.dumps(hostile(summary())))
    (saved / "metrics.csv").write_text("step,epoch,train/loss,eval/knn_top1\n4,0,5.0,\n9,0,,70\n")
    (saved / "eval").mkdir()
    for name in ("few_shot", "linear", HOSTILE.replace("/", " ").replace("\x1b", "\n")):
        (saved / "eval" / f"{name}.json").write_text(json.dumps(hostile(result()) | {"protocol": name}))
    return saved


def visible(text):
    assert not re.search("[\u2028\u202e\u200f\x1b\x07]", text)


def test_the_page_of_a_run_shows_every_text_as_text(wild, tmp_path):
    text = write_report(wild).read_text(encoding="utf-8")
    page, calm = Page(text), tmp_path / "calm"
    assert "<script>alert(1)</script>" in "".join(page.texts)
    assert not {"script", "a"} & set(page.found)
    visible(text)
    (calm / "figures").mkdir(parents=True)
    (calm / "summary.json").write_text(json.dumps(summary()))
    (calm / "metrics.csv").write_bytes((wild / "metrics.csv").read_bytes())
    without = [t for t in Page(write_report(calm).read_text(encoding="utf-8")).found if t != "img"]
    (wild / "eval").rename(wild / "aside")
    assert [t for t in Page(write_report(wild).read_text(encoding="utf-8")).found if t != "img"] == without


def wild_table(wild):
    runs, problems = collect([wild.parent])
    assert len(runs) == 1
    groups, _ = group(runs, {"method": ["simclr"], "dataset": []}, {wild: {HOSTILE: (HOSTILE, HOSTILE)}}, {wild: HOSTILE})
    return groups, [*problems, Problem(Path(HOSTILE), HOSTILE)]


def test_the_page_of_many_runs_shows_every_text_as_text(wild, tmp_path):
    groups, problems = wild_table(wild)
    page, table = write_benchmark(groups, problems, tmp_path / "out", HOSTILE)
    text = page.read_text(encoding="utf-8")
    assert Page(text).found.count("script") == 1
    visible(text)
    told = table.read_text(encoding="utf-8")
    visible(told)
    assert not re.search(r"<(?!/?sup>)", re.sub(r"`[^`\n]*`", "", told.replace("\\`", "")))
    lines = [line for line in told.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}) == 1
    assert len(lines) == 3
    terminal(groups, HOSTILE)  # rich takes [/b] for a mark that was never opened


def test_a_browser_runs_our_script_alone(wild, tmp_path):
    groups, problems = wild_table(wild)
    text = write_benchmark(groups, problems, tmp_path / "out", "x")[0].read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", text, re.S).group(1)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text).group(1)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    digest = re.search(r"sha256-([\w+/=]+)", policy).group(1)
    assert base64.b64decode(digest) == hashlib.sha256(script.encode()).digest()
    assert text.index("Content-Security-Policy") < text.index("<title>")
    assert "script-src" not in write_report(wild).read_text(encoding="utf-8")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_takes_no_text_for_a_formula(wild, tmp_path, start):
    groups, problems = wild_table(wild)
    formula = f"{start}cmd|' /C calc'!A0"
    groups[0].method = groups[0].dataset = groups[0].variant = groups[0].unchecked = formula
    groups[0].runs[0].summary |= {"command": formula, "commit": formula, "config_hash": formula}
    groups[0].measures[formula] = groups[0].measures["knn_top1"]
    write_benchmark(groups, problems, tmp_path / "out", "x")
    for name in ("table.csv", "runs.csv"):
        with open(tmp_path / "out" / name, newline="", encoding="utf-8") as f:
            cells = [c for row in csv.reader(f) for c in row]
        assert f"'{formula}" in cells
        assert not [c for c in cells if c.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_messages_do_not_steer_the_terminal(capsys):
    with pytest.raises(SystemExit) as e:
        main(["run=\x1b[31m\nred\x07\u202e", "metod\x1b]0;title\x07=3"])
    said = capsys.readouterr().err
    assert e.value.code == 2
    assert said.startswith("ssl-zoo: ")
    assert said.count("\n") == 1
    visible(said)


# ---------------------------------------------------------------------------------------------- other packages, and the network
FOREIGN = {
    "foreign_package.py": """
        import lightning.pytorch as L
        class Spy(L.Callback):
            def on_train_start(self, trainer, module): print("SPY")
        def factory(): return [Spy()]
    """,
    "foreign_package-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: foreign-package\nVersion: 1.0\n",
    "foreign_package-1.0.dist-info/entry_points.txt": "[lightning.pytorch.callbacks_factory]\nspy = foreign_package:factory\n",
    "broken_package-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: broken-package\nVersion: 1.0\n",
    "broken_package-1.0.dist-info/entry_points.txt": "[lightning.pytorch.callbacks_factory]\nspy = broken_package:factory\n",
    "hydra_plugins/other/broken.py": "raise RuntimeError('a plugin that is broken')",
    "hydra_plugins/other/path.py": """
        from hydra.plugins.search_path_plugin import SearchPathPlugin
        class Elsewhere(SearchPathPlugin):
            def manipulate_search_path(self, search_path): search_path.prepend("other", "file:///nowhere")
    """,
}

# Every attempt to reach another machine is written down and fails. {where}: a file.
OFFLINE = """
import socket, sys
def refuse(kind):
    def attempt(*args, **_):
        if kind == "connect" and args[0].family == getattr(socket, "AF_UNIX", None): return unix(*args)
        print(kind, args[1:], file=open({where!r}, "a")); raise OSError("no network")
    return attempt
unix = socket.socket.connect
socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo = refuse("connect"), refuse("connect"), refuse("look up")
socket.socket.sendto = refuse("send")
"""


@pytest.mark.slow
def test_a_run_is_neither_changed_by_other_packages_nor_asks_the_network(tmp_path):
    """Two faults at once, because each start of torch takes seconds; the same words as in tests/test_train.py."""
    for name, text in FOREIGN.items():
        write(tmp_path / "site", name, textwrap.dedent(text).encode())
    write(tmp_path / "site", "sitecustomize.py", OFFLINE.format(where=str(tmp_path / "asked")).encode())
    check = (
        "from importlib.metadata import entry_points; import lightning.pytorch as L\n"
        "assert len(entry_points(group='lightning.pytorch.callbacks_factory')) >= 2\n"
        "import socket\ntry: socket.create_connection(('127.0.0.1', 9)); raise SystemExit('it was reached')\nexcept OSError: pass\n"
        f"open({str(tmp_path / 'asked')!r}, 'w').close()\n"
        "from ssl_zoo.cli import main\nimport sys\n"
        f"try: main({[*SMOKE, 'run=mine']!r})\nexcept SystemExit as e: code = e.code\n"
        "print('foreign_package' in sys.modules, [m for m in sys.modules if m.startswith('hydra_plugins')])\n"
        "sys.exit(code)"
    )
    paths = {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}", "SSL_ZOO_CACHE": str(tmp_path / "cache")}
    for name in [k for k in os.environ if k.startswith(("WANDB", "HF_"))]:
        paths[name] = ""
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, env={**os.environ, **paths}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "SPY" not in done.stdout
    assert done.stdout.splitlines()[-1] == "False []"
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("left out")]
    assert "broken-package" in line
    assert "foreign-package" in line
    assert not done.stderr.strip()
    assert not (tmp_path / "asked").read_text()
    assert (tmp_path / "mine" / "report.html").is_file()

"""Suites, what of them is left to do, and the table and page of many runs."""

import csv
import html.parser
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SMOKE
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_zoo.benchmark import BUSY, FINISHED, RESUME, RUN, _anew, _left, plan_of
from ssl_zoo.cli import main
from ssl_zoo.config import compose, plain
from ssl_zoo.errors import UserError
from ssl_zoo.fingerprint import changes, config_hash, group_hash
from ssl_zoo.overrides import override, parse
from ssl_zoo.reports.benchmark_page import render, write_benchmark
from ssl_zoo.reports.collect import Problem, Run, collect
from ssl_zoo.reports.groups import Group, Measure, group, split_name
from ssl_zoo.reports.published import _all, published
from ssl_zoo.reports.table import command, markdown
from ssl_zoo.reports.table_files import escape_latex, latex
from ssl_zoo.saved import name_of, save_config
from ssl_zoo.suite import load_suite

NAMES = {"method": ["simclr", "moco", "moco_v3", "byol"], "dataset": ["shapes", "cifar10"]}
LOOP = "method: &a\n  b: *a\n" + "".join(f"{g}: {{x: 1}}\n" for g in ("backbone", "dataset", "data", "trainer"))
COMPOSED: dict[tuple[str, ...], object] = {}


def summary(name, seed, knn, epochs=3, **more):
    final = {"knn_top1": knn, "linear_top1": knn + 1.5, "linear_top5": 99.0, "online_linear_top1": knn - 2}
    base = {"untrained": {"knn_top1": 17.0}, "raw_pixels": {"knn_top1": 43.5, "linear_top1": 16.3}}
    speed = {"images_per_s": 1000.0, "peak_memory_mib": 900.0}
    facts = {"name": name, "seed": seed, "epochs": epochs, "global_batch": 256, "final": final, "baselines": base, "speed": speed}
    return {**facts, "seconds": {"total": 120.0}, "evaluation": "kNN: k=20.", "config_hash": f"{seed:016x}", "commit": "abc", **more}


def write_run(folder, words=("epochs=3",), knn=80.0, seed=0, command=None, **more):
    """A finished run as `ssl-zoo` leaves it, with the numbers asked for."""
    folder.mkdir(parents=True)
    line = command or shlex.join(["ssl-zoo", *words, f"seed={seed}", f"run={folder}"])
    if tuple(words) not in COMPOSED:
        COMPOSED[tuple(words)] = compose("train", list(words))
    config = COMPOSED[tuple(words)].copy()
    config.seed, config.run = seed, str(folder)
    save_config(config, folder, [line])
    method = next((w.partition("=")[2] for w in words if w.startswith("method=")), "simclr")
    facts = summary(f"{method}_tiny_shapes", seed, knn, config.epochs, command=line) | more
    (folder / "summary.json").write_text(json.dumps(facts))
    (folder / "metrics.csv").write_text(f"step,epoch,train/loss,eval/knn_top1\n4,0,5.0,\n9,0,,{knn - 10}\n19,1,,{knn}\n")
    return folder


def tables(place, stale=None, unchecked=None):
    runs, problems = collect([place])
    groups, repeats = group(runs, NAMES, stale or {}, unchecked or {})
    return groups, [*problems, *repeats]


# ---------------------------------------------------------------------------------------------- which configs train the same
def test_seeds_are_one_group_and_places_do_not_matter():
    a = plain(compose("train", ["epochs=3"]))
    b = plain(compose("train", ["epochs=3", "seed=4", "out=there", "logger=tensorboard", "data.workers=3", "data.cache=/tmp/x"]))
    c = plain(compose("train", ["epochs=3", "optimizer.base_lr=2"]))
    assert group_hash(a) == group_hash(b) != group_hash(c)
    assert config_hash(a) != config_hash(b)
    assert changes(a, b) == {"seed": (0, 4)}
    assert changes(a, c) == {"optimizer.base_lr": (1.0, 2)}


def test_what_came_to_a_later_version_and_what_is_decided_at_the_start_is_no_change(tmp_path):
    now = plain(compose("train", ["dataset=folder", f"dataset.path={tmp_path}"]))
    saved = json.loads(json.dumps(now))
    saved["dataset"]["decoded"] = True  # auto, decided by train.py
    del saved["trainer"]["compile"], saved["data"]["decoded"]
    saved["dataset"]["path"] = "/elsewhere"
    assert changes(saved, now) == {"dataset.path": ("/elsewhere", str(tmp_path))}
    assert changes(saved, now, paths=False) == {}
    del saved["method"]["temperature"]
    assert changes(saved, now, paths=False) == {"method.temperature": ("absent", now["method"]["temperature"])}
    assert set(changes({**now, "epochs": 1, "trainer": {**now["trainer"], "max_epochs": 1}}, now)) == {"epochs"}


def test_devices_that_were_counted_at_the_start_are_those_asked_for():
    now = plain(compose("train", ["trainer.devices=auto"]))
    assert changes({**now, "trainer": {**now["trainer"], "devices": 1, "num_nodes": 1}}, now) == {}
    two = {**now, "trainer": {**now["trainer"], "devices": 2}}
    assert changes(two, {**two, "trainer": {**two["trainer"], "devices": 4}}) == {"trainer.devices": (2, 4)}


# ---------------------------------------------------------------------------------------------- collecting and grouping
def test_mean_and_sample_standard_deviation_over_seeds(tmp_path):
    for seed, knn in enumerate((80.0, 82.0, 87.0)):
        write_run(tmp_path / "a" / f"seed{seed}", knn=knn, seed=seed)
    write_run(tmp_path / "b", ["method=byol", "epochs=3"], knn=60.0)
    (byol, simclr), problems = tables(tmp_path)
    assert not problems
    assert (simclr.method, simclr.backbone, simclr.dataset, [r.seed for r in simclr.runs]) == ("simclr", "tiny", "shapes", [0, 1, 2])
    assert simclr.measures["knn_top1"].mean == pytest.approx(83.0)
    assert simclr.measures["knn_top1"].std == pytest.approx(((9 + 1 + 16) / 2) ** 0.5)
    assert byol.measures["knn_top1"].std is None
    assert simclr.minutes == 2.0
    assert simclr.best == {"knn_top1", "linear_top1", "linear_top5", "online_linear_top1"}
    assert byol.best == {"linear_top5"}  # as high
    text = markdown([byol, simclr], [], "two")
    assert "| **83.0 ± 3.6** |" in text
    assert "| 60.0 |" in text


def test_what_eval_found_counts_where_every_seed_was_judged_in_the_same_way(tmp_path):
    runs = [write_run(tmp_path / f"seed{s}", seed=s) for s in (0, 1)]

    def judge(run, top1, epochs=3, **settings):
        (run / "eval").mkdir(exist_ok=True)
        found = {"protocol": "linear", "settings": settings, "top1": top1, "top5": 99.5, "epochs": epochs}
        (run / "eval" / "linear.json").write_text(json.dumps(found))

    judge(runs[0], 90.0, l2=1)
    (row,), _ = tables(tmp_path)
    assert row.measures["linear_top1"].values == (81.5, 81.5)  # one of two seeds: that of the run's end, for both
    judge(runs[1], 92.0, l2=2)
    assert tables(tmp_path)[0][0].measures["linear_top1"].mean == 81.5  # judged in another way
    judge(runs[1], 92.0, l2=1)
    measure = tables(tmp_path)[0][0].measures["linear_top1"]
    assert (measure.values, measure.protocol) == ((90.0, 92.0), "ssl-zoo eval protocol=linear: l2=1")
    judge(runs[1], 92.0, epochs=1, l2=1)
    (row,), (problem,) = tables(tmp_path)
    assert row.measures["linear_top1"].mean == 81.5
    assert "eval/linear.json was measured after 1 epochs" in problem.reason


def test_a_protocol_that_no_run_ends_with_has_no_mean_over_different_settings(tmp_path):
    for seed, (top1, length) in enumerate(((90.0, 50), (60.0, 1))):
        run = write_run(tmp_path / f"seed{seed}", seed=seed)
        (run / "eval").mkdir()
        found = {"protocol": "finetune", "settings": {"epochs": length}, "top1": top1, "epochs": 3}
        (run / "eval" / "finetune.json").write_text(json.dumps(found))
    (row,), _ = tables(tmp_path)
    assert "finetune_top1" not in row.measures
    found["settings"] = {"epochs": 50}
    (run / "eval" / "finetune.json").write_text(json.dumps(found))
    assert tables(tmp_path)[0][0].measures["finetune_top1"].mean == 75.0


def test_other_protocols_get_columns_of_their_own(tmp_path):
    run = write_run(tmp_path / "a")
    (run / "eval").mkdir()
    (run / "eval" / "linear-cifar10.json").write_text('{"protocol": "linear", "top1": 55.5, "epochs": 3}')
    few = {"protocol": "few_shot", "results": [{"labels": "1 %", "top1": 40.0}, {"labels": "10 %", "top1": 60.0}], "epochs": 3}
    (run / "eval" / "few_shot.json").write_text(json.dumps(few))
    (run / "eval" / "health.json").write_text('{"protocol": "health", "epochs": 3}')
    (row,), problems = tables(tmp_path)
    assert not problems
    head = markdown([row], [], "x").splitlines()[2]
    assert "| few_shot 1 % top-1 | few_shot 10 % top-1 | linear-cifar10 top-1 |" in head
    assert row.measures["few_shot 10 %_top1"].mean == 60.0


def test_unfinished_and_unreadable_runs_are_told_with_the_reason(tmp_path):
    write_run(tmp_path / "good")
    for name, file, text in (("cut", "summary.json", '{"name": "a'), ("odd", "summary.json", "[1]"), ("binary", "config.yaml", "\x00"),
                             ("empty", "config.yaml", ""), ("loop", "config.yaml", LOOP),
                             ("deep", "summary.json", "[" * 100_000)):  # fmt: skip
        (write_run(tmp_path / name) / file).write_text(text)
    (write_run(tmp_path / "bytes") / "summary.json").write_bytes(b"\xff\xfe")
    (write_run(tmp_path / "started") / "summary.json").unlink()
    (tmp_path / "started" / "checkpoints").mkdir()
    (tmp_path / "started" / "checkpoints" / "last.ckpt").touch()
    (write_run(tmp_path / "failed") / "summary.json").unlink()
    (write_run(tmp_path / "lost") / "config.yaml").unlink()
    (write_run(tmp_path / "scribbled", seed=1) / "metrics.csv").write_text("step,eval/knn_top1\nx,1\n")
    (tmp_path / "good" / "eval").mkdir()
    (tmp_path / "good" / "eval" / "linear.json").write_text("{")
    groups, problems = tables(tmp_path)
    assert [len(g.runs) for g in groups] == [2]
    reasons = {p.folder.name: p.reason for p in problems}
    assert set(reasons) == {"good", "cut", "odd", "binary", "empty", "loop", "deep", "bytes", "started", "failed", "lost", "scribbled"}
    assert reasons["started"] == f"unfinished: continue it with ssl-zoo resume run={tmp_path / 'started'}"
    assert "before its first checkpoint" in reasons["failed"]
    assert reasons["lost"] == "config.yaml is missing"
    assert "not a whole summary" in reasons["odd"]
    assert "no curve" in reasons["scribbled"]
    page = render(groups, problems, tmp_path, "x")
    assert all(name in page for name in reasons)


def test_a_seed_trained_twice_counts_once(tmp_path):
    write_run(tmp_path / "20260101", knn=70.0)
    write_run(tmp_path / "20260102", knn=90.0)
    (row,), (problem,) = tables(tmp_path)
    assert row.measures["knn_top1"].values == (90.0,)
    assert problem.folder.name == "20260101"


def test_numbers_that_are_none_are_left_out(tmp_path):
    for seed, bad in enumerate((float("nan"), None, "80", True, 10**400)):
        write_run(tmp_path / str(seed), seed=seed, final={"knn_top1": bad}, seconds=None, baselines=3, speed=[])
    write_run(tmp_path / "good", seed=9, final={"knn_top1": 50.0}, seconds=None, baselines={}, speed={})
    (row,), _ = tables(tmp_path)
    assert row.measures["knn_top1"].values == (50.0,)
    assert "50.0 (1 of 6)" in markdown([row], [], "x")
    assert "–" in render([row], [], tmp_path, "x")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("simclr_tiny_shapes", ("simclr", "tiny", "shapes")),
        ("moco_v3_vit_s_cifar10", ("moco_v3", "vit_s", "cifar10")),
        ("byol_tiny_shapes+without predictor", ("byol", "tiny", "shapes")),
        ("own_resnet18_mine", ("own", "resnet18", "mine")),
        ("x", ("x", "", "")),
    ],
)
def test_names_are_taken_apart(name, parts):
    assert split_name(name, NAMES) == parts


def test_variants_are_told_apart_by_what_differs(tmp_path):
    write_run(tmp_path / "a", ["method=byol", "epochs=3"])
    write_run(tmp_path / "b", ["method=byol", "epochs=3", "method.predictor=false"])
    groups, _ = tables(tmp_path)
    assert [g.variant for g in groups] == ["predictor=True", "predictor=False"]


# ---------------------------------------------------------------------------------------------- the files
WILD = r"a & b < c _ d $ e % f # g { h } i ~ j ^ k \ l | m ` n * o é 中 😀 " + "\udcff \x00 \n\r\t '\" =1+1 </td><script>"


def wild_group(text):
    run = Run(Path("runs") / "x", summary(text, 0, 80.0) | {"command": text, "commit": text, "config_hash": text}, {"seed": text}, "")
    row = Group(text, text, text, [run], {text: (text, text)}, text, text, {"knn_top1": Measure(80.0, None, (80.0,), text)})
    return row


class Balanced(html.parser.HTMLParser):
    """Fails on a tag that is closed out of turn or that our pages do not have."""

    KNOWN = frozenset("html head meta title style body main h1 h2 h3 p section div table thead tbody tr th td a b sup small span abbr "
                      "code pre img ol ul li script".split())  # fmt: skip

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        assert tag in self.KNOWN
        assert all(not name.startswith("on") for name, _ in attrs)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_files(text, folder):
    row = wild_group(text)
    write_benchmark([row], [Problem(Path(text.replace("\0", "")), text)], folder, text)
    page = (folder / "index.html").read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert page.count("<script>") == 1
    lines = [line for line in (folder / "table.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}) == 1
    assert len(lines) == 3
    body = (folder / "table.tex").read_text(encoding="utf-8")
    cells = body.split("\\midrule\n")[1].split("\\\\\n")[0]
    assert len(re.findall(r"(?<!\\)&", cells)) == body.split("\\toprule\n")[1].split("\\midrule")[0].count("&")
    assert not re.search(r"(?<!\\)[#$%_^~]", cells)
    assert body.count("{") - body.count(r"\{") == body.count("}") - body.count(r"\}")


def test_wild_names_break_no_file(tmp_path):
    check_files(WILD, tmp_path)
    assert "<script>" not in (tmp_path / "table.md").read_text()


@settings(max_examples=12, deadline=None)
@given(st.text(st.characters(codec=None), max_size=30))
def test_any_name_breaks_no_file(tmp_path_factory, text):
    check_files(text, tmp_path_factory.mktemp("wild"))


def test_latex_takes_every_character():
    assert escape_latex("a_b & 50% $x$ #1 {y} ~ ^ \\") == (
        r"a\_b \& 50\% \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert escape_latex("é ± 中 < |") == r"é \(\pm\) U+4E2D \textless{} \textbar{}"
    assert "\n" not in escape_latex("a\nb\x00")


def test_the_tabular_is_one_of_booktabs(tmp_path):
    write_run(tmp_path / "a", knn=80.0)
    write_run(tmp_path / "b", seed=1, knn=82.0)
    groups, _ = tables(tmp_path)
    body = latex(groups)
    assert r"simclr & tiny & shapes & 256 & 3 & 2 & 81.0 \(\pm\) 1.4 &" in body
    for line in (r"\begin{tabular}{lllrrrrrrrr}", r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"):
        assert body.count(line) == 1
    assert "table" not in body.replace("tabular", "")
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {10}


def test_csv_comes_back_as_it_was(tmp_path):
    wild = 'with, comma "quotes" and\nlines; é 中'
    for seed, knn in enumerate((80.125, 82.0)):
        write_run(tmp_path / str(seed), knn=knn, seed=seed, commit=wild)
    groups, _ = tables(tmp_path)
    write_benchmark(groups, [], tmp_path / "out", "x")
    with open(tmp_path / "out" / "table.csv", newline="", encoding="utf-8") as f:
        (row,) = csv.DictReader(f)
    assert float(row["knn_top1_mean"]) == groups[0].measures["knn_top1"].mean == 81.0625
    assert float(row["knn_top1_std"]) == groups[0].measures["knn_top1"].std
    assert (row["n"], row["seeds"], row["commit"], row["knn_top1_protocol"]) == ("2", "0 1", wild, "kNN: k=20.")
    assert float(row["minutes"]) == 2.0
    with open(tmp_path / "out" / "runs.csv", newline="", encoding="utf-8") as f:
        runs = list(csv.DictReader(f))
    assert [(r["seed"], float(r["knn_top1"])) for r in runs] == [("0", 80.125), ("1", 82.0)]
    assert runs[0]["command"].startswith("ssl-zoo epochs=3")
    assert not list((tmp_path / "out").glob("*.part"))


def test_the_page_stands_alone_and_links_to_the_runs(tmp_path):
    for seed in (0, 1):
        (write_run(tmp_path / "runs" / f"seed {seed}#", seed=seed) / "report.html").touch()
    groups, _ = tables(tmp_path / "runs")
    page = render(groups, [], tmp_path / "report", "mine")
    places = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert [p for p in places if not p.startswith(("data:image/svg+xml;base64,", "#"))] == [
        "../runs/seed%200%23/report.html", "../runs/seed%201%23/report.html"]  # fmt: skip
    assert page.count("data:image/svg+xml") == 2
    assert "http" not in re.sub(r"base64,[\w+/=]+|http-equiv", "", page)
    assert 'data-kind="number"' in page
    assert "aria-sort" in page
    assert "ssl-zoo epochs=3 seed=0</pre>" in page  # without run=


def test_the_command_of_a_row_is_without_its_folder():
    row = wild_group("x")
    for line in ("ssl-zoo a=1 run=b", """ssl-zoo 'run='"'"'my folder'"'"'' a=1""", "ssl-zoo run=b/c a=1", "ssl-zoo 'run=my folder' a=1"):
        row.runs[0].summary["command"] = line
        assert command(row) == "ssl-zoo a=1", line


def test_published_numbers_are_shown_where_all_three_agree(tmp_path):
    assert {p.epochs for p in published("byol", "resnet18", "cifar10")} == {200, 800, 1000}
    assert not published("byol", "tiny", "cifar10")
    assert all(p.protocol and p.source and 0 < p.value < 100 for rows in _all().values() for p in rows)
    methods = {f.stem for f in (ROOT / "conf" / "method").glob("*.yaml")}
    assert {m for m, *_ in _all()} <= methods
    words = ["method=byol", "backbone=resnet18", "dataset=cifar10"]
    write_run(tmp_path / "a", words, name="byol_resnet18_cifar10")
    write_run(tmp_path / "b", [*words, "data.subset=1000"], name="byol_resnet18_cifar10")
    (whole, part), _ = tables(tmp_path)
    assert (whole.dataset, part.dataset, part.published) == ("cifar10", "cifar10[:1000]", [])
    assert "kNN 91.0 (800 ep.)" in markdown([whole, part], [], "x")
    assert "online linear 92.6 (1000 ep.)" in render([whole], [], tmp_path, "x")


# ---------------------------------------------------------------------------------------------- stale rows, through the command
def run_main(*words):
    with pytest.raises(SystemExit) as e:
        main(list(words))
    return e.value.code


def test_a_row_whose_recipe_has_changed_is_stale(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/good"), ["epochs=3"])
    write_run(Path("runs/old"), ["epochs=3", "method.temperature=0.9"], command="ssl-zoo epochs=3 run=runs/old")
    write_run(Path("runs/longer"), ["epochs=9"], seed=2, command="ssl-zoo epochs=3 seed=2 run=x\nssl-zoo resume run=x epochs=9")
    file = Path("runs/longer/config.yaml")
    file.write_text("# ssl-zoo epochs=3 seed=2\n# ssl-zoo resume run=x epochs=9\n" + file.read_text().split("\n", 1)[1])
    write_run(Path("runs/odd"), ["epochs=3", "batch_size=64"], command="ssl-zoo method=gone")
    assert run_main("report", "runs=runs") == 0
    out = capsys.readouterr().out
    assert "runs/report/table.md" in out
    text = Path("runs/report/table.md").read_text()
    assert "simclr (temperature=0.9) † |" in text
    assert "method.temperature was 0.9 and would be 0.2" in text
    assert text.count("†") == 2  # the row and its note
    assert "could not be checked against today's recipes: There is no method 'gone'" in text
    assert run_main("report", "runs=runs/o*", "out=there") == 0
    assert {f.name for f in Path("there").iterdir()} == {"index.html", "table.md", "table.csv", "runs.csv", "table.tex"}
    assert len(Path("there/runs.csv").read_text().splitlines()) == 3


def test_commands_of_a_run_that_went_on_by_itself_are_not_taken_for_changes(tmp_path, capsys, monkeypatch):
    """resume=auto adds the command that it was given, which may be written otherwise; what `resume` was given comes after it."""
    monkeypatch.chdir(tmp_path)
    auto = "ssl-zoo backbone=tiny epochs=3 resume=auto"
    write_run(Path("runs/a"), ["epochs=9"], command=f"ssl-zoo epochs=3\n{auto}\nssl-zoo resume run=x epochs=9")
    write_run(Path("runs/b"), ["epochs=3"], seed=1, command=f"ssl-zoo epochs=3\nssl-zoo resume run=x epochs=2\n{auto}")
    assert run_main("report", "runs=runs") == 0
    assert "†" not in Path("runs/report/table.md").read_text()


def test_names_of_the_configs_of_a_user_are_taken_apart(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "my_simclr.yaml").write_text((ROOT / "conf/method/simclr.yaml").read_text())
    command = "ssl-zoo --config-dir mine method=my_simclr epochs=3"
    write_run(Path("runs/a"), ["epochs=3"], command=command, name="my_simclr_tiny_shapes")
    assert run_main("report", "runs=runs") == 0
    assert "| my_simclr † | tiny | shapes |" in Path("runs/report/table.md").read_text()


def test_a_resumed_run_keeps_the_name_of_its_first_command(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "my_simclr.yaml").write_text((ROOT / "conf/method/simclr.yaml").read_text())
    assert name_of(["ssl-zoo method=byol 'run=a b/c'", "ssl-zoo resume run=x epochs=3"]) == "byol_tiny_shapes"
    assert name_of([f"ssl-zoo pretrain --config-dir {tmp_path} method=my_simclr"]) == "my_simclr_tiny_shapes"
    for gone in ([], ["ssl-zoo method=gone"], ["ssl-zoo 'method"], ["\\"]):
        assert name_of(gone) is None


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["runs=nowhere"], "is no folder, and no pattern that fits one"),
        (["runs="], "is no folder"),
        (["runs=."], "There is no finished run in ."),
        (["runs=.", "ou=x"], "not 'ou=x'"),
    ],
)
def test_what_cannot_be_reported(tmp_path, monkeypatch, capsys, words, answer):
    monkeypatch.chdir(tmp_path)
    assert run_main("report", *words) == 2
    err = capsys.readouterr().err
    assert answer in err
    assert err.count("\n") == 1


# ---------------------------------------------------------------------------------------------- suites
def suite_file(folder, text):
    file = folder / "mine.yaml"
    file.write_text(text)
    return str(file)


def test_a_suite_is_a_product_and_runs_change_and_add_to_it(tmp_path):
    text = """
method: [simclr, byol]
seed: [0, 1]
overrides: [epochs=5]
eval: knn
runs:
  - {method: byol, seed: 1, overrides: [batch_size=64]}
  - {method: byol, seed: 0, name: alone, overrides: [method.predictor=false]}
"""
    suite = load_suite(suite_file(tmp_path, text), ["epochs=6"], [])
    found = {(c.name, c.seed): c for c in suite.cells}
    assert set(found) == {*((f"{m}_tiny_shapes", s) for m in ("simclr", "byol") for s in (0, 1)), ("byol_tiny_shapes+alone", 0)}
    assert {c.config["epochs"] for c in suite.cells} == {6}  # the command line wins
    assert found["byol_tiny_shapes", 1].config["batch_size"] == 64 != found["byol_tiny_shapes", 0].config["batch_size"]
    assert found["byol_tiny_shapes+alone", 0].config["method"]["predictor"] is False
    assert found["simclr_tiny_shapes", 1].words == ("method=simclr", "epochs=5", "epochs=6", "seed=1")
    assert (suite.name, suite.protocols) == ("mine", ["knn"])
    more = load_suite(suite_file(tmp_path, text + "  - {method: [simclr, byol], overrides: [optimizer.base_lr=0.5]}\n"), [], [])
    twice = {(c.name, c.seed): c.config for c in more.cells}["byol_tiny_shapes", 1]
    assert (twice["batch_size"], twice["optimizer"]["base_lr"]) == (64, 0.5)  # of both entries that name it
    last = suite.cells[-1]
    assert last.config == plain(compose("train", list(last.words)))


def test_axes_on_the_command_line_choose(tmp_path):
    file = suite_file(tmp_path, "method: [simclr, byol]\nruns: [{method: vicreg, name: x}, {method: byol, name: y}]\n")
    chosen = load_suite(file, ["method=byol", "seed=[3, 4]"], [])
    assert [(c.name, c.seed) for c in chosen.cells] == [(f"byol_tiny_shapes{v}", s) for v in ("", "+y") for s in (3, 4)]


SLIPS = {
    "metod: simclr": "There is no key 'metod'; did you mean 'method'?",
    "method: simlcr": "There is no method 'simlcr'; did you mean 'simclr'?",
    "method: simclr\nbackbone: [tiny, resnet81]": "did you mean 'resnet18'?",
    "method: simclr\noverrides: [epoch=3]": "did you mean 'epochs'?",
    "method: simclr\noverrides: [epochs]": "neither a verb nor an override",
    "method: simclr\noverrides: [seed=3]": "write seed: as a key of the suite",
    "method: simclr\noverrides: [run=x]": "the benchmark chooses it",
    "method: simclr\noverrides: {epochs: 3}": "it takes text or a list of texts",
    "method: simclr\nseed: [a]": "seed=['a'] does not work",
    "method: simclr\nseed: []": "seed=[] does not work",
    "method: simclr\nseed: true": "seed=True does not work",
    "method: []": "method=[] does not work",
    "method: simclr\nruns: [{name: a/b}]": "name=a/b does not work",
    "method: simclr\nruns: [{name: [a]}]": "it becomes part of a folder's name",
    "method: simclr\neval: [knnn]": "protocol",
    "method: simclr\nruns: 3": "runs takes a list of tables",
    "method: simclr\nruns: [3]": "runs takes a list of tables",
    "runs: [{metod: simclr}]": "did you mean 'method'?",
    "runs: [{method: simclr, eval: knn}]": "There is no key 'eval'",
    "method: simclr\nruns: [{name: a, overrides: [optimizer.base_rl=1]}]": "did you mean 'optimizer.base_lr'?",
    "backbone: tiny": "it holds no run",
    "- simclr": "is not a suite",
    "": "is not a suite",
    "method: [": "cannot be read",
    "\x00": "cannot be read",
    "method: timm\nbackbone: tiny": "There is no method 'timm'",
    "method: simclr\nbackbone: timm": "backbone.name is needed",
    "method: [simclr, simclr]\nbackbone: timm\noverrides: [backbone.name=resnet18]\nruns: [{backbone: resnet18}]": "is listed twice",
}


@pytest.mark.parametrize("text", SLIPS)
def test_a_slip_in_a_suite_is_one_sentence(tmp_path, text):
    file = suite_file(tmp_path, text)
    with pytest.raises(UserError) as e:
        load_suite(file, [], [])
    assert SLIPS[text] in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([], "benchmark needs one suite"),
        (["suite=shaps"], "did you mean 'shapes'?"),
        (["suite=no.yaml"], "suite=no.yaml is not a file"),
        (["suite=shapes", "epoch=3"], "did you mean 'epochs'?"),
        (["suite=shapes", "run=x"], "use out=... instead"),
        (["suite=shapes", "seed=x"], "seed=x does not work"),
        (["suite=shapes", "seed="], "seed= does not work"),
        (["suite=shapes", "method=simlcr"], "did you mean 'simclr'?"),
    ],
)
def test_a_slip_is_told_before_torch(tmp_path, words, answer):
    code = (
        f"import sys\nfrom ssl_zoo.cli import main\ntry: main({['benchmark', *words]!r})\n"
        "except SystemExit as e: print(e.code, [m for m in ('torch', 'lightning', 'matplotlib') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.stdout.strip() == "2 []", done.stderr
    assert answer in done.stderr


SUITES = [pytest.param(f, marks=[pytest.mark.slow] if "cifar10_" in f.stem else []) for f in (ROOT / "conf" / "suite").glob("*.yaml")]


@pytest.mark.parametrize("file", SUITES, ids=lambda f: f.stem)
def test_our_suites_compose(file):
    suite = load_suite(file.stem, ["seed=0"], [])
    published, tuning = file.stem.startswith("cifar10_"), file.stem.startswith("tune_")
    assert suite.protocols == ([] if published or tuning else ["knn", "linear"])  # of those the linear probe is that of the run's end
    if tuning:
        assert {c.config["data"]["held_out"] for c in suite.cells} == {5000}
        runs = {"tune_cifar10_resnet18": 33, "tune_cifar10_tiny_early": 12}[file.stem]
        assert len({group_hash(c.config) for c in suite.cells}) == len(suite.cells) == runs
        return
    assert [c.config["method"]["_target_"].split(".")[2] for c in suite.cells] == yaml.safe_load(file.read_text())["method"]
    if published:
        for cell in suite.cells:
            said = cell.config["evaluation"]
            assert (said["knn"], said["bank"], said["linear"]["final"]) == ({"k": 200, "temperature": 0.1}, 50_000, True)
            assert cell.config["data"]["held_out"] is None
        of_images = {f.stem for f in (ROOT / "conf" / "method").glob("*.yaml") if "text" not in yaml.safe_load(f.read_text())}
        assert {re.split("_(?:resnet18|tiny)_", c.name)[0] for c in suite.cells} == of_images


# ---------------------------------------------------------------------------------------------- what is left to do
@pytest.fixture
def cell(tmp_path):
    return load_suite(suite_file(tmp_path, "method: simclr\noverrides: [epochs=3]\n"), [], []).cells[0]


def test_the_state_of_a_cell(tmp_path, cell):
    root = tmp_path / "out"
    base = root / "simclr_tiny_shapes" / "seed0"
    assert (plan_of(cell, root).state, plan_of(cell, root).folder) == (RUN, base)
    write_run(base)
    assert plan_of(cell, root).state == RUN  # neither weights nor a checkpoint
    (base / "checkpoints").mkdir()
    (base / "checkpoints" / "last.ckpt").touch()
    assert plan_of(cell, root).state == RESUME  # trained, but the weights were not written
    (base / "backbone.safetensors").touch()
    assert plan_of(cell, root).state == FINISHED
    (base / "summary.json").write_text(json.dumps({"epochs": 2}))
    assert plan_of(cell, root).state == RESUME
    (base / "summary.json").unlink()
    assert plan_of(cell, root).state == RESUME
    (base / "checkpoints" / "last.ckpt").rename(base / "checkpoints" / "previous.ckpt")
    assert plan_of(cell, root).state == RESUME


def test_a_run_that_another_process_trains_is_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = suite_file(tmp_path, "method: simclr\noverrides: [epochs=3]\n")
    cell = load_suite(file, [], []).cells[0]
    run = write_run(Path("runs/mine/simclr_tiny_shapes/seed0"))
    (run / "summary.json").unlink()
    hold = "import pathlib, sys, ssl_zoo.files as f; lock = f.locked(pathlib.Path(sys.argv[1])); print(lock.name, flush=True); input()"
    words, env = [sys.executable, "-c", hold, str(run / ".lock")], {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as other:
        other.stdout.readline()
        monkeypatch.setattr(subprocess, "Popen", lambda *a: pytest.fail("it is being trained"))
        assert plan_of(cell, Path("runs/mine")).state == BUSY
        assert run_main("benchmark", f"suite={file}") == 1
        assert "0 of 1 runs finished; being trained by another process: simclr_tiny_shapes seed 0" in capsys.readouterr().out
        assert (run / "config.yaml").is_file()
        other.communicate(b"\n")
    assert plan_of(cell, Path("runs/mine")).state == RUN


def test_words_that_decide_no_result_reach_a_run_that_is_resumed(tmp_path):
    root = tmp_path / "out"
    file = suite_file(tmp_path, "method: simclr\noverrides: [epochs=3, checkpoint.every_n_steps=7]\n")
    run = write_run(root / "simclr_tiny_shapes" / "seed0", ["epochs=3", "checkpoint.every_n_steps=7"])
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "summary.json").unlink()
    (cell,) = load_suite(file, ["data.resident=false", "guard.nonfinite=skip", "trust=[a]", "data.workers=auto"], []).cells
    plan = plan_of(cell, root)
    assert plan.state == RESUME
    assert _anew(plan) == ["data.resident=false", "guard.nonfinite=skip"]


def test_a_run_of_another_config_is_never_reused_and_never_touched(tmp_path, cell):
    root = tmp_path / "out"
    base = root / "simclr_tiny_shapes" / "seed0"
    write_run(base, ["epochs=3", "batch_size=64"])
    write_run(base.with_name("seed01"))  # that of another seed, whatever it holds
    plan = plan_of(cell, root)
    assert plan.state == RUN
    assert plan.folder == base.with_name(f"seed0-{config_hash(cell.config)[:6]}")
    assert plan.stale == {base: {"batch_size": (64, 256)}}
    write_run(plan.folder)
    assert plan_of(cell, root).folder == plan.folder
    (base / "config.yaml").write_text("damaged")
    assert plan_of(cell, root).stale == {base: {}}
    (plan.folder / "config.yaml").write_text("damaged")
    assert plan_of(cell, root).folder == base.with_name(f"seed0-{config_hash(cell.config)[:7]}")


def test_a_finished_suite_only_reports(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", lambda *a: pytest.fail("nothing is left to do"))
    file = suite_file(tmp_path, "method: simclr\noverrides: [epochs=3]\nseed: [0, 1]\n")
    for seed in (0, 1):
        (write_run(Path(f"runs/mine/simclr_tiny_shapes/seed{seed}"), seed=seed) / "backbone.safetensors").touch()
    write_run(Path("runs/mine/byol_tiny_shapes/seed0"), ["method=byol", "epochs=3"])  # of another choice of methods
    write_run(Path("runs/mine/simclr_tiny_shapes/seed2"), ["epochs=5"], seed=2)  # of another choice of seeds, before the suite was changed
    before = {f: f.stat().st_mtime_ns for f in Path("runs").rglob("*") if f.is_file()}
    assert run_main("benchmark", f"suite={file}", "--cfg", "job") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["finished", "finished"]
    assert run_main("benchmark", f"suite={file}") == 0
    out = capsys.readouterr().out
    assert "2 of 2 runs finished" in out
    assert "runs/mine/report/table.md" in out
    assert all(f.stat().st_mtime_ns == at for f, at in before.items())
    text = Path("runs/mine/report/table.md").read_text()
    assert "| byol |" in text
    assert "| simclr |" in text
    assert "| simclr † |" in text
    assert "epochs was 5 and would be 3" in text
    assert "80.0 ± 0.0" in text


@pytest.mark.parametrize(
    ("took", "runs", "said"),
    [([], 3, ""), ([60.0], 0, ""), ([0.0], 3, ""), ([60.0, 0.0, 120.0], 1, " (about 2 min left for 1 run)"),
     ([1.0], 2, " (about 1 min left for 2 runs)"), ([3600.0], 3, " (about 3 h 0 min left for 3 runs)"),
     ([4000.0], 1, " (about 1 h 7 min left for 1 run)")],
)  # fmt: skip
def test_what_is_left_is_told_by_what_the_others_took(took, runs, said):
    assert _left(took, runs) == said


def test_every_job_gets_its_folder_and_failed_ones_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = suite_file(tmp_path, "method: [simclr, byol]\noverrides: [epochs=3]\neval: [knn, linear]\n")
    started = []

    class Job:
        def __init__(self, words):
            started.append(words[3:])
            self.words = words

        def wait(self):
            if "method=byol" in self.words or "protocol=knn" in self.words:
                return 1
            if self.words[3] == "pretrain":
                run = Path(self.words[-1].removeprefix("run="))
                (write_run(run) / "backbone.safetensors").touch()
            return 0

    monkeypatch.setattr(subprocess, "Popen", Job)
    assert run_main("benchmark", f"suite={file}") == 1
    run = "run=runs/mine/simclr_tiny_shapes/seed0"
    assert started == [
        ["pretrain", "method=simclr", "epochs=3", "seed=0", run],
        ["eval", run, "protocol=knn"],
        ["eval", run, "protocol=linear"],
        ["pretrain", "method=byol", "epochs=3", "seed=0", "run=runs/mine/byol_tiny_shapes/seed0"],
    ]
    assert (
        "1 of 2 runs finished; failed: simclr_tiny_shapes seed 0 (eval knn), byol_tiny_shapes seed 0. "
        f"Try again with: ssl-zoo benchmark suite={file}" in capsys.readouterr().out
    )
    started.clear()
    place = Path(run.removeprefix("run="))
    (place / "eval").mkdir()
    (place / "eval" / "knn.json").write_text("{}")
    assert run_main("benchmark", f"suite={file}", "method=simclr") == 0
    assert started == [["eval", run, "protocol=linear"]]
    os.utime(place / "eval" / "knn.json", (1, 1))  # older than the weights
    started.clear()
    run_main("benchmark", f"suite={file}", "method=simclr", "--config-dir", str(tmp_path))
    assert [w[-1] for w in started] == ["protocol=knn", "protocol=linear"]


def test_words_are_read_back_as_they_were():
    for value in ("runs/a b/c", "it's/1", "12", "a\\b/'c'", "ü/$x/${y}"):
        assert parse([override("run", value)])[0].value() == value


@pytest.mark.slow
def test_a_benchmark_that_is_interrupted_goes_on_where_it_stopped(tmp_path):
    words = [w for w in SMOKE if not w.startswith("trainer=")]
    text = yaml.safe_dump(
        {"method": ["simclr"], "seed": [0, 1], "overrides": [*words, "trainer=cpu", "epochs=12", "evaluation.baselines=false"]}
    )
    (tmp_path / "mine.yaml").write_text(text)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SSL_ZOO_CACHE": str(tmp_path / "cache")}
    line = [sys.executable, "-m", "ssl_zoo", "benchmark", "suite=mine.yaml"]
    run = subprocess.Popen(line, cwd=tmp_path, env=env, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert "Continue with: ssl-zoo benchmark suite=mine.yaml" in err
    assert "[2/2]" not in out

    def states():
        done = subprocess.run([*line, "--cfg", "job"], cwd=tmp_path, env=env, capture_output=True, text=True)
        return [row.split("  ")[0] for row in done.stdout.splitlines()]

    assert states() == ["to resume", "to run"]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs finished" in done.stdout
    assert states() == ["finished", "finished"]
    runs = sorted((tmp_path / "runs" / "mine").rglob("summary.json"))
    assert [r.parent.name for r in runs] == ["seed0", "seed1"]
    found = list(csv.DictReader(io.StringIO((tmp_path / "runs/mine/report/runs.csv").read_text())))
    assert [(r["method"], r["seed"], r["epochs"]) for r in found] == [("simclr", "0", "12"), ("simclr", "1", "12")]
    assert "†" not in (tmp_path / "runs/mine/report/table.md").read_text()
    before = {f: f.stat().st_mtime_ns for f in runs}
    assert subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, timeout=120).returncode == 0
    assert {f: f.stat().st_mtime_ns for f in runs} == before

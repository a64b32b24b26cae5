"""What the README shows is what was measured, and its commands are those that are checked."""

import ast
import csv
import importlib
import json
import random
import re
import shlex
import statistics
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ssl_zoo.config import compose, plain
from ssl_zoo.fingerprint import config_hash
from ssl_zoo.reports.html import table
from ssl_zoo.suite import load_suite
from tests.test_benchmark import write_run

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def test_the_end_of_a_run_is_that_of_its_summary():
    cited = re.search(r"\]\((docs/results/[\w-]+\.json)\)", README)
    summary = json.loads((ROOT / cited[1]).read_text())
    lines = [f"{key:14}{value}" for key, value in table(summary, Path(summary["run"]))]
    assert lines[:4] == next(text for _, text in BLOCKS if text.startswith("kNN top-1")).splitlines()[:4]
    assert summary["command"] == "ssl-zoo"
    assert summary["config_hash"] == config_hash(plain(compose("train", [])))
    final, base = summary["final"]["knn_top1"], summary["baselines"]
    assert final > 20 + max(base["untrained"]["knn_top1"], base["raw_pixels"]["knn_top1"])
    for key, value in (("seed", summary["seed"]), ("epochs", summary["epochs"])):
        assert f"{value}" in README, key


def test_the_first_blocks_install_and_run_and_install_and_test():
    first, second = [text for kind, text in BLOCKS if kind == "bash"][:2]
    assert first.strip().endswith("&& ssl-zoo")
    assert second.strip().endswith("&& pytest")
    assert "'.[dev]'" in second


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda f: f.stem)
def test_a_benchmark_finds_what_it_measures(file):
    """Every name of ssl_zoo that a benchmark imports is there."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssl_zoo"):
            module = importlib.import_module(str(node.module))
            assert [a.name for a in node.names if not hasattr(module, a.name)] == []


def test_the_table_of_short_runs_is_that_of_its_results():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import short_runs

    found = json.loads((ROOT / "docs/results/short_runs.json").read_text())
    assert (ROOT / "docs/methods.md").read_text() == short_runs.page(found)
    untrained = found["simclr"]["baselines"]["untrained"]["knn_top1"]
    for run in (found[f"{m}{local}"] for m in short_runs.METHODS for local in ("", "+local")):
        assert run["verdict"].startswith("Healthy")
        assert not run["warnings"]
        assert run["final"]["knn_top1"] > untrained + 5  # of 1,000 images: a standard error is 1.2
    for name in set(short_runs.BROKEN) - {"SimSiam without stop-gradient"}:  # which narrowed, but passed no limit
        assert "ollapse" in found[name]["verdict"]
        assert any("ollapse" in w for w in found[name]["warnings"])


@pytest.mark.parametrize("file", sorted((ROOT / "docs/results").glob("*-cpu*.json")), ids=lambda f: f.stem)
def test_the_tables_of_speed_are_those_that_were_measured(file):
    found = json.loads(file.read_text())
    page = (ROOT / "docs/speed.md").read_text()
    assert file.name in page
    assert not found["too_busy"]
    for row in found["rows"]:
        assert "| " + " | ".join(str(v) for v in row.values()) + " |" in page


@pytest.mark.parametrize("name", ["export", "embed"])
def test_the_tables_of_export_and_embed_are_those_that_were_measured(name):
    found, page = json.loads((ROOT / f"docs/results/{name}.json").read_text()), (ROOT / "docs/export.md").read_text()
    assert f"results/{name}.json" in page
    for row in found["rows"]:
        assert "| " + " | ".join(str(v) for v in row.values()) + " |" in page
        assert row.get("equal", True)
        assert row.get("each once", True)
    assert float(found.get("worst_relative", 0)) <= 1e-5


def test_the_tax_of_the_framework_is_what_was_measured():
    found, page = json.loads((ROOT / "docs/results/step-cpu.json").read_text()), (ROOT / "docs/speed.md").read_text()
    low, high = found["framework_tax_interval_percent"]
    assert f"takes {found['framework_tax_percent']:.1f} % longer than the bare one (95 % interval {low:.1f} to {high:.1f} %)" in page


@pytest.mark.parametrize(("rounds", "cut"), [(6, 0), (8, 0), (9, 1), (12, 2), (20, 5)])
def test_a_ratio_is_known_to_the_interval_of_its_median(rounds, cut, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from harness import ratio

    slow = [100.0 + i for i in range(rounds)]
    random.Random(0).shuffle(slow)
    found = ratio({"a": slow, "b": [100.0] * rounds}, "a", "b")
    low, high = 1 + 0.01 * cut, 1 + 0.01 * (rounds - 1 - cut)
    assert (found["low"], found["high"]) == (round(low, 4), round(high, 4))
    assert found["ratio"] == pytest.approx((low + high) / 2)
    assert found["spread"] == pytest.approx((high - low) / found["ratio"], abs=1e-3)


def test_what_is_said_of_words_is_what_was_measured():
    page = " ".join((ROOT / "docs/words.md").read_text().split())
    names = ("shapes-held-out", "cifar10-prompts", "noto-emoji", "flickr-1k")
    found = {n: json.loads((ROOT / f"docs/results/clip-{n}.json").read_text()) for n in names}

    def told(value):
        return f"{value + 1e-6:.1f}"  # halves upwards

    shapes, cifar = found["shapes-held-out"], found["cifar10-prompts"]
    z, (to_text, to_image) = shapes["zero_shot"], shapes["retrieval"]
    rows = []
    for n, said in (("seen", "seen combinations"), ("held_out", "held out")):
        low, high = map(told, z[f"{n}_top1_interval"])
        rows.append(f"| {said} | {told(z[f'{n}_top1'])} % | {low} to {high} | {z[f'{n}_images']:,} | {z['chance_top1']} % |")
    one, mean = told(z["one_template_top1"]), told(z["mean_template_top1"])
    rows.append(f"all 80 together give {z['top1']:.1f} % on all test images, the first alone {one} %, one alone {mean} % on average")
    rows.append(f"R@1 {told(to_text['recall_at_1'])} % from image to text and {told(to_image['recall_at_1'])} % from text to image")
    for name, said in (("noto-emoji", "300 emoji"), ("flickr-1k", "100 photographs")):
        for r in found[name]["retrieval"]:
            low, high = (f"{v:.1f}" for v in r["top1_interval"])
            (r1, c1), (r5, c5) = ((f"{r[f'recall_at_{k}']:.1f}", f"{r[f'chance_at_{k}']:.1f}") for k in (1, 5))
            rows.append(f"| {said} | {r['direction']} | {r1} % | {low} to {high} | {c1} % | {r5} % | {c5} % |")
    z = cifar["zero_shot"]
    for said, value in (
        ("zero-shot, 80 sentences", z["top1"]),
        ("zero-shot, the first sentence", z["one_template_top1"]),
        ("zero-shot, one sentence, mean over the 80", z["mean_template_top1"]),
        ("linear probe on the same 20,000 images", cifar["linear"]["top1"]),
        ("kNN, k=20, T=0.07", cifar["final"]["knn_top1"]),
        ("linear probe on raw pixels", cifar["baselines"]["raw_pixels"]["linear_top1"]),
    ):
        rows.append(f"| {said} | {value:.1f} % |")
    for row in rows:
        assert row in page
    for one in found.values():
        assert f"{one['epochs']} epochs" in page or f"epochs={one['epochs']}" in page
        assert f"{one['seconds']['training']:.0f} s" in page


def test_the_table_of_the_benchmark_page_is_that_of_its_runs():
    page = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8").replace("**", "")
    with open(ROOT / "docs" / "results" / "suite-shapes.csv", newline="") as f:
        runs = list(csv.DictReader(f))
    for method in ("byol", "simclr", "vicreg"):
        line = next(x for x in page.splitlines() if x.startswith(f"| {method} |"))
        for column in ("eval_knn_top1", "eval_linear_top1", "eval_linear_top5", "online_linear_top1"):
            values = [float(r[column]) for r in runs if r["method"] == method]
            assert f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" in line, (method, column)


# ---------------------------------------------------------------------------------------------- CIFAR-10
def _results():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import results

    return results


SUITES = {f.stem: json.loads(f.read_text()) for f in sorted((ROOT / "docs/results").glob("*cifar10_*.json"))}
CROPS = ("[0.08, 1.0]", "[0.2, 1.0]")
TABLES = {k: v for k, v in SUITES.items() if not v[0]["data"]["held_out"]}


def test_the_page_of_cifar10_is_that_of_its_results():
    """Else: python benchmarks/results.py"""
    assert (ROOT / "docs/results.md").read_text() == _results().page()
    assert TABLES


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_of_runs_that_the_suite_would_train(name):
    """Every method and seed of the suite once, by the config of today, without a look at test images for their settings."""
    suite = load_suite(name, [], [])
    for cell in suite.cells:
        method = cell.config["method"]["_target_"].split(".")[2]
        own = [r for r in TABLES[name] if (r["method"], r["seed"]) == (method, cell.seed)]
        assert len(own) == 1, (cell.name, cell.seed)
        assert own[0]["decides"] == _results().decides(cell.config)
        assert own[0]["epochs"] == cell.config["epochs"]
        assert own[0]["commit"]
        assert "dirty" not in own[0]["commit"]
    assert len(TABLES[name]) == len(suite.cells)


@pytest.mark.parametrize("name", TABLES)
def test_every_method_is_clearly_above_the_untrained_backbone_and_none_collapsed(name):
    """By five standard errors of 10,000 images, for each seed; below the supervised anchor of the same seed."""
    runs = TABLES[name]
    untrained = {r["seed"]: r["baselines"]["untrained"]["knn_top1"] for r in runs if "untrained" in r["baselines"]}
    top = {r["seed"]: r["final"]["knn_top1"] for r in runs if r["method"] == "supervised"}
    for run in runs:
        found, seed = run["final"]["knn_top1"], run["seed"]
        assert run["verdict"].startswith("Healthy"), (run["method"], seed)
        assert found > untrained[seed] + 5 * 0.5, (run["method"], seed)
        assert found <= top[seed], (run["method"], seed)
        assert run["final"]["epoch"] == run["epochs"]
        assert run["best"]["knn_top1"] >= found
        assert [p["epoch"] for p in run["curve"]] == sorted({p["epoch"] for p in run["curve"]})


def test_what_crops_gave_is_what_was_measured():
    """The sentence of the page, from the runs that differ in their crops alone."""
    found = {}
    for run in SUITES["cifar10_tiny_tuning"]:
        others = {**run["settings"], "crops": ""}
        for other in SUITES["cifar10_tiny_tuning"]:
            if {**other["settings"], "crops": ""} == others and (run["settings"]["crops"], other["settings"]["crops"]) == CROPS:
                found[run["method"]] = round(other["final"]["knn_top1"] - run["final"]["knn_top1"], 1)
    names = {"moco_v3": "MoCo v3", "vicreg": "VICReg with SGD", "barlow_twins": "Barlow Twins", "simclr": "SimCLR"}
    told = " ".join(_results().NEXT.split())
    assert found.keys() == {*names, "byol"}
    for method, name in names.items():
        assert f"{name} {found[method]:.1f}" in told, method
    assert abs(found["byol"]) < 0.05


def test_what_small_views_first_gave_is_what_was_measured():
    runs = {(r["method"], r["variant"]): r for r in SUITES["tune_cifar10_tiny_early"]}
    knn = {k: r["final"]["knn_top1"] for k, r in runs.items()}
    took = {k: r["curve"][2]["training_s"] - r["curve"][0]["training_s"] for k, r in runs.items()}  # epochs 2 and 3
    methods = {m for m, _ in runs}
    early = [(m, "24 px first") for m in methods]
    ratios = [took[e] / took[e[0], ""] for e in early]
    than_same, than_five = ([knn[e] - knn[e[0], other] for e in early] for other in ("", "five epochs"))
    told = " ".join(_results().NEXT.split())
    assert f"took {min(ratios):.2f} to {max(ratios):.2f} of the time" in told
    assert f"kNN was {-min(than_same):.1f} below to {max(than_same):.1f} above that of as many" in told
    assert f"and {-min(than_five):.1f} below to {max(than_five):.1f} above that of five" in told


def _made(tmp_path, monkeypatch, **of):
    """What results.py writes of runs of 3 epochs that are given as {folder: (words, more of the summary)}."""
    results = _results()
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for folder, (words, seed) in of.items():
        data = {"train": 50, "test": 10, "held_out": any("held_out" in w for w in words)}
        command = shlex.join(["ssl-zoo", *words, f"seed={seed}", "run=/some/where", "dataset.path=/my data", "out=there"])
        write_run(
            tmp_path / "suite" / folder / f"seed{seed}",
            tuple(words),
            50.0 + seed,
            seed,
            command,
            data=data,
            health={"effective_rank": 9.0},
            verdict="Healthy: so",
        )
    return json.loads(results.write(tmp_path / "suite").read_text())


def test_the_file_of_a_suite_keeps_commands_without_places(tmp_path, monkeypatch):
    words = ["epochs=3", "data.held_out=10", "optimizer.base_lr=2"]
    (found,) = _made(tmp_path, monkeypatch, **{"simclr_tiny_shapes+twice": (words, 1)})
    assert found["command"] == "ssl-zoo epochs=3 data.held_out=10 optimizer.base_lr=2 seed=1"
    assert (found["method"], found["variant"], found["data"]["held_out"]) == ("simclr", "twice", True)
    assert found["settings"]["optimizer"]["base_lr"] == 2
    other = {**found, "settings": {**found["settings"], "crops": "[0.2, 1.0]"}}
    assert "kNN (k=20, T=0.07) on 10 training images" in (text := _results().choices("suite", [found, other]))
    assert "| simclr | `crops=[0.2, 1.0]` | 51.0 | 9 | Healthy |" in text


def test_seeds_of_different_configs_make_no_mean(tmp_path, monkeypatch):
    alike = {f"simclr_tiny_shapes{' ' * n}": (["epochs=3"], n) for n in (0, 1)}
    assert len({r["decides"] for r in _made(tmp_path / "a", monkeypatch, **alike)}) == 1
    unlike = {"simclr_tiny_shapes": (["epochs=3"], 0), "simclr_tiny_shapes ": (["epochs=3", "batch_size=32"], 1)}
    with pytest.raises(SystemExit, match="simclr was trained with several configs"):
        _made(tmp_path / "b", monkeypatch, **unlike)


def test_of_seeds_the_page_tells_which_ranks_are_not_apart():
    results = _results()
    found = {"a": (50, 52), "b": (49, 51), "c": (40, 41), "d": (39.0, 39.8), "e": (35, 38)}
    groups = {k: [{"final": {"knn_top1": v}, "data": {"test": 10_000}} for v in seeds] for k, seeds in found.items()}
    assert results.not_apart(groups) == ["a and b", "c and d"]  # these by less than the standard error, 0.49
    assert results.spread([50.0, 52.0]) == "51.0 ± 1.4"
    assert results.spread([50.04]) == "50.0"
    assert results.spread([]) == ""


def test_the_time_to_a_percentage_is_that_of_the_first_evaluation_that_reached_it():
    results = _results()
    curve = [{"epoch": e, "knn_top1": k, "training_s": 60.0 * e, "total_s": 90.0 * e} for e, k in ((1, 30.0), (2, 45.0), (3, 44.0))]
    assert results.reached({"curve": curve}, 45) == (120.0, 180.0)
    assert results.reached({"curve": curve}, 46) is None
    assert results.reached({}, 40) is None
    assert results.minutes([(120.0, 180.0)], 1) == "2.0 / 3.0"
    assert results.minutes([(120.0, 180.0)], 3) == "2.0 / 3.0 (1 of 3)"
    assert results.minutes([], 3) == "–"

"""Every code block of README.md and docs/ is run, in order, in a folder that holds what its page speaks of.

A new block is run by default. What cannot be run everywhere is in ELSEWHERE, and is only composed or parsed. Training is shortened by
SHORT, and that of the tutorials, whose output is compared but for its numbers, by FEWER images and to an eighth of its epochs. With
SSL_ZOO_TUTORIALS=1 they run as they are written.
"""

import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from fnmatch import fnmatch
from functools import cache, reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blocks import Step, pages, run_bash, run_command, run_python, steps
from conftest import ROOT, command
from PIL import Image

from ssl_zoo.classify import classify_config
from ssl_zoo.command_line import split_options
from ssl_zoo.config import compose, expand
from ssl_zoo.data.shapes import Shapes
from ssl_zoo.embedding import embed_config
from ssl_zoo.reports import results
from ssl_zoo.reports.html import table
from ssl_zoo.searching import search_config
from ssl_zoo.shard import dataset_words
from ssl_zoo.suite import load_suite

ELSEWHERE = {  # what a step needs that is not everywhere
    "a GPU": r"suite=cifar10_resnet18",
    "a network": r"pip install|hf upload|dataset=(cifar|stl|imagenet)|dataset\.path=imagenet|transfer=|weights=(timm|torchvision)/",
    "weights of others": r"resnet50\.pth|dino_deitsmall8\.pth|clip\.pt",
    "several devices, or a queue": r"trainer\.devices=\d|torchrun|srun|sbatch|sweep=slurm",
    "words to fill in": r"\bNAME\b|\bFOLDER\b|\bOUT\b|YOUR-NAME",
}
TUTORIAL = "docs/tutorials/*"
AS_WRITTEN = os.environ.get("SSL_ZOO_TUTORIALS") == "1"
SLOW = (TUTORIAL, "docs/methods/*", "docs/adding_a_*", "docs/words.md", "docs/export.md")
LONG = r"ssl-zoo (-m|benchmark) "  # steps that are run in the slow tests only
STANDS_FOR = {
    "dataset=parquet dataset.path=photos": "dataset=parquet dataset.path=tables",
    "backbone=resnet18,vit_s seed=0,1": "backbone=tiny,vit_t",
}
FEWER = {"train_size=3000": "train_size=600"}  # images in the tutorials
PLACED = {  # the finished runs that pages speak of
    "runs/simclr_tiny_shapes/20260101-120000": [],
    "runs/mine": ["backbone=resnet18", "backbone.stem=model"],
    "runs/small": ["backbone=resnet18", "backbone.stem=small"],
    "runs/dino": ["method=dino", "backbone=vit_s"],
    "docs/words.md runs/mine": ["method=clip", "backbone=vit_t"],
    "docs/words.md runs/dino": None,  # the page makes it
}
RUNS = re.compile(rf"\b({'|'.join(k for k in PLACED if ' ' not in k)})\b")
SHORT = ["epochs=1", "batch_size=16", "trainer=cpu", "evaluation.linear.max_iter=5", "evaluation.linear.l2=[0.01]"]
SMALL = {  # and more of them, by what a command asks for
    "method=clip": ["recipe=clip-tiny-shapes"],
    "method=siglip": ["recipe=siglip-tiny-shapes"],
    "method=dino": ["method.out_dim=64"],
    "backbone=vit_s": ["backbone.kwargs={depth:1}"],
    "backbone=vit_t": ["backbone.kwargs={depth:1}"],
    "backbone=resnet18": ["backbone.stem=model"],
    "trust=[convmixer]": ["augment.local_crops=1"],
    "trust=[nnclr]": ["augment.local_crops=1", "method.queue_size=100"],
    "dataset=folder": ["dataset.image_size=32"],
    "dataset=parquet": ["dataset.image_size=32"],
    "dataset=shards": ["dataset.image_size=32"],
    "dataset=shapes": ["dataset.train_size=64", "dataset.test_size=32"],
}


def is_run(page: str, step: Step) -> bool:
    """Text is looked at where it shows a command after "$ ", and in tutorials."""
    return step.kind != "text" or step.text.startswith("$ ") or fnmatch(page, TUTORIAL)


PAGES = {name: [s for s in steps(text) if is_run(name, s)] for name, text in pages().items()}
PAGES = {name: found for name, found in PAGES.items() if found}


def elsewhere(step: Step) -> str | None:
    """What a step needs that is not everywhere."""
    said = re.sub(r"\s# .*", "", step.text)
    return next((need for need, pattern in ELSEWHERE.items() if re.search(pattern, said)), None)


def is_slow(page: str) -> bool:
    return any(fnmatch(page, pattern) for pattern in SLOW)


def cases():
    for name, found in PAGES.items():
        if not is_slow(name):
            yield pytest.param(name, False, id=name)
        if is_slow(name) or any(re.match(LONG, s.text) for s in found):
            yield pytest.param(name, True, id=f"{name}-long", marks=pytest.mark.slow)


@pytest.mark.parametrize(("page", "long"), cases())
def test_the_blocks_of_a_page_run(page, long, tmp_path):
    place(page, tmp_path)
    cwd, said, tutorial = tmp_path, "", fnmatch(page, TUTORIAL)
    for step in PAGES[page]:
        if step.kind == "text" and not step.text.startswith("$ "):
            assert set(without_numbers(step.text)) <= set(without_numbers(said)), f"{page}:{step.line}"
        elif step.text.startswith("cd "):
            cwd /= step.text[3:].strip()
        elif elsewhere(step):
            parses(step)
        elif is_slow(page) or bool(re.match(LONG, step.text)) is long:
            done = run(step, cwd, tmp_path / "cache", tutorial)
            assert done.returncode == 0, f"{page}:{step.line}: {step.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            said = done.stdout


def without_numbers(text: str) -> list[str]:
    """Its lines, which differ in numbers from machine to machine."""
    return [" ".join(re.sub(r"\d[\d,.]*", "#", line).split()) for line in text.strip().splitlines()]


def run(step: Step, cwd: Path, kept: Path, tutorial: bool) -> subprocess.CompletedProcess:
    for said, instead in ((FEWER if not AS_WRITTEN else {}) if tutorial else STANDS_FOR).items():
        step = Step(step.kind, step.text.replace(said, instead), step.line)
    if step.kind == "python":
        return run_python(step.text, cwd, kept)
    if step.kind == "bash":
        return run_bash(step.text, cwd)
    if step.kind == "text":
        return told(step, cwd, kept)
    if tutorial:
        return run_command(step, step.words if AS_WRITTEN else eighth(step.words), cwd, kept)
    return run_command(step, step.words + shortened(step.words), cwd, kept)


def told(step: Step, cwd: Path, kept: Path) -> subprocess.CompletedProcess:
    """A block that shows a command after "$ " and all that it says, a sentence on bad input."""
    first, _, said = step.text.partition("\n")
    done = run_command(Step("ssl-zoo", first[2:], step.line), Step("ssl-zoo", first[2:], step.line).words, cwd, kept)
    assert (done.stdout + done.stderr).strip() == said.strip()
    return subprocess.CompletedProcess(first, 0, "", "")


def shortened(words: list[str]) -> list[str]:
    """Overrides that make a command quick."""
    options, words = split_options(words)
    verb = words[0] if words and "=" not in words[0] else "pretrain"
    if "help" in options:
        return []
    if verb == "eval":
        return ["protocol.epochs=1"] * any(w.startswith(("protocol=linear_", "protocol=finetune")) for w in words)
    if verb == "resume":
        return ["epochs=2"]  # those that are placed have finished their one epoch
    if verb not in ("pretrain", "benchmark"):
        return []
    shapes = ["dataset=shapes"] * (not any(w.startswith("dataset=") for w in words))
    keys = {w.partition("=")[0] for w in words if w.startswith("backbone.") or w.startswith("dataset.image_size")}
    more = [m for w in [*words, *shapes] for m in SMALL.get(w, []) if m.partition("=")[0] not in keys]
    return [*SHORT, *more, *(["method=simclr", "seed=0"] if verb == "benchmark" else [])]


def eighth(words: list[str]) -> list[str]:
    """The same command with an eighth of the epochs, a suite with one seed."""
    fewer = [re.sub(r"(?<=epochs=)\d+$", lambda n: str(-(-int(n[0]) // 8)), w) for w in words]
    return [*fewer, *["epochs=1", "seed=0"] * (words[0] == "benchmark")]


# ---------------------------------------------------------------------------------------------- what pages speak of
def place(page: str, folder: Path) -> None:
    """The pictures, runs and files that a page speaks of, in `folder`."""
    if fnmatch(page, TUTORIAL):
        return
    text = "\n".join(s.text for s in PAGES[page])
    shutil.copytree(pictures(), folder, dirs_exist_ok=True)
    if "docs/examples" in text:
        shutil.copytree(ROOT / "docs" / "examples", folder / "docs" / "examples")
    for path in sorted(set(RUNS.findall(text))):
        words = PLACED.get(f"{page} {path}", PLACED[path])
        if words is not None:
            shutil.copytree(finished(*words), folder / path)


@pytest.fixture(scope="module", autouse=True)
def made_once(tmp_path_factory):
    global MADE
    MADE = tmp_path_factory.mktemp("made")


@cache
def finished(*words: str) -> Path:
    """A run of an epoch."""
    folder = Path(tempfile.mkdtemp(dir=MADE))
    done = command(*words, *shortened([*words]), "run=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@cache
def pictures() -> Path:
    """photos/ of two classes with captions beside them, tables/ of the same in parquet, and single files."""
    folder, rows = Path(tempfile.mkdtemp(dir=MADE)), []
    images = Shapes(image_size=40, train_size=48).load("train")
    for i, (pixels, label) in enumerate(zip(images.pixels.permute(0, 2, 3, 1).numpy(), images.labels.tolist(), strict=True)):
        species = ("cat", "dog")[label % 2]
        file = folder / "photos" / species / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        file.with_suffix(".txt").write_text(f"a {species}\n")
        rows.append({"image": {"bytes": file.read_bytes(), "path": file.name}, "species": label % 2, "text": f"a {species}"})
    (folder / "tables").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "tables" / "photos.parquet")
    (folder / "said.csv").write_text("file_name,caption\n" + "".join(f"{i:02}.png,number {i}\n" for i in range(48)))
    (folder / "words.txt").write_text("cat\ndog\n")
    (folder / "sentences.txt").write_text("a {}.\nthe {}.\n")
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)).save(folder / name)
    return folder


# ---------------------------------------------------------------------------------------------- numbers
TUTORIALS = [name for name in PAGES if fnmatch(name, TUTORIAL)]
CITED = re.compile(r"\]\(\.\./results/(tutorial-[\w-]+\.json)\)")


def rendered(result: dict) -> list[str]:
    """What the command prints of a summary, or of a result of `ssl-zoo eval`."""
    if "runs" in result:
        places = ("final", "knn_top1"), ("baselines", "untrained", "knn_top1"), ("baselines", "raw_pixels", "knn_top1")
        return [" ".join([r["run"], *(str(reduce(dict.__getitem__, place, r)) for place in places)]) for r in result["runs"]]
    if "protocol" in result:
        return results.told([result]).splitlines()
    return [f"{key:14}{value}" for key, value in table(result, Path(result["run"]))]


@pytest.mark.parametrize("page", TUTORIALS)
def test_what_a_tutorial_shows_is_in_the_results_that_it_cites(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.finditer(r"^```text\n(?!\$)(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        cited = CITED.search(text, block.end())
        lines = rendered(json.loads((ROOT / "docs/results" / cited[1]).read_text()))
        assert set(block[1].splitlines()) <= set(lines), cited[1]
    known = [json.loads((ROOT / "docs/results" / name).read_text()) for name in CITED.findall(text)]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    printed = " ".join(line for result in known for line in rendered(result))
    assert [n for n in re.findall(r"\d+\.\d %", prose) if n not in printed] == []
    for result in known:
        assert "seed" not in result or f"seed {result['seed']}" in prose
        assert "steps" not in result or f"{result['epochs']} epochs" in prose


def test_the_table_of_the_tutorial_is_that_of_its_runs():
    page = (ROOT / "docs/tutorials/choose_a_method.md").read_text(encoding="utf-8")
    with open(ROOT / "docs/results/tutorial-methods.csv", newline="") as f:
        runs = list(csv.DictReader(f))
    for method in ("simclr", "byol"):
        found = [[float(r[column]) for r in runs if r["method"] == method] for column in ("eval_knn_top1", "eval_linear_top1")]
        cells = [f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" for v in found]
        assert f"| {method} | {len(found[0])} | {cells[0]} | {cells[1]} |" in page


# ---------------------------------------------------------------------------------------------- what is not run
def parses(step: Step) -> None:
    """A step that is not run here; what it composes is looked at by the next test."""
    if step.kind == "python":
        compile(step.text, "block", "exec")
    else:
        subprocess.run(["bash", "-n", "-c", step.text], check=True)


def not_run():
    """The commands that the fast tests do not run, each once."""
    seen: set[tuple[str, ...]] = set()
    for name, found in PAGES.items():
        for s in found:
            need = elsewhere(s)
            if s.kind == "ssl-zoo" and need != "words to fill in" and (is_slow(name) or need or re.match(LONG, s.text)):
                if tuple(s.words) in seen:
                    continue
                seen.add(tuple(s.words))
                yield pytest.param(s, id=f"{name}:{s.line}")


@pytest.mark.parametrize("step", not_run())
def test_every_command_composes(step, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in (ROOT / "docs" / "examples").iterdir():
        monkeypatch.syspath_prepend(str(example))
    composes(step)


def composes(step: Step) -> None:
    """The config of a command is there, in a folder that holds the paths it names."""
    for folder in ("photos", "shards", "imagenet", "runs/dino"):
        Path(folder).mkdir(parents=True)
    for file in ("runs/dino/backbone.safetensors", "clip.pt", "example.npz"):
        Path(file).touch()
    options, words = split_options(step.words)
    dirs = [str(ROOT / "docs/examples" / name / "conf") for name in ("arrays", "convmixer", "nnclr") if f"[{name}]" in step.text]
    if "help" in options or words[:1] == ["list"]:
        return
    verb = words.pop(0) if words and "=" not in words[0] else "pretrain"
    if verb == "benchmark":
        suite = next(w.partition("=")[2] for w in words if w.startswith("suite="))
        assert suite.endswith(".yaml") or load_suite(suite, [w for w in words if not w.startswith("suite=")], []).cells
    elif verb == "classify":
        assert classify_config([w for w in words if ".txt" not in w] + ["labels=a,b"] * (".txt" in step.text), []).labels
    elif verb == "report":
        assert {w.partition("=")[0] for w in words} <= {"run", "runs", "out"}
    elif verb in ("embed", "search"):
        made_up = [w for w in words if not w.startswith("data=")]
        assert (embed_config if verb == "embed" else search_config)(made_up, []).run
    elif "multirun" in options:
        assert len(expand(words)) > 1
    else:
        words = dataset_words(words, []) if verb == "shard" else words
        words = [w for w in words if not w.startswith("run=")] if verb == "resume" else words
        assert compose({v: v for v in ("preview", "eval", "shard", "export")}.get(verb, "train"), words, dirs)

"""Run folders as data: what finished, what it gave, and why the rest is left out."""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ssl_zoo.fingerprint import group_hash
from ssl_zoo.foreign_yaml import LOADER, checked
from ssl_zoo.reports.figures import read_metrics

SHOWN = ("top1", "top5", "seen_top1", "held_out_top1")  # numbers of a judgement that have a column


class Problem(NamedTuple):
    """Something that is not in the table, and why."""

    folder: Path
    reason: str


class Result(NamedTuple):
    """A number in percent and how it was measured."""

    value: float
    protocol: str


@dataclass
class Run:
    """A finished run."""

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    group: str  # the same for all seeds
    at_end: dict[str, Result] = field(default_factory=dict)  # {column: what summary.json says}
    judged: dict[str, Result] = field(default_factory=dict)  # {column: what `ssl-zoo eval` found}
    curve: tuple[np.ndarray, np.ndarray] | None = None  # optimizer steps and kNN top-1 in percent

    @property
    def seed(self) -> int | str:
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else str(seed)

    @property
    def commands(self) -> list[str]:
        return [line for line in str(self.summary.get("command") or "").splitlines() if line.strip()]


def number(value: Any) -> float | None:
    """A finite number of a file that anyone may have written; None for anything else."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    return float(value) if good else None


def table(value: Any, *keys: str) -> dict[str, Any]:
    """The table below `keys`, empty where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def collect(places: Iterable[Path], aside: Path | None = None) -> tuple[list[Run], list[Problem]]:
    """The finished runs in and below `places`, and what is there besides; `aside` is a folder that is not looked into."""
    runs, problems = [], []
    for folder in sorted(dict.fromkeys(f for place in places for f in _run_folders(Path(place), aside))):
        try:
            run = read_run(folder)
        except (OSError, ValueError, RecursionError) as e:
            problems.append(Problem(folder, " ".join(str(e).split())[:200]))
            continue
        runs.append(run)
        problems += _read_extras(run)
    return runs, problems


def _run_folders(place: Path, aside: Path | None) -> Iterator[Path]:
    for folder, below, files in os.walk(place):
        here = Path(folder)
        if aside is not None and here.resolve() == aside.resolve():
            below.clear()
        elif "config.yaml" in files or "summary.json" in files:
            below.clear()
            yield here
        below[:] = sorted(b for b in below if not b.startswith("."))


def read_config(run: Path) -> dict[str, Any]:
    """config.yaml of a run folder as plain data. Raises ValueError with the reason where it cannot be read."""
    try:
        config = yaml.load(checked((run / "config.yaml").read_text(encoding="utf-8")), Loader=LOADER)
    except FileNotFoundError as e:
        raise ValueError("config.yaml is missing") from e
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as e:
        raise ValueError(f"config.yaml cannot be read: {e}") from e
    if not all(table(config, group) for group in ("method", "backbone", "dataset", "data", "trainer")):
        raise ValueError("config.yaml is not a whole config of ssl_zoo")
    return config


def read_run(folder: Path) -> Run:
    """A finished run. Raises ValueError with the reason for one that is unfinished or cannot be read."""
    file = folder / "summary.json"
    if not file.is_file():
        started = (folder / "checkpoints" / "last.ckpt").is_file()
        what = f"continue it with ssl-zoo resume run={folder}" if started else "it ended before its first checkpoint"
        raise ValueError(f"unfinished: {what}")
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ValueError(f"summary.json cannot be read: {e}") from e
    if not all(isinstance(table(summary).get(k), kind) for k, kind in (("final", dict), ("epochs", int), ("name", str))):
        raise ValueError("summary.json is not a whole summary of ssl_zoo")
    config = read_config(folder)
    run = Run(folder, summary, config, group_hash(config))
    how = str(summary.get("evaluation") or "").strip()
    for column in ("knn_top1", "linear_top1", "linear_top5", "online_linear_top1"):
        if (value := number(summary["final"].get(column))) is not None:
            run.at_end[column] = Result(value, how)
    return run


def _read_extras(run: Run) -> Iterator[Problem]:
    """What else a run folder may hold: its curve and the results of `ssl-zoo eval`. A damaged one is told and left out."""
    try:
        run.curve = read_metrics(run.folder).get("eval/knn_top1")
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as e:
        yield Problem(run.folder, f"metrics.csv cannot be read, so there is no curve: {e}")
    for file in sorted((run.folder / "eval").glob("*.json")):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("it is not a table")
        except (OSError, ValueError, RecursionError) as e:
            yield Problem(run.folder, f"eval/{file.name} cannot be read: {e}")
            continue
        epochs = number(found.get("epochs"))
        if epochs is not None and epochs != run.summary["epochs"]:
            yield Problem(run.folder, f"eval/{file.name} was measured after {epochs:.0f} epochs, so it is left out: run ssl-zoo eval again")
            continue
        run.judged |= _results(file.stem, found)


def _results(name: str, found: dict[str, Any]) -> dict[str, Result]:
    """{column: result} of one file of `ssl-zoo eval`."""
    settings = ", ".join(f"{k}={v}" for k, v in table(found, "settings").items())
    features = ", ".join(f"{k}={v}" for k, v in table(found, "features").items() if v is not None)
    images = f"{found['train_images']} training images" if isinstance(found.get("train_images"), int) else ""
    told = "; ".join(t for t in (settings, features, images) if t) or "its defaults"
    how = f"ssl-zoo eval protocol={found.get('protocol', name)}: {told}"
    results = {f"{name}_{key}": Result(value, how) for key in SHOWN if (value := number(found.get(key))) is not None}
    several = found.get("results")
    for row in several if name.startswith(("few_shot", "retrieval")) and isinstance(several, list) else []:
        value, which = number(table(row).get("top1")), table(row).get("labels") or table(row).get("direction")
        if value is not None:
            results[f"{name} {which}_top1"] = Result(value, how)
    return results

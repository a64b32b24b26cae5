"""`ssl-zoo report runs=...`: which rows of the table would be trained by another config today, and the page. Needs no torch."""

import glob
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from ssl_zoo.command_line import config_dirs, split_options
from ssl_zoo.config import choice_names, compose, plain
from ssl_zoo.errors import UserError
from ssl_zoo.fingerprint import changes
from ssl_zoo.origins import refuse_resolvers
from ssl_zoo.overrides import parse
from ssl_zoo.reports.benchmark_page import write_benchmark
from ssl_zoo.reports.collect import Run, collect
from ssl_zoo.reports.groups import group
from ssl_zoo.reports.table import terminal

Changes = dict[str, tuple[Any, Any]]


def report_words(words: list[str]) -> Path:
    """`ssl-zoo report runs=FOLDER|GLOB [out=FOLDER]`: the page."""
    found = dict(w.partition("=")[::2] for w in words)
    if other := next((w for w in words if w.partition("=")[0] not in ("runs", "out")), None):
        raise UserError(f"report takes runs=... and out=... (or run=... alone), not '{other}'.")
    where = found["runs"]
    places = [Path(where)] if Path(where).is_dir() else [Path(p) for p in sorted(glob.glob(where, recursive=True))]
    if not where or not places:
        raise UserError(f"runs={where} is no folder, and no pattern that fits one: ssl-zoo report runs=runs.")
    default = (Path(where) if Path(where).is_dir() else Path(".")) / "report"
    return report(places, Path(found.get("out") or default), title=str(where))


def report(places: Iterable[Path], out: Path, title: str, stale: Mapping[Path, Changes] | None = None) -> Path:
    """Collect the runs below `places`, write the page and the tables into `out`, and show them; returns the page. stale: what is known to
    be so already.
    """
    runs, problems = collect(places, aside=out)
    if not runs:
        reasons = f": {problems[0].folder}: {problems[0].reason}" if problems else ""
        raise UserError(f"There is no finished run in {title}{reasons or ': train some first, as with ssl-zoo benchmark suite=shapes'}.")
    known, unchecked = {**(stale or {})}, {}
    today: dict[tuple[str, ...], dict[str, Any] | str] = {}
    for run in runs:
        if run.folder in known:
            continue
        now = _today(run, today)
        if isinstance(now, str):
            unchecked[run.folder] = now
        elif found := changes(run.config, now, paths=False):
            known[run.folder] = found
    dirs = list(dict.fromkeys(d for run in runs if Path(d := _folder(run)).is_dir()))
    names = {g: list(choice_names(g, dirs)) for g in ("method", "dataset")}
    groups, repeats = group(runs, names, known, unchecked)
    files = write_benchmark(groups, [*problems, *repeats], out, title)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(terminal(groups, title))
    for file in files:
        print(file)
    return files[0]


def _folder(run: Run) -> str:
    """The folder of configs that a run was started with."""
    try:
        return split_options(shlex.split(run.commands[0])[1:])[0].get("config-dir", "")
    except (UserError, ValueError, IndexError):
        return ""


def _today(run: Run, seen: dict[tuple[str, ...], dict[str, Any] | str]) -> dict[str, Any] | str:
    """The config that the commands of a run compose to now, or why they do not."""
    try:
        lines = [shlex.split(line)[1:] for line in run.commands]
        first = max((n for n, line in enumerate(lines) if line[:1] != ["resume"]), default=0)  # resume=auto adds commands, of one config
        options, words = split_options(lines[first])
        words = [w for w in words if w != "pretrain" and w.partition("=")[0] not in ("run", "out", "seed")]
        if run.config.get("dataset", {}).get("path"):
            words.append("dataset.path=.")  # composes wherever the images are
        later = tuple(w for line in lines[first + 1 :] for w in line[1:] if not w.startswith("run="))
        key = (options.get("config-dir", ""), *words, "then", *later)
        if key not in seen:
            seen[key] = _compose(words, later, config_dirs(options))
        now = seen[key]
    except (UserError, ValueError, IndexError) as e:
        return str(e) or "its command is not known"
    return now if isinstance(now, str) else {**now, "seed": run.config.get("seed")}


def _compose(words: list[str], later: Iterable[str], dirs: list[str]) -> dict[str, Any] | str:
    try:
        config = compose("train", words, dirs)
        for o in parse(list(later)):  # what `resume` was given
            refuse_resolvers(o.value(), o.key_or_group)
            OmegaConf.update(config, o.key_or_group, o.value())
            if o.key_or_group == "epochs":
                config.trainer.max_epochs = o.value()
        return plain(config)
    except UserError as e:
        return str(e)

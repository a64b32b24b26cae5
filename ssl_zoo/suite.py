"""Suites of `ssl-zoo benchmark`: which runs they are made of, all checked before the first one starts. Needs no torch.

A suite is a table: `method`, `backbone`, `dataset` and `seed` take a name or a list, and every combination is a run; `overrides` hold for
every run, `eval` lists protocols of `ssl-zoo eval`. `runs` is a list of smaller tables of the same keys without `eval`: one that names runs
of the product changes their overrides, others are added, and `name` tells a variant from the run that it is a variant of.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ssl_zoo.checks import RULES, unknown
from ssl_zoo.config import choice_names, compose, conf_dir, plain, run_name
from ssl_zoo.errors import UserError
from ssl_zoo.foreign_yaml import checked
from ssl_zoo.overrides import parse

NAMES = ("method", "backbone", "dataset")
AXES = (*NAMES, "seed")
KEYS = (*AXES, "overrides", "eval", "runs")
RUN_KEYS = (*AXES, "overrides", "name")


@dataclass(frozen=True)
class Cell:
    """One run: the folder's name, its seed, the overrides of `ssl-zoo pretrain` and the config that these compose to."""

    name: str
    seed: int
    words: tuple[str, ...]
    config: dict[str, Any]


@dataclass(frozen=True)
class Suite:
    name: str
    cells: list[Cell]
    protocols: list[str]


def load_suite(name: str, words: list[str], dirs: list[str]) -> Suite:
    """The suite of a file or of conf/suite under `words`: axes among them choose runs, the others hold for every run and win."""
    file = _find(name, dirs)
    table = _read(file)
    try:
        _check_table(table, KEYS)
        for entry in table.get("runs", []):
            _check_table(entry, RUN_KEYS)
        chosen = {w.partition("=")[0]: w.partition("=")[2].strip("[]").split(",") for w in words if w.partition("=")[0] in AXES}
        chosen["seed"] = [int(s) if s.strip().isdigit() else s for s in chosen.get("seed", [])] or None
        keys = _entries(table, {k: [v.strip() if isinstance(v, str) else v for v in vs] for k, vs in chosen.items() if vs})
        for axis in NAMES:
            options = choice_names(axis, dirs)
            for value in dict.fromkeys(key[AXES.index(axis)] for key in keys if key[AXES.index(axis)] is not None):
                if value not in options:
                    raise unknown(axis, value, options)
    except UserError as e:
        raise UserError(f"{file}: {e}") from e
    common = [w for w in words if w.partition("=")[0] not in AXES]
    cells = list(_cells(keys, common, dirs))
    taken: dict[tuple[str, int], Cell] = {}
    for cell in cells:
        if taken.setdefault((cell.name, cell.seed), cell) is not cell:
            raise UserError(f"{file}: {cell.name} with seed {cell.seed} is listed twice: give one of them a name: of its own.")
    protocols = _list(table.get("eval", []))
    for protocol in protocols:
        compose("eval", ["run=.", f"protocol={protocol}"], dirs)
    return Suite(file.stem, cells, protocols)


# ---------------------------------------------------------------------------------------------- the file
def _find(name: str, dirs: list[str]) -> Path:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"suite={name} is not a file.")
        return Path(name)
    options = choice_names("suite", dirs)
    if name not in options:
        raise unknown("suite", name, options)
    return next(f for f in (*(Path(d) / "suite" / f"{name}.yaml" for d in dirs), conf_dir() / "suite" / f"{name}.yaml") if f.is_file())


def _read(file: Path) -> dict[str, Any]:
    try:
        table = yaml.safe_load(checked(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as e:
        raise UserError(f"{file} cannot be read: {' '.join(str(e).split())[:160]}.") from e
    if not isinstance(table, dict):
        raise UserError(f"{file} is not a suite: it needs at least method: and a name, as in method: [simclr, byol].")
    return table


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_table(table: Any, known: tuple[str, ...]) -> None:
    if not isinstance(table, dict):
        raise UserError(f"runs takes a list of tables, as in - {{method: byol, overrides: [epochs=50]}}, not '{table}'.")
    for key, value in table.items():
        if key not in known:
            raise unknown("key", str(key), known)
        if key == "runs":
            if not isinstance(value, list):
                raise UserError("runs takes a list of tables.")
        elif key == "seed":
            if (not value and value != 0) or not all(RULES["seed"][0](v) for v in _list(value)):
                raise UserError(f"seed={value} does not work: it takes {RULES['seed'][1]}, or a list of them.")
        elif key == "name":
            if not isinstance(value, str) or not re.fullmatch(r"[\w .+-]+", value):
                raise UserError(f"name={value} does not work: it becomes part of a folder's name, so it takes letters, digits and spaces.")
        elif not all(isinstance(v, str) and v for v in _list(value)) or (value == [] and key in NAMES):
            raise UserError(f"{key}={value} does not work: it takes text or a list of texts.")
    for o in parse([str(w) for w in _list(table.get("overrides", []))]):
        if o.key_or_group in (*AXES, "run", "out", "trust"):
            where = f"write {o.key_or_group}: as a key of the suite" if o.key_or_group in AXES else "the benchmark chooses it"
            where = "a file cannot vouch for itself, add it to the command" if o.key_or_group == "trust" else where
            raise UserError(f"overrides cannot hold {o.input_line}: {where}.")


Key = tuple[Any, Any, Any, int, str | None]  # method, backbone, dataset, seed, name


def _entries(table: dict[str, Any], chosen: dict[str, list[Any]]) -> dict[Key, list[str]]:
    """{run: its overrides} of the product and of `runs`."""
    found: dict[Key, list[str]] = {}
    inherited = {axis: chosen.get(axis, _list(table.get(axis, [0] if axis == "seed" else [None]))) for axis in AXES}
    common = _list(table.get("overrides", []))
    entries = [{}] if "method" in table else []
    for entry in [*entries, *table.get("runs", [])]:
        own = {a: [v for v in _list(entry[a]) if v in chosen.get(a, _list(entry[a]))] for a in AXES if a in entry}
        for key in itertools.product(*(own.get(a, inherited[a]) for a in AXES)):
            run: Key = (*key, entry.get("name"))  # type: ignore[assignment]
            found[run] = [*found.get(run, common), *_list(entry.get("overrides", []))]
    if not found:
        raise UserError("it holds no run" + (" of those chosen." if chosen else ": add method: and a name, as in method: [simclr, byol]."))
    if bad := [s for *_, s, _ in found if not RULES["seed"][0](s)]:
        raise UserError(f"seed={bad[0]} does not work: it takes {RULES['seed'][1]}.")
    return found


def _cells(entries: dict[Key, list[str]], common: list[str], dirs: list[str]) -> Iterator[Cell]:
    """Compose each config once, whatever the number of seeds; first those with other overrides, so that a slip in these is told soon."""
    words = {k: [*(f"{a}={v}" for a, v in zip(NAMES, k, strict=False) if v is not None), *own, *common] for k, own in entries.items()}
    first = {tuple(own): tuple(words[k]) for k, own in reversed(entries.items())}
    composed: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = {}
    for line in dict.fromkeys([*reversed(first.values()), *map(tuple, words.values())]):
        config = compose("train", list(line), dirs)
        if config.run:
            raise UserError("run=... would be shared by all runs of the suite: use out=... instead.")
        composed[line] = (run_name(list(line), dirs), plain(config))
    for key, line in words.items():
        name, config = composed[tuple(line)]
        *_, seed, variant = key
        yield Cell(f"{name}+{variant}" if variant else name, seed, (*line, f"seed={seed}"), {**config, "seed": seed})

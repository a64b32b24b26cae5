"""`ssl-zoo shard`: which data set is meant, and whether the shards may be written where they should; needs no torch."""

import importlib.util
import itertools
import os
from pathlib import Path

from ssl_zoo.checks import check_new_folder, unknown
from ssl_zoo.config import choice_names
from ssl_zoo.errors import UserError

USAGE = "ssl-zoo shard data=photos out=shards"


def dataset_words(words: list[str], config_dirs: list[str], least: int = 1, usage: str = USAGE) -> list[str]:
    """The overrides with data=<name or path> as the dataset=... dataset.path=... that it stands for. least: 0 where none will do."""
    given = [w.partition("=")[2] for w in words if w.startswith("data=")]
    rest = [w for w in words if not w.startswith("data=")]
    if not least <= len(given) + sum(w.startswith("dataset=") for w in rest) <= 1:
        verb = usage.split()[1]
        raise UserError(f"{verb} takes one data set, data=... (a folder, a parquet file or a name) or dataset=...: {usage}.")
    return [*words_for(given[0], config_dirs), *rest] if given else rest


def words_for(data: str, config_dirs: list[str]) -> list[str]:
    """The overrides that a data set's name, a folder or a file stands for."""
    names = choice_names("dataset", config_dirs)
    if data in names:
        return [f"dataset={data}"]
    path = Path(os.path.expanduser(data))
    if not data or not path.exists():
        raise unknown("folder, file or data set", data, names)
    if "${" in data or data.endswith("\\"):
        raise UserError(f"data={data} cannot be named in a config (${{ or a backslash at its end): rename it or use a link to it.")
    quoted = data.replace("'", "\\'")
    return [f"dataset={_kind(path)}", f"dataset.path='{quoted}'"]


def _kind(path: Path) -> str:
    """Which data set reads a path, by the first thousand file names."""
    walk = (f for _, _, files in os.walk(path) for f in files if not f.startswith("."))
    names = [path.name] if path.is_file() else list(itertools.islice(walk, 1000))
    if any(n.lower().endswith(".parquet") for n in names):
        return "parquet"
    if any(n == "index.json" or ".tar" in n.lower() or n.lower().endswith(".tgz") for n in names):
        return "shards"
    if path.is_file():
        raise UserError(f"data={path} is one file, but neither parquet nor a tar: give the folder of the images.")
    return "folder"


def check_shard(out: Path, data: str | None, form: str) -> None:
    """Refuse what would write over something, read what it writes, or cannot be written at all."""
    if form not in ("tar", "litdata"):
        raise UserError(f"format={form} does not work: format takes tar or litdata.")
    check_new_folder(out)
    if data and out.resolve().is_relative_to(Path(data).expanduser().resolve()):
        raise UserError(f"out={out} lies inside the data: choose a folder beside it.")
    if form == "litdata" and importlib.util.find_spec("litdata") is None:
        raise UserError("format=litdata needs the package litdata: pip install 'ssl-zoo[shards]', or use format=tar.")

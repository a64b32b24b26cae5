"""Which captions the images of a folder have: from a table that names them, or from text files beside them."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ssl_zoo.data.caption_lines import LONGEST, Notes, is_text, text_of
from ssl_zoo.data.caption_tables import MOST_CAPTIONS, read_table
from ssl_zoo.data.encoded import read_file
from ssl_zoo.errors import UserError, one_line

TABLES = ("metadata.csv", "metadata.jsonl", "captions.csv", "captions.jsonl", "captions.json")
AT_ONCE = 8192  # text files that threads are asked to read at a time
log = logging.getLogger("ssl_zoo")
Roots = Mapping[Path, tuple[Iterable[str], Iterable[str]]]  # names of images, by row, and of other files; relative to the root


@dataclass
class Captions:
    """of: for each root one list of sentences per image, or None where no image has any; used: the files they are from, absolute; notes:
    what was left out.
    """

    of: dict[Path, list[list[str]] | None] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def captions_of(path: Path, setting: str | None, roots: Roots, unread: Sequence[str]) -> Captions:
    """Captions of the images below each root. setting: null for none, a table, or "auto": tables of
    usual names in `path` or a root, else text files with the stem of an image. unread: folders of `path` whose images are not asked for.
    """
    if setting is None:
        return Captions(dict.fromkeys(roots))
    found = Captions()
    said: dict[str, list[str]] = {}
    if setting != "auto":
        _add(said, *_explicit(path, setting), path, found)
    else:
        for base in dict.fromkeys([path, *roots]):
            for file in (base / name for name in TABLES if os.path.isfile(base / name)):
                try:
                    _add(said, file, base, path, found)
                    break
                except UserError as e:  # the folder may be meant to be without captions
                    found.notes.append(str(e))
    if found.used:
        _match(said, path, roots, unread, found)
        if setting != "auto" and not any(found.of.values()):
            told = found.notes[-1] if found.notes else "it is empty"
            raise UserError(f"dataset.captions={setting} gives no image in {path} a caption ({told}): its names are those of the images.")
    elif setting == "auto":
        for root, (names, others) in roots.items():
            found.of[root] = _sidecars(root, names, others, found)
    for note in found.notes:
        log.warning("%s", one_line(note))
    return found


# ---------------------------------------------------------------------------------------------- tables
def _explicit(path: Path, setting: str) -> tuple[Path, Path]:
    """The table that was asked for, and the folder it speaks of: its own within the data, else the data's."""
    places = [p for p in (os.path.expanduser(setting), str(path / setting)) if os.path.exists(p)]
    if not places:
        raise UserError(f"dataset.captions={setting} does not exist: give a table of captions, auto or null.")
    if not os.path.isfile(places[0]):
        raise UserError(f"dataset.captions={setting} is no file: give a table of captions (.csv, .jsonl or .json), auto or null.")
    file = Path(os.path.abspath(places[0]))
    return file, file.parent if file.is_relative_to(os.path.abspath(path)) else path


def _add(said: dict[str, list[str]], file: Path, base: Path, path: Path, found: Captions) -> None:
    """Add a table to `said`, under names relative to `path`."""
    notes, shown = Notes(), os.path.relpath(file, path)
    table = read_table(file, Path(os.path.abspath(base)), notes)
    found.used.add(os.path.abspath(file))
    found.notes += notes.lines(str(file) if shown.startswith("..") else shown)
    prefix = _prefix(base, path)
    for name, captions in table.items():
        said[prefix + name] = list(dict.fromkeys([*said.get(prefix + name, ()), *captions]))


def _prefix(folder: Path, path: Path) -> str:
    inner = os.path.relpath(folder, path).replace(os.sep, "/")
    return "" if inner == "." else f"{inner}/"


def _match(said: dict[str, list[str]], path: Path, roots: Roots, unread: Sequence[str], found: Captions) -> None:
    """Give the images of all roots their captions: by their whole name, else by the end of one that no other image has."""
    missing, none = set(said), list[str]()
    rows: dict[Path, list[list[str]]] = {}
    for root, (names, _) in roots.items():
        prefix = _prefix(root, path)
        keys = [prefix + name.replace(os.sep, "/") for name in names]
        rows[root] = [said.get(key, none) for key in keys]
        missing.difference_update(keys)
    notes, skip = Notes(), {name.lower() for name in unread}
    by_end = _by_end(missing, roots) if missing else {}
    for key in sorted(missing):
        places = by_end.get(key, [])
        if len(places) == 1:
            root, row = places[0]
            rows[root][row] = list(dict.fromkeys([*rows[root][row], *said[key]]))
        elif places:
            notes.add("rows whose file name fits several images", key)
        elif key.partition("/")[0].lower() not in skip:
            notes.add("rows that name no image in the folder", key)
    found.notes += notes.lines("captions")
    found.of = {root: own if any(own) else None for root, own in rows.items()}


def _by_end(keys: set[str], roots: Roots) -> dict[str, list[tuple[Path, int]]]:
    """{key: images whose path ends with it}."""
    found: dict[str, list[tuple[Path, int]]] = defaultdict(list)
    for root, (names, _) in roots.items():
        for row, name in enumerate(names):
            end = name.replace(os.sep, "/")
            while end:
                if end in keys:
                    found[end].append((root, row))
                end = end.partition("/")[2]
    return found


# ---------------------------------------------------------------------------------------------- sidecars
def _sidecars(root: Path, names: Iterable[str], others: Iterable[str], found: Captions) -> list[list[str]] | None:
    """The captions in text files that have the stem of an image, one a line; None where no image has such a file."""
    texts = {name[: -len(".txt")]: name for name in others if name.lower().endswith(".txt")}
    if not texts:
        return None
    chosen = [texts.get(name.rpartition(".")[0]) for name in names]
    with_text = [i for i, name in enumerate(chosen) if name]
    none, notes = list[str](), Notes()
    rows = [none] * len(chosen)
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(with_text), AT_ONCE):
            some = with_text[start : start + AT_ONCE]
            for i, said in zip(some, pool.map(lambda i: _read(root / str(chosen[i])), some), strict=True):
                if isinstance(said, str):
                    notes.add(f"text files left out ({said})", str(chosen[i]))
                else:
                    rows[i] = said
    found.used.update(os.path.abspath(root / str(chosen[i])) for i in with_text)
    found.notes += notes.lines("captions")
    return rows if with_text else None


def _read(file: Path) -> list[str] | str:
    """The captions of a text file, or why there are none."""
    try:
        text = text_of(read_file(file, LONGEST))
    except OSError as e:
        return e.strerror or str(e)
    if not is_text(text):
        return "not UTF-8: save it as UTF-8"
    lines = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
    return list(dict.fromkeys(lines))[:MOST_CAPTIONS] if lines else "empty"

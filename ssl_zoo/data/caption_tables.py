"""Tables of captions: CSV, JSONL or JSON files that name images and what is said of them."""

import csv
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssl_zoo.data.caption_lines import LONGEST, Notes, is_text, lines_of, relative, roles, sentences, text_of
from ssl_zoo.data.encoded import opened
from ssl_zoo.errors import UserError, one_line

LARGEST_JSON = 1 << 29  # bytes of a file that is read whole
MOST_LINES = 50  # of one record: a quote that is open for longer was never meant to be closed
MOST_CAPTIONS = 1000  # of one image
Row = tuple[str, Any, Any]  # where it stands, the name of the file, a caption or a list of them


def read_table(file: Path, folder: Path, notes: Notes) -> dict[str, list[str]]:
    """{name of a file below `folder`: its captions}. UserError where it is no table of captions; rows that say nothing are counted in
    `notes`.
    """
    read = {".json": _json, ".jsonl": _jsonl, ".ndjson": _jsonl}.get(file.suffix.lower(), _csv)
    found: dict[str, list[str]] = {}
    try:
        for where, name, said in read(file, notes):
            key = relative(name, str(folder))
            if key is None:
                notes.add("rows that name no file in the folder", f"{where} {name}" if isinstance(name, str) else where)
                continue
            captions = found.setdefault(key, [])
            for caption in said if isinstance(said, list) else [said]:
                if reason := _unfit(caption, captions):
                    notes.add(reason, where)
                else:
                    captions.append(caption)
    except OSError as e:
        raise UserError(f"{file} cannot be read ({e.strerror or e}).") from e
    return found


def _unfit(caption: Any, others: list[str]) -> str | None:
    """Why a caption of an image is left out, beside those that it has."""
    if caption is None or not isinstance(caption, str):
        return "rows without a caption"
    if not is_text(caption):
        return "captions that are not UTF-8 (save the file as UTF-8)"
    if caption in others:
        return "captions that are there twice"
    return f"captions beyond the first {MOST_CAPTIONS:,} of an image" if len(others) >= MOST_CAPTIONS else None


# ---------------------------------------------------------------------------------------------- CSV
def _csv(file: Path, notes: Notes) -> Iterator[Row]:
    lines = lines_of(file, notes)
    head = next(lines, (0, ""))[1]
    for delimiter in ",;\t|":
        columns = tuple(c.strip().lower() for c in _parsed([head], delimiter) or [head])
        name, said = roles(columns)
        if name and said:
            break
    else:
        shown = one_line(head)[:80]
        raise UserError(f"{file} begins with '{shown}', where the names of its columns should stand: file_name and caption, for one.")
    at, told = columns.index(name), [i for i, column in enumerate(columns) if column in said]
    for number, cells in _records(lines, delimiter, notes):
        while len(cells) > len(columns) and not cells[-1].strip():
            cells.pop()
        if len(cells) == len(columns):
            yield f"line {number}", cells[at], [s for i in told for s in sentences(cells[i])]
        else:
            reason = "rows with more cells than columns (put captions in quotes)" if len(cells) > len(columns) else "rows that are cut"
            notes.add(reason, f"line {number}")


def _records(lines: Iterator[tuple[int, str]], delimiter: str, notes: Notes) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of each record. A quote that is never closed costs its own line, not all that follow."""
    ahead: deque[tuple[int, str]] = deque()
    while first := ahead.popleft() if ahead else next(lines, None):
        number, taken = first[0], [first]
        cells = _parsed([first[1]], delimiter)
        while cells is None and len(taken) < MOST_LINES and sum(len(line) for _, line in taken) < LONGEST:
            following = ahead.popleft() if ahead else next(lines, None)
            if following is None:
                break
            taken.append(following)
            if '"' in following[1]:
                cells = _parsed([line for _, line in taken], delimiter)
        if cells is not None:
            yield number, cells
        else:
            ahead.extendleft(reversed(taken[1:]))
            notes.add("rows whose quotes do not match", f"line {number}")


def _parsed(lines: list[str], delimiter: str) -> list[str] | None:
    """The cells of a record; None where it is not whole."""
    if len(lines) == 1 and '"' not in lines[0]:
        return lines[0].rstrip("\n").split(delimiter)
    try:
        return next(csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True), None)
    except csv.Error:
        return None


# ---------------------------------------------------------------------------------------------- JSON
def _jsonl(file: Path, notes: Notes) -> Iterator[Row]:
    known = False
    for number, line in lines_of(file, notes):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            notes.add("lines that are no JSON table", f"line {number}")
            continue
        yield _row(row, f"line {number}")
        known = True
    if not known:
        raise UserError(f'{file} holds no line such as {{"file_name": "1.jpg", "caption": "a cat"}}.')


def _row(row: dict[str, Any], where: str) -> Row:
    name, said = roles(tuple(row))
    told = [row[key] for key in said]
    flat = [s for v in told for s in (v if isinstance(v, list) else [v])]
    return where, row[name] if name else None, flat or None


def _json(file: Path, notes: Notes) -> Iterator[Row]:
    """A list of tables, a table {file name: caption or captions}, or the layout of COCO."""
    with opened(file) as raw:
        data = raw.read(LARGEST_JSON + 1)
    if len(data) > LARGEST_JSON:
        raise UserError(f"{file} is larger than {LARGEST_JSON >> 20} MB: write it as JSONL, one table a line.")
    try:
        whole = json.loads(text_of(data))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file} cannot be read as JSON ({one_line(e)[:80]}).") from e
    if isinstance(whole, dict) and isinstance(whole.get("images"), list) and isinstance(whole.get("annotations"), list):
        tables = [t for t in whole["images"] if isinstance(t, dict)]
        names = {str(t.get("id")): t.get("file_name") for t in tables}
        said = ((i, t) for i, t in enumerate(whole["annotations"]) if isinstance(t, dict))
        yield from ((f"annotation {i}", names.get(str(t.get("image_id"))), t.get("caption")) for i, t in said)
    elif isinstance(whole, dict):
        yield from (("entry", name, said) for name, said in whole.items())
    elif isinstance(whole, list):
        yield from (_row(t, f"entry {i}") if isinstance(t, dict) else (f"entry {i}", None, None) for i, t in enumerate(whole))
    else:
        raise UserError(f'{file} is neither a list of tables nor a table such as {{"1.jpg": "a cat"}}.')

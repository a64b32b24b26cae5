"""What files of captions have in common: lines of any encoding, names of files, columns by their names, and what was left out."""

import functools
import io
import itertools
import json
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ssl_zoo.data.encoded import opened
from ssl_zoo.errors import one_line

NAMES = ("file_name", "file", "filename", "image", "path", "image_file_name", "image_name", "filepath")
SAID = tuple(re.compile(rf"{word}s?[ _-]?\d*") for word in ("caption", "text", "sentence", "comment", "description"))
DOTS = re.compile(r"(^|/)\.{0,2}(/|$)")  # a part of a path that is empty, . or ..
LONGEST = 1 << 20  # characters of a line, or bytes of a sidecar


class Notes:
    """What was left out of a file: how often, and where at first."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.first: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, where: str) -> None:
        self.count[reason] += 1
        if len(self.first[reason]) < 5:
            self.first[reason].append(one_line(where)[:80])

    def lines(self, name: str) -> list[str]:
        return [f"{name}: {count:,} {reason}: {', '.join(self.first[reason])}" for reason, count in self.count.items()]


def text_of(data: bytes) -> str:
    """Decoded by its byte-order mark, else as UTF-8; bytes that do not decode become lone surrogates."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "surrogateescape")


def is_text(text: str) -> bool:
    """Whether it has no lone surrogates, which stand for bytes that could not be decoded."""
    return text.isascii() or not re.search("[\ud800-\udfff]", text)


def relative(name: Any, folder: str) -> str | None:
    """The name of a file below `folder`, without . and .. and backslashes; None where it leads elsewhere or is none."""
    if not isinstance(name, str) or not (name := name.strip().replace("\\", "/")) or "\0" in name:
        return None
    name = name.removeprefix(f"{folder}/")
    if DOTS.search(name):
        name = posixpath.normpath(name)
    return None if name in (".", "..") or name.startswith(("../", "/")) else name


def lines_of(file: Path, notes: Notes) -> Iterator[tuple[int, str]]:
    """Number and text of each line that says something, whatever the encoding and the ends of lines."""
    with opened(file) as raw:
        wide = raw.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
        with io.TextIOWrapper(raw, "utf-16" if wide else "utf-8-sig", "replace" if wide else "surrogateescape") as text:
            for number in itertools.count(1):
                line = text.readline(LONGEST)
                if not line:
                    return
                if len(line) == LONGEST and not line.endswith("\n"):
                    _finish(text)
                    notes.add("lines longer than 1 MB", f"line {number}")
                elif not line.isspace():
                    yield number, line


def _finish(text: TextIO) -> None:
    while (rest := text.readline(LONGEST)) and not rest.endswith("\n"):
        pass


@functools.lru_cache(256)
def roles(columns: tuple[str, ...]) -> tuple[str, list[str]]:
    """Which column names the file, and which ones hold captions; "" and [] where none does."""
    name = next((c for n in NAMES for c in columns if c.lower() == n), "")
    return name, next((s for kind in SAID if (s := [c for c in columns if kind.fullmatch(c.lower()) and c != name])), [])


def sentences(cell: str) -> list[str]:
    """The captions in a cell: a list in JSON, or the text itself."""
    if cell.startswith("["):
        try:
            found = json.loads(cell)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, list) and all(isinstance(s, str) for s in found):
            return [s.encode("utf-8", "replace").decode() for s in found]  # JSON may hold half a character
    return [cell]

"""Tars in the webdataset layout: a sample is the files that share a stem, as in 0001.jpg, 0001.cls and 0001.json or 0001.txt."""

import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from ssl_zoo.data.encoded import LARGEST
from ssl_zoo.data.folder import SUFFIXES
from ssl_zoo.data.spans import index_of, shown
from ssl_zoo.errors import UserError

IMAGES = tuple(s[1:] for s in SUFFIXES)
TEXTS = ("cls", "json", "txt")  # nothing else is read: a pickle in a tar stays unopened
LONGEST_TEXT = 1 << 20
LONGEST_HEADER = 1 << 16
Span = tuple[int, int]  # offset, size


class _Headers:
    """A file for tarfile that refuses what only a forged header asks for: to read more than any header holds."""

    def __init__(self, file: BinaryIO):
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_HEADER:
            raise tarfile.ReadError("a header is too large")
        return self.file.read(size)


def _members(file: BinaryIO, total: int, notes: dict[str, list[str]]) -> Iterator[tarfile.TarInfo]:
    """The members that are wholly there; a cut or damaged tar ends with a note."""
    tar = None
    try:
        tar = tarfile.TarFile(fileobj=_Headers(file), mode="r")  # type: ignore[arg-type]
        last = -1
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # or it keeps every one
            if member.size < 0 or member.offset_data <= last:  # sizes may be negative, and would lead back
                raise tarfile.ReadError("a header is damaged")
            if member.offset_data + member.size > total:
                raise tarfile.ReadError("the last member is cut")
            last = member.offset_data
            yield member
        if os.pread(file.fileno(), 512, tar.offset) != bytes(512):  # tarfile takes any block that is no header for the end
            raise tarfile.ReadError("the end mark is missing")
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError, MemoryError) as e:
        if tar is None and total:
            raise UserError(f"{file.name} cannot be read as a tar ({str(e) or type(e).__name__}).") from e
        notes["place where the tar breaks off; what comes after is lost"].append(str(e) or type(e).__name__)


def scan(path: Path) -> pa.Table:
    """The images of a tar with their labels and captions, in the order of the tar. UserError where it is no tar."""
    images: dict[str, dict[str, Span]] = {}
    texts: dict[str, dict[str, bytes]] = defaultdict(dict)
    notes: dict[str, list[str]] = defaultdict(list)
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise UserError(f"{path} is compressed with gzip, so its images cannot be read one by one: unpack it with gunzip.")
        file.seek(0)
        for member in _members(file, os.fstat(file.fileno()).st_size, notes):
            folder, _, base = member.name.rpartition("/")
            stem, _, ext = base.partition(".")
            kind = ext.rpartition(".")[2].lower()
            if member.isdir() or not stem or kind not in (*IMAGES, *TEXTS):
                continue
            if not member.isreg() or member.issparse():
                notes["members that are links or devices, left out"].append(shown(member.name))
                continue
            if member.size > (LARGEST if kind in IMAGES else LONGEST_TEXT):
                notes["members that are too large, left out"].append(shown(member.name))
                continue
            sample: dict[str, Any] = images.setdefault(f"{folder}/{stem}", {}) if kind in IMAGES else texts[f"{folder}/{stem}"]
            if ext.lower() in sample:
                notes["members of the same name, of which the last counts"].append(shown(member.name))
            at = (member.offset_data, member.size)
            sample[ext.lower()] = at if kind in IMAGES else os.pread(file.fileno(), at[1], at[0])
    rows = [
        (shown(f"{key}.{ext}".lstrip("/")), *span, *_about(texts.get(key, {}), ext, key, notes))
        for key, found in images.items()
        for ext, span in _chosen(found, key, notes)
    ]
    rows.sort(key=lambda row: row[1])
    return index_of(rows, notes)


def _chosen(found: dict[str, Span], key: str, notes: dict[str, list[str]]) -> list[tuple[str, Span]]:
    """The images of one stem: 0001.jpg rather than 0001.mask.png beside it; without a plain one each is a sample (2024.01.jpg)."""
    plain = [ext for ext in found if "." not in ext]
    kept = plain[:1] or list(found)
    notes["second images of a sample, left out"] += [shown(f"{key}.{ext}".lstrip("/")) for ext in found if ext not in kept]
    return [(ext, found[ext]) for ext in kept]


def _about(texts: dict[str, bytes], ext: str, key: str, notes: dict[str, list[str]]) -> tuple[str | None, list[str] | None]:
    """(label, captions) of the sample whose image is `<key>.<ext>`."""
    prefix = ext.rpartition(".")[0]
    cls, table, text = (texts.get(f"{prefix}.{kind}" if prefix else kind, texts.get(kind)) for kind in TEXTS)
    try:
        about: Any = json.loads(table) if table is not None else {}
        about = about if isinstance(about, dict) else {}
    except (ValueError, RecursionError):
        notes[".json files that cannot be read"].append(shown(key.lstrip("/")))
        about = {}
    label = about.get("label") if cls is None else cls.decode("utf-8", "replace").strip() or None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if label is not None and not isinstance(label, (int, str)):
        notes["labels that are neither text nor a whole number"].append(shown(key.lstrip("/")))
        label = None
    said = about.get("captions", about.get("caption"))
    if said is None and text is not None:
        said = text.decode("utf-8", "replace").strip()
    said = [said] if isinstance(said, str) else said
    captions = [_clean(s) for s in said if isinstance(s, str)] if isinstance(said, list) else None
    return None if label is None else _clean(str(int(label) if isinstance(label, bool) else label)), captions


def _clean(text: str) -> str:
    """Text without lone surrogates, which JSON can spell but UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()

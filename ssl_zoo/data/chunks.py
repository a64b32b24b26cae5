"""litdata's chunks: index.json beside chunk-*.bin, read by position.

A chunk is uint32 [1 + n + 1] (n, then where each item begins, then the end), then the items: a uint32 size per leaf, then the leaves.
litdata writes rows of plain values as a trailing Arrow file instead. litdata's own reader is not used: it keeps one open chunk, so it
cannot serve threads, and for such rows decodes 256 to give one.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ssl_zoo.data.caption_lines import sentences
from ssl_zoo.data.encoded import LARGEST
from ssl_zoo.data.spans import Scan, index_of
from ssl_zoo.errors import UserError

ENCODED = ("bytes", "file", "image", "jpeg")  # leaves that hold a whole image file
PLAIN = (*ENCODED, "str", "text", "int", "bool", "float")  # anything else is refused: pickles among them
FOOTER = b"LDARW01\0"
ROLES = {
    "image": (ENCODED, ("image", "img", "jpg", "jpeg", "png", "webp")),
    "label": (("int", "str", "text"), ("label", "cls", "class", "target")),
    "captions": (("str", "text"), ("captions", "caption", "text", "txt")),
}


@dataclass(frozen=True)
class Layout:
    """The leaves of a sample: how many, and the positions and names of those that are used."""

    count: int
    formats: tuple[str, ...]
    at: dict[str, int]
    names: dict[str, str]


def read_index(file: Path) -> list[tuple[Path, Scan]]:
    """The chunks that an index.json names, each with what scans it. UserError where it cannot be trusted or read."""
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        config, chunks = index["config"], [(c["filename"], c["chunk_size"]) for c in index["chunks"]]
        layout = _layout(file, config)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as e:
        raise UserError(f"{file} cannot be read as an index of litdata ({type(e).__name__}: {str(e)[:80]}).") from e
    found: list[tuple[Path, Scan]] = []
    for name, count in chunks:
        if not isinstance(name, str) or Path(name).name != name or not (type(count) is int and count > 0):
            raise UserError(f"{file} names the chunk '{str(name)[:80]}' of {str(count)[:20]} images, which cannot be: copy it again.")
        if not (file.parent / name).is_file():
            raise UserError(f"{file} names the chunk {name}, which is not beside it: copy it there.")
        found.append((file.parent / name, partial(scan, layout=layout, count=count)))
    return found


def _layout(file: Path, config: dict[str, Any]) -> Layout:
    packed = next((k for k in ("encryption", "compression", "ipc_compression") if config.get(k)), None)
    if packed:
        raise UserError(f"{file} says {packed}={str(config[packed])[:40]}, but only plain chunks can be read: write them without it.")
    if config.get("item_loader") not in (None, "PyTreeLoader"):
        raise UserError(f"{file} was written for {str(config['item_loader'])[:40]}, not as single samples: write it with PyTreeLoader.")
    formats = tuple(f.partition(":")[0] for f in config["data_format"])
    strange = [f for f in formats if f not in PLAIN]
    if strange:
        raise UserError(
            f"{file} stores '{strange[0][:40]}', which is not read: write images as encoded bytes, labels as int, texts as str."
        )
    spec = json.loads(config["data_spec"])[1]
    names = json.loads(spec["context"]) if spec["type"] == "builtins.dict" else [""] * len(formats)
    if len(names) != len(formats) or any(child["type"] is not None for child in spec["children_spec"]):
        raise UserError(f"{file} stores nested samples: write a flat table such as {{'image': ..., 'label': ...}}.")
    at = {}
    for role, (kinds, words) in ROLES.items():
        fitting = [i for i, f in enumerate(formats) if f in kinds]
        named = [i for i in fitting if names[i] in words]
        lone = [i for i in fitting if role == "image" or (not any(names) and (role == "captions") == (formats[i] != "int"))]
        if named or len(lone) == 1:
            at[role] = (named or lone)[0]
    if "image" not in at:
        raise UserError(f"{file} has no field 'image' of encoded bytes but {', '.join(map(str, names))[:80]}: write one.")
    return Layout(len(formats), formats, at, {role: names[i] for role, i in at.items()})


def scan(path: Path, layout: Layout, count: int) -> pa.Table:
    """The images of a chunk with their labels and captions, in order. UserError where it is no chunk of that layout."""
    notes: dict[str, list[str]] = defaultdict(list)
    data = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
    read = _rows_of_arrow if bytes(data[-8:]) == FOOTER else _rows_of_items
    try:
        rows = [row for row in zip(*read(data, layout), strict=True) if row[2] <= LARGEST]
    except (ValueError, OverflowError, IndexError, KeyError, OSError, pa.ArrowException) as e:
        raise UserError(f"{path} cannot be read as a chunk of litdata ({str(e).splitlines()[0][:80]}): copy it again.") from e
    found = {row[0] for row in rows}
    notes["images that are cut or damaged, left out"] += [f"item {i}" for i in range(count) if f"item {i}" not in found]
    return index_of(rows, notes)


def _rows_of_items(data: np.ndarray, layout: Layout) -> tuple[Any, ...]:
    """Columns (name, offset, size, label, captions) of the items that are wholly there."""
    total = int(data[:4].view("<u4")[0])
    bounds = data[4 : 8 + 4 * total].view("<u4").astype(np.int64)
    if len(bounds) != total + 1:
        raise ValueError("its table of items is cut")
    head = 4 * layout.count
    begins, ends = bounds[:-1], bounds[1:]
    rows = np.flatnonzero((begins >= 8 + 4 * total) & (ends >= begins + head) & (ends <= len(data)))
    sizes = data[begins[rows, None] + np.arange(head)].view("<u4").astype(np.int64)
    whole = begins[rows] + head + sizes.sum(1) == ends[rows]
    rows, sizes = rows[whole], sizes[whole]
    starts = begins[rows, None] + head + np.cumsum(sizes, 1) - sizes
    place = {role: (starts[:, i], sizes[:, i]) for role, i in layout.at.items()}
    text = {
        role: [bytes(data[o : o + s]) for o, s in zip(*(x.tolist() for x in place[role]), strict=True)] if role in place else None
        for role in ("label", "captions")
    }
    number = "label" in layout.at and layout.formats[layout.at["label"]] == "int"
    labels = [str(int.from_bytes(t, "little", signed=True)) if number else t.decode("utf-8", "replace") for t in text["label"] or []]
    captions = [sentences(t.decode("utf-8", "replace")) if t else [] for t in text["captions"] or []]
    offset, size = (x.tolist() for x in place["image"])
    return [f"item {i}" for i in rows], offset, size, labels or [None] * len(rows), captions or [None] * len(rows)


def _rows_of_arrow(data: np.ndarray, layout: Layout) -> tuple[Any, ...]:
    """The same from a trailing Arrow file, whose values lie uncompressed in the mapped file."""
    whole = pa.py_buffer(data)
    length = int(data[-12:-8].view("<u4")[0])
    reader = pa.ipc.open_file(whole.slice(len(data) - 12 - length, length))
    offset: list[int] = []
    size: list[int] = []
    labels: list[Any] = []
    captions: list[Any] = []
    for i in range(reader.num_record_batches):
        batch = reader.get_batch(i)
        batch.validate(full=True)
        column = batch.column(layout.names["image"])
        _, bounds, values = column.buffers()
        if not pa.types.is_binary(column.type) or not whole.address <= values.address <= whole.address + len(data) - values.size:
            raise ValueError("its images are not plain bytes")
        ends = np.frombuffer(bounds, dtype="<i4")[column.offset : column.offset + len(column) + 1].astype(np.int64)
        offset += (values.address - whole.address + ends[:-1]).tolist()
        size += np.diff(ends).tolist()
        none = [None] * len(column)
        labels += [None if v is None else str(v) for v in batch.column(layout.names["label"]).to_pylist()] if "label" in layout.at else none
        said = batch.column(layout.names["captions"]).to_pylist() if "captions" in layout.at else none
        captions += [None if v is None else sentences(v) if v else [] for v in said]
    return [f"item {i}" for i in range(len(offset))], offset, size, labels, captions

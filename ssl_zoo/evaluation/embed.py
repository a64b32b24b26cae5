"""Features of any number of images on disk: in parts that a later call goes on from, then in one file."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ssl_zoo.data.feed import feed, plan
from ssl_zoo.data.images import Images
from ssl_zoo.data.ondemand import IN_A_ROW, Fetched, OnDemand
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.feature_cache import data_hash
from ssl_zoo.evaluation.features import Subject, dtype_of, eval_mode, normalised
from ssl_zoo.files import index_of, parts_of, whole

SECONDS = 10.0  # after which what was computed is written as a part
ROWS = 1 << 16  # or so many images, which wait on the device
VERSION = 1  # of the parts and of the file
JOINING = "joining"  # among the parts: an index beside the file is of this embedding
Step = Callable[[int], None]


@dataclass
class Embedding:
    """What was written: the file (an .npy has its index beside it), rows [n] x dim features, and the images left out, with the reason."""

    file: Path
    rows: int = 0
    dim: int = 0
    left: list[str] = field(default_factory=list)
    before: int = 0  # images that an earlier call had done
    index: Path | None = None


def identity(splits: dict[str, Images], weights: str, size: int) -> dict[str, Any]:
    """What decides the rows of an embedding: names or pixels of the images, the weights, and the size that they are given. "stamp" tells
    of changed files, where it is known.
    """
    digest, stamps = hashlib.blake2b(digest_size=12), []
    for split, images in splits.items():
        digest.update(f"{split} {len(images)} {images.image_size} {tuple(images.pixels.shape)}\n".encode())
        if isinstance(images.pixels, OnDemand):
            files = images.pixels.files
            for i in range(len(images)):
                digest.update(os.fsencode(files.name(images.pixels.row(i))) + b"\0")
            stamps.append(files.stamp() if hasattr(files, "stamp") else None)
        else:
            digest.update(data_hash(images).encode())
    stamp = "".join(stamps) if stamps and None not in stamps else None  # type: ignore[arg-type]
    return {"version": VERSION, "weights": weights, "image_size": size, "images": digest.hexdigest(), "stamp": stamp}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two identities are of the same embedding; stamps count where both are known."""
    stamps = {one.get("stamp"), other.get("stamp")} - {None}
    return len(stamps) < 2 and {**one, "stamp": None} == {**other, "stamp": None}


class Parts:
    """The parts of `file`: each is a parquet file of the rows from the number in its name on, whose metadata say where it ends. Raises
    UserError where they are of another embedding.
    """

    def __init__(self, file: Path, of: dict[str, Any]) -> None:
        self.folder, self.of = parts_of(file), of
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "about.json"
        try:
            known = json.loads(about.read_text()) if about.is_file() else None
            matches = known is None or same(known, of)
        except (ValueError, AttributeError):
            matches = False
        if not matches:
            raise UserError(
                f"{self.folder} holds the beginning of another embedding (of other images, weights or sizes): choose another out=..., or "
                f"delete that folder."
            )
        if known is None:
            with whole(about) as f:
                f.write(json.dumps(of).encode())

    def files(self) -> list[tuple[Path, dict[str, Any]]]:
        """The parts in a row from the first image on, and what their metadata say; what cannot be read ends the row."""
        found: list[tuple[Path, dict[str, Any]]] = []
        end = 0
        while (part := self.folder / f"{end:012d}.parquet").is_file():
            try:
                about = json.loads(pq.read_schema(part).metadata[b"ssl_zoo"])
                if about["start"] != end or about["end"] <= end:
                    break
            except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
                break
            found.append((part, about))
            end = about["end"]
        return found

    def write(self, table: pa.Table, start: int, end: int, left: list[str]) -> None:
        """The rows of images start to end, of which those in `left` have none."""
        about = json.dumps({"start": start, "end": end, "left": left, "rows": len(table)})
        with whole(self.folder / f"{start:012d}.parquet") as f:
            pq.write_table(table.replace_schema_metadata({"ssl_zoo": about}), f, compression="none")


def embed(
    subject: Subject, splits: dict[str, Images], file: Path, of: dict[str, Any], device: torch.device, batch_size: int, step: Step
) -> Embedding:
    """Write the features of all images into `file`, whose name ends with .parquet or .npy: float32, what the backbone makes of each image
    in evaluation mode. Goes on after the parts of an earlier call; no more than a batch and a part are in memory. `step` is called with
    the number of images done, first with that of an earlier call. of: as `identity` gives.

    Raises UserError where the features are no finite numbers, or many files in a row cannot be opened.
    """
    parts = Parts(file, of)
    done = parts.files()[-1][1]["end"] if parts.files() else 0
    result = Embedding(file, before=done)
    step(done)
    at = 0
    for split, prefix in _prefixes(splits).items():
        images = splits[split]
        if isinstance(images.pixels, OnDemand):
            images = replace(images, pixels=images.pixels.take(torch.arange(len(images))))
            images.pixels.gaps = True  # type: ignore[union-attr]
        if done < at + len(images):
            _Split(split, prefix, images, at, parts, subject, device).write(max(0, done - at), batch_size, step)
        at += len(images)
    return _join(parts, result)


def _prefixes(splits: dict[str, Images]) -> dict[str, str]:
    """What comes before the names of each split: its folder, where they lie in different ones."""
    roots = {s: str(getattr(getattr(images.pixels, "files", None), "root", "")) for s, images in splits.items()}
    if len(set(roots.values())) < 2 or "" in roots.values():
        return dict.fromkeys(splits, "")
    common = os.path.commonpath([*roots.values()])
    return {s: "" if root == common else os.path.relpath(root, common) + os.sep for s, root in roots.items()}


class _Split:
    """The images of a split on their way into parts. prefix: what comes before their names. at: the row of the first among all."""

    def __init__(self, name: str, prefix: str, images: Images, at: int, parts: Parts, subject: Subject, device: torch.device) -> None:
        self.name, self.prefix, self.images, self.at, self.parts = name, prefix, images, at, parts
        self.subject, self.device = subject, device
        self.done: list[tuple[Tensor, Tensor, Tensor]] = []  # features of images that could be read, these images, and those that could not

    def write(self, first: int, batch_size: int, step: Step) -> None:
        """The images from `first` on."""
        self.start, since = first, time.monotonic()
        batches, pixels = torch.arange(first, len(self.images)).split(batch_size), self.images.pixels
        fed = feed(pixels, batches, *plan(pixels, "auto", "auto", 1), self.device.type == "cuda")
        with eval_mode(self.subject.backbone), torch.no_grad():
            try:
                for index, batch in zip(batches, fed, strict=True):
                    self.done.append(self._compute(index, batch))
                    if time.monotonic() - since > SECONDS or sum(len(d[0]) for d in self.done) >= ROWS:
                        self._flush()
                        since = time.monotonic()
                    step(len(index))
                self._flush(last=True)
            finally:  # what was computed before an error or Ctrl-C is kept
                self._flush()

    def _compute(self, index: Tensor, batch: Fetched) -> tuple[Tensor, Tensor, Tensor]:
        s, pixels = self.subject, batch.pixels.to(self.device, non_blocking=True)
        x = normalised(pixels, self.images.image_size, s.mean, s.std, s.image_size)
        features, good = s.backbone(x.to(dtype_of(s.backbone))).float(), batch.shown == index
        return (features if good.all() else features[good.to(self.device)]), index[good], index[~good]

    def _flush(self, last: bool = False) -> None:
        """Write what was computed as a part. Files at its end that cannot be opened wait for the next part, unless this is the last one:
        their disk may have gone, and come back.
        """
        if not self.done:
            return
        features, kept, left = (torch.cat([d[i] for d in self.done]) for i in range(3))
        if not torch.isfinite(features).all():
            self.done = []
            raise UserError("Some images get features that are no finite numbers: these weights have diverged.")
        good = int(kept[-1]) + 1 if len(kept) else self.start
        behind = left[left >= good]
        closed = len(behind) > 0 and not _opens(self.images, int(behind[-1]))
        gone = closed and len(behind) >= IN_A_ROW
        end = good if closed and (gone or not last) else max([good, *(behind + 1).tolist()])
        if end > self.start:
            notes = [self.prefix + _left(self.images, i) for i in left[left < end].tolist()]
            self.parts.write(self._table(features.cpu(), kept), self.at + self.start, self.at + end, notes)
            self.start = end
        wait = left[left >= end]
        self.done = [(features[:0], kept[:0], wait)] if len(wait) and not gone else []
        if gone:
            raise UserError(
                f"None of {len(behind):,} files in a row could be opened (the last: {_left(self.images, int(behind[-1]))}): see that the "
                f"disk is there, and give the same command again, which goes on."
            )

    def _table(self, features: Tensor, rows: Tensor) -> pa.Table:
        """row int64, name, split, label and class (where there are any) and features, a list of float32 of fixed length."""
        images = self.images
        columns: dict[str, Any] = {
            "row": pa.array((rows + self.at).numpy()),
            "name": pa.array([_text(self.prefix) + _name(images, i) for i in rows.tolist()], pa.string()),
            "split": pa.array([self.name] * len(rows), pa.string()),
        }
        if images.labels is not None:
            labels = images.labels[rows].tolist()
            columns["label"] = pa.array([v if v >= 0 else None for v in labels], pa.int64())
            names = images.classes or []
            columns["class"] = pa.array([_text(names[v]) if 0 <= v < len(names) else None for v in labels], pa.string())
        columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(features.flatten().numpy()), features.shape[1])
        return pa.table(columns)


def _opens(images: Images, i: int) -> bool:
    """Whether the file of an image is there to be read, whatever is in it."""
    if isinstance(images.pixels, OnDemand):
        try:
            images.pixels.files.read(images.pixels.row(i))
        except OSError:
            return False
        except ValueError:  # of a damaged file
            pass
    return True


def _left(images: Images, i: int) -> str:
    """An image without features, and why."""
    reason = images.pixels.unreadable.get(images.pixels.row(i)) if isinstance(images.pixels, OnDemand) else None
    return f"{_name(images, i)}: {_text(reason or 'it cannot be read')}"


def _name(images: Images, i: int) -> str:
    """What image i is called: its path or row in the data set, as text."""
    if not isinstance(images.pixels, OnDemand):
        return f"image {i}"
    return _text(images.pixels.files.name(images.pixels.row(i)))


def _text(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _join(parts: Parts, result: Embedding) -> Embedding:
    """All parts as one file, which appears when it is whole; the parts then go."""
    done = parts.files()
    file = result.file
    for _, about in done:
        result.left += about["left"]
        result.rows += about["rows"]
    schema = _common([pq.read_schema(part) for part, _ in done])
    result.dim = schema.field("features").type.list_size
    if not result.rows:
        shutil.rmtree(parts.folder)
        raise UserError(f"None of the images could be read (the first: {result.left[0]}): check data=...")
    metadata = {"ssl_zoo": json.dumps({**parts.of, "rows": result.rows, "dim": result.dim})}
    if file.suffix == ".npy":
        result.index = index_of(file)
        (parts.folder / JOINING).touch()
        with whole(result.index) as f:
            _write_parquet(f, done, schema.remove(schema.get_field_index("features")).with_metadata(metadata))
        with whole(file) as f:
            shape = (result.rows, result.dim)
            np.lib.format.write_array_header_1_0(f, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for part, _ in done:
                f.write(np.ascontiguousarray(_features(pq.read_table(part, columns=["features"])), dtype="<f4").data)
    else:
        with whole(file) as f:
            _write_parquet(f, done, schema.with_metadata(metadata))
    shutil.rmtree(parts.folder)
    return result


def _common(schemas: list[pa.Schema]) -> pa.Schema:
    """That of all parts; one split may have labels that another lacks."""
    return pa.unify_schemas([s.remove_metadata() for s in schemas])


def _write_parquet(f: IO[bytes], done: list[tuple[Path, dict[str, Any]]], schema: pa.Schema) -> None:
    with pq.ParquetWriter(f, schema, use_dictionary=["split", "class"]) as writer:  # features are all different
        for part, _ in done:
            table = pq.read_table(part)
            full = {n: table[n] if n in table.column_names else pa.nulls(len(table), schema.field(n).type) for n in schema.names}
            writer.write_table(pa.table(full, schema=schema))


def _features(table: pa.Table) -> np.ndarray:
    """The column of features as an array float32 [n, D]."""
    column = table["features"]
    chunks = [c.flatten().to_numpy() for c in column.chunks]
    return np.concatenate([*chunks, np.empty(0, np.float32)]).reshape(len(column), column.type.list_size)


def read_embedding(file: Path) -> tuple[dict[str, Any], pa.Table, Tensor]:
    """What an embedding says of itself, its table without features, and the features [n, D] float32. Raises UserError for other files."""
    try:
        index = index_of(file) if file.suffix == ".npy" else file
        about = json.loads((pq.read_schema(index).metadata or {})[b"ssl_zoo"])
        table = pq.read_table(index)
        features = np.load(file, allow_pickle=False) if file.suffix == ".npy" else _features(table)
        if len(features) != len(table) or about["rows"] != len(table):
            raise ValueError("its rows and its index differ")
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as e:
        raise UserError(f"{file} is no embedding that ssl-zoo embed wrote ({str(e).splitlines()[0][:160]}): write it again.") from e
    names = [n for n in table.column_names if n != "features"]
    return about, table.select(names), torch.from_numpy(np.array(features, dtype=np.float32))


def rows_of(splits: dict[str, Images], rows: Tensor) -> Iterator[tuple[Images, int]]:
    """The split and the place in it of each of `rows`, which count through all splits."""
    for row in rows.tolist():
        for images in splits.values():
            if row < len(images):
                yield images, row
                break
            row -= len(images)

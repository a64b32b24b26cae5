"""The file of an embedding, and the parts that it is made of: parquet, or an array with an index beside it."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ssl_zoo.errors import UserError
from ssl_zoo.files import JOINING, index_of, parts_of, whole

VERSION = 1  # of the parts and of the file


@dataclass
class Embedding:
    """What was written: the file (an .npy has its index beside it), rows [n] x dim features, and the images left out, with the reason."""

    file: Path
    rows: int = 0
    dim: int = 0
    left: list[str] = field(default_factory=list)
    before: int = 0  # images that an earlier call had done
    index: Path | None = None


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


def join(parts: Parts, result: Embedding) -> Embedding:
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

"""Write images into shards: out/train and out/test, as tars or chunks of litdata, and what both share in out/meta.json."""

import glob
import io
import json
import logging
import os
import shutil
import tarfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from ssl_zoo.data.encoded import Encoded
from ssl_zoo.data.folder import SUFFIXES
from ssl_zoo.data.images import Images
from ssl_zoo.data.ondemand import OnDemand
from ssl_zoo.data.pixels import SMALL, UNREADABLE, to_rgb
from ssl_zoo.data.shards import VERSION
from ssl_zoo.errors import UserError, one_line

AT_ONCE = 256  # images that are read ahead of the one that is written
KINDS = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2"}  # suffixes that differ from Pillow's names
log = logging.getLogger("ssl_zoo")


@dataclass
class Packed:
    """What was written; left: names of images that were left out, with the reason."""

    images: int = 0
    shards: int = 0
    bytes: int = 0
    left: list[str] = field(default_factory=list)


class TarWriter:
    """Tars 00000.tar, ... of at most `largest` bytes (or one image). The same images give the same bytes."""

    def __init__(self, folder: Path, largest: int) -> None:
        self.folder, self.largest = folder, largest
        self.shards, self.images = 0, 0
        self.tar: tarfile.TarFile | None = None

    def add(self, data: bytes, kind: str, label: int | None, captions: list[str] | None) -> None:
        """An encoded image of a kind such as "jpg"; label -1 = unlabelled, None = there are no labels."""
        members = {kind: data}
        if label is not None and label >= 0:
            members["cls"] = str(label).encode()
        if captions:
            members["json"] = json.dumps({"captions": captions}).encode()
        needed = sum(tarfile.BLOCKSIZE + -(-len(m) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE for m in members.values())
        if self.tar is not None and self.tar.offset + needed + 2 * tarfile.BLOCKSIZE > self.largest:
            self.close()
        if self.tar is None:
            self.tar = tarfile.TarFile(self.folder / f"{self.shards:05d}.tar", "w", format=tarfile.USTAR_FORMAT)
            self.shards += 1
        for suffix, member in members.items():
            info = tarfile.TarInfo(f"{self.images:08d}.{suffix}")
            info.size = len(member)
            self.tar.addfile(info, io.BytesIO(member))
        self.tar.members = []  # type: ignore[attr-defined]  # or it keeps every one
        self.images += 1

    def close(self) -> None:
        if self.tar is not None:
            self.tar.close()
        self.tar = None


class ChunkWriter:
    """Chunks of litdata of about `largest` bytes; a sample is {"image": bytes, "label": int, "captions": JSON}, as far as there are any."""

    def __init__(self, folder: Path, largest: int) -> None:
        from litdata.streaming.writer import BinaryWriter
        from litdata.types import File

        self.folder, self.images, self.file = folder, 0, File
        self.writer = BinaryWriter(str(folder), chunk_bytes=largest)

    def add(self, data: bytes, kind: str, label: int | None, captions: list[str] | None) -> None:
        sample = {"image": self.file(bytes=data)}  # plain bytes would be stored in Arrow, of which litdata decodes 256 rows to give one
        if label is not None:
            sample["label"] = label
        if captions is not None:
            sample["captions"] = json.dumps(captions)
        with warnings.catch_warnings(action="ignore"):  # of an image larger than a chunk
            self.writer.add_item(self.images, sample)
        self.images += 1

    def close(self) -> None:
        self.writer.done()
        os.replace(self.folder / f"{self.writer.rank}.index.json", self.folder / "index.json")  # merge() would write the time into it


WRITERS: dict[str, type[TarWriter] | type[ChunkWriter]] = {"tar": TarWriter, "litdata": ChunkWriter}


class Pngs:
    """Decoded images, uint8 [N, 3, S, S], as PNG files."""

    blocks = None

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, row: int) -> str:
        return f"image {row}"

    def read(self, row: int) -> bytes:
        return _saved(Image.fromarray(self.pixels[row].permute(1, 2, 0).numpy()), "PNG")


def pack(splits: dict[str, Images], out: Path, form: str, largest: int, size: int | None, step: Callable[[], None]) -> Packed:
    """Write splits into `out`, which appears when it is whole, in shards of about `largest` bytes; `step` is called for every image.

    Encoded images are copied; with `size` they are written anew with that shorter side, as JPEG of quality 95, small ones as PNG. What has
    no image header, or with `size` cannot be decoded, is left out. UserError where a split would be empty or `out` cannot be written.
    """
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    for left in out.parent.glob(f".{glob.escape(out.name)}.part-*"):
        log.warning("%s is left of another conversion: delete it unless that is still running", left)
    packed, counts = Packed(), {}
    try:
        for split, images in splits.items():
            (part / split).mkdir(parents=True)
            writer, before = WRITERS[form](part / split, largest), packed.images
            for data, kind, label, captions in _samples(images, size, packed.left, step):
                writer.add(data, kind, label, captions)
                packed.images += 1
            counts[split] = packed.images - before
            if not counts[split]:
                raise UserError(f"None of the {len(images)} {split} images can be read{f' ({packed.left[0]})' if packed.left else ''}.")
            writer.close()
        meta = {"version": VERSION, "classes": splits["train"].classes, "counts": counts}
        (part / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        files = [f for f in part.rglob("*") if f.is_file()]
        for file in files:
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        packed.shards = sum(f.suffix in (".tar", ".bin") for f in files)
        packed.bytes = sum(f.stat().st_size for f in files)
        os.replace(part, out)
    except OSError as e:
        raise UserError(f"Shards cannot be written to {out} ({e.strerror or e}): free space or choose another folder with out=...") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for line in packed.left[:20]:
        log.warning("left out %s", one_line(line))
    return packed


def _samples(
    images: Images, size: int | None, left: list[str], step: Callable[[], None]
) -> Iterator[tuple[bytes, str, int | None, list[str] | None]]:
    """(encoded image, kind, label, captions) of all that can be read; the others are added to `left`."""
    pixels = images.pixels
    files: Encoded = pixels.files if isinstance(pixels, OnDemand) else Pngs(pixels)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(images), AT_ONCE):
            some = range(start, min(start + AT_ONCE, len(images)))
            rows = [pixels.row(i) if isinstance(pixels, OnDemand) else i for i in some]
            for i, row, found in zip(some, rows, pool.map(lambda row: _encoded(files, row, size), rows), strict=True):
                step()
                if isinstance(found, str):
                    left.append(f"{files.name(row)}: {found}")
                    continue
                label = None if images.labels is None else int(images.labels[i])
                yield *found, label, None if images.captions is None else images.captions[i]


def _encoded(files: Encoded, row: int, size: int | None) -> tuple[bytes, str] | str:
    """(encoded image, its kind), or the reason why there is none."""
    try:
        data = files.read(row)
        if size is not None:
            image = _resized(to_rgb(data), size)
            return (_saved(image, "PNG"), "png") if size <= SMALL else (_saved(image, "JPEG", quality=95), "jpg")
        form = Image.open(io.BytesIO(data)).format or ""
    except UNREADABLE as e:
        return next(iter(str(e).split("<_io")[0].strip().splitlines()), "") or type(e).__name__
    kind = KINDS.get(form, form.lower())
    return (data, kind) if f".{kind}" in SUFFIXES else f"no image file that is read ({form})"


def _resized(image: Image.Image, size: int) -> Image.Image:
    """With a shorter side of `size` px."""
    width, height = (round(s * size / min(image.size)) for s in image.size)
    return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BICUBIC)


def _saved(image: Image.Image, form: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()

"""Encoded files to one uint8 array, decoded once and cached under the hash of their content."""

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from ssl_zoo.data.encoded import Encoded
from ssl_zoo.errors import UserError

log = logging.getLogger("ssl_zoo")
VERSION = "2"  # part of the hash: raise it when decoding changes
SMALL = 128  # images up to this size are kept as they are
ImageFile.LOAD_TRUNCATED_IMAGES = False


def cache_dir(path: str | None = None) -> Path:
    """Where decoded images are kept: `path`, else $SSL_ZOO_CACHE, else ~/.cache/ssl_zoo."""
    return Path(path or os.environ.get("SSL_ZOO_CACHE") or Path.home() / ".cache" / "ssl_zoo").expanduser()


def to_rgb(data: bytes) -> Image.Image:
    """The first frame of an encoded image, upright, 8-bit RGB; transparency is laid on white, 16 bits are scaled."""
    image: Image.Image = Image.open(io.BytesIO(data))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0)
        high = values.max()
        wide = image.mode.startswith("I;16") or high > 255  # by the mode where it tells: a dark 16-bit image is dark
        top = 65535.0 if wide else 1.0 if image.mode == "F" and high <= 1 else 255.0
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def fit(image: Image.Image, canvas: int) -> np.ndarray:
    """Resize the shorter side to `canvas` (bicubic) and crop the centre: uint8 [3, canvas, canvas]."""
    if image.size != (canvas, canvas):
        image = ImageOps.fit(image, (canvas, canvas), method=Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def sizes(files: Encoded) -> tuple[int, int]:
    """(size of a view, canvas) that suit these files: their own shorter side up to 128 px, else 224 cut from 256."""
    found = []
    for row in range(0, len(files), max(1, len(files) // 64)):
        try:
            found.append(min(Image.open(io.BytesIO(files.read(row))).size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    if not found:
        return 224, 256
    typical = sorted(found)[len(found) // 2]
    return (typical, typical) if typical <= SMALL else (224, 256)


def canvas_for(image_size: int) -> int:
    """Small views use the whole image; larger ones are cut from a canvas an eighth larger, as in Resize 256, crop 224."""
    return image_size if image_size <= SMALL else round(image_size * 8 / 7)


def decode(files: Encoded, image_size: int | None, cache: Path) -> tuple[Tensor, list[int], list[str], int]:
    """Decode files, or find them decoded. Returns (pixels uint8 [n, 3, S, S], rows that decoded [n], skipped, view size).

    Pixels are memory-mapped from `cache`, written whole or not at all; two processes may decode at once.
    """
    view, canvas = sizes(files) if image_size is None else (image_size, canvas_for(image_size))
    folder = cache / f"images-{_fingerprint(files, canvas)}"
    if not _complete(folder):
        _fill(folder, files, canvas)
    meta = json.loads((folder / "meta.json").read_text())
    skipped = [f"{files.name(i)}: {reason}" for i, reason in meta["skipped"]]  # the same files may have other names by now
    for line in skipped[:20]:
        log.warning("skipped %s", line)
    if skipped:
        log.warning("%d of %d files could not be read and were skipped", len(skipped), len(files))
    if not meta["kept"]:
        first = f" (the first: {skipped[0]})" if skipped else ""
        raise UserError(f"None of the {len(files)} files could be read as an image{first}: check dataset.path.")
    pixels = np.memmap(folder / "pixels.u8", dtype=np.uint8, mode="c", shape=(len(meta["kept"]), 3, canvas, canvas))
    return torch.from_numpy(pixels), meta["kept"], skipped, view


def _fingerprint(files: Encoded, canvas: int) -> str:
    digest = hashlib.blake2b(f"{VERSION} {canvas} {len(files)}".encode(), digest_size=12)
    with ThreadPoolExecutor() as pool:
        for part in pool.map(lambda row: _hash_of(files, row), range(len(files))):
            digest.update(part)
    return digest.hexdigest()


def _hash_of(files: Encoded, row: int) -> bytes:
    try:
        return hashlib.blake2b(files.read(row), digest_size=16).digest()
    except (OSError, ValueError):  # a damaged parquet row group is a ValueError
        return b"unreadable"


def _complete(folder: Path) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        return (folder / "pixels.u8").stat().st_size == meta["bytes"]
    except (OSError, ValueError, KeyError):
        return False


def _decode_one(files: Encoded, row: int, canvas: int) -> np.ndarray | str:
    try:
        data = files.read(row)
        return fit(to_rgb(data), canvas) if data else "empty file"
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as e:
        return next(iter(str(e).split("<_io")[0].strip().splitlines()), "") or type(e).__name__


def _fill(folder: Path, files: Encoded, canvas: int) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    except OSError as e:
        raise UserError(
            f"Decoded images cannot be cached in {folder.parent} ({e.strerror}): set data.cache to a folder you can write."
        ) from e
    kept, skipped = [], []
    try:
        with ThreadPoolExecutor() as pool, open(part / "pixels.u8", "wb") as out:
            for start in range(0, len(files), 1024):  # in slices, so that decoded images do not pile up in memory
                some = range(start, min(start + 1024, len(files)))
                for i, result in zip(some, pool.map(lambda i: _decode_one(files, i, canvas), some), strict=True):
                    if isinstance(result, str):
                        skipped.append((i, result))
                    else:
                        kept.append(i)
                        out.write(result.tobytes())
            out.flush()
            os.fsync(out.fileno())
        size = len(kept) * 3 * canvas * canvas
        (part / "meta.json").write_text(json.dumps({"kept": kept, "skipped": skipped, "bytes": size}))
        if folder.exists() and not _complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    except OSError as e:
        if not _complete(folder):  # otherwise another process was first: use its files
            raise UserError(f"Decoded images cannot be written to {folder} ({e.strerror}): free space or set data.cache.") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)

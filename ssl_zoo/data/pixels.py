"""One encoded image to pixels."""

import io
import struct

import numpy as np
from PIL import Image, ImageFile, ImageOps

from ssl_zoo.data.encoded import Encoded, sample

VERSION = "3"  # part of the hash: raise it when decoding changes
SMALL = 128  # images up to this size are kept as they are
UNREADABLE = (  # what Pillow's plugins raise for damaged files
    *(OSError, ValueError, SyntaxError, MemoryError, RuntimeError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError),
    struct.error,
    Image.DecompressionBombError,
)
ImageFile.LOAD_TRUNCATED_IMAGES = False
Image.init()
# Pillow knows many more kinds, told by the first bytes whatever a file is called; EPS would be handed to Ghostscript, a program
KINDS: list[str] = [
    k
    for k in ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA", "QOI")
    if k in Image.OPEN
]


def opened(data: bytes) -> Image.Image:
    """An encoded image of a kind that is read, not yet decoded."""
    return Image.open(io.BytesIO(data), formats=KINDS)


def to_rgb(data: bytes, canvas: int | None = None) -> Image.Image:
    """The first frame of an encoded image, upright, 8-bit RGB; transparency is laid on white, 16 bits are scaled. A JPEG may come at a
    half, a quarter or an eighth of its size where its shorter side stays at least twice `canvas`.
    """
    image = opened(data)
    if canvas:
        image.draft(None, (2 * canvas, 2 * canvas))  # type: ignore[arg-type]
    return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """An image that was opened, upright, 8-bit RGB, as for `to_rgb`; ValueError where it has no pixels."""
    if not all(image.size):
        raise ValueError("it has no pixels")
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


def shorter_side(files: Encoded) -> int | None:
    """The median over a sample, in pixels; None where none can be read."""
    found = []
    for row in sample(len(files), files.blocks, 64).tolist():
        try:
            found.append(min(opened(files.read(row)).size))
        except UNREADABLE:
            continue
    return sorted(found)[len(found) // 2] if found else None


def sizes(files: Encoded) -> tuple[int, int]:
    """(size of a view, canvas) that suit these files: their own shorter side up to 128 px, else 224 cut from 256."""
    typical = shorter_side(files)
    return (typical, typical) if typical and typical <= SMALL else (224, 256)


def canvas_for(image_size: int) -> int:
    """Small views use the whole image; larger ones are cut from a canvas of 8/7 their size, as in Resize 256, crop 224."""
    return image_size if image_size <= SMALL else round(image_size * 8 / 7)


def decode_row(files: Encoded, row: int, canvas: int) -> np.ndarray | str:
    """The image of a row, uint8 [3, canvas, canvas], or the reason why there is none."""
    try:
        data = files.read(row)
        return fit(to_rgb(data, canvas), canvas) if data else "empty file"
    except UNREADABLE as e:
        return next(iter(str(e).split("<_io")[0].strip().splitlines()), "") or type(e).__name__

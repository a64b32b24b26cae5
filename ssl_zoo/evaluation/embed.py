"""Features of any number of images, written in parts that a later call goes on from, then as one file."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from ssl_zoo.data.feed import feed, plan
from ssl_zoo.data.images import Images
from ssl_zoo.data.ondemand import IN_A_ROW, Fetched, OnDemand
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.embedded import VERSION, Embedding, Parts, join
from ssl_zoo.evaluation.feature_cache import data_hash
from ssl_zoo.evaluation.features import Subject, dtype_of, eval_mode, normalised

SECONDS = 10.0  # after which what was computed is written as a part
ROWS = 1 << 16  # or so many images, which wait on the device
Step = Callable[[int], None]


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
    return join(parts, result)


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


def rows_of(splits: dict[str, Images], rows: Tensor) -> Iterator[tuple[Images, int]]:
    """The split and the place in it of each of `rows`, which count through all splits."""
    for row in rows.tolist():
        for images in splits.values():
            if row < len(images):
                yield images, row
                break
            row -= len(images)

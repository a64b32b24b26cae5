"""Arrays of decoded images on disk, each under the hash of the encoded content: made once, by one process, whole or not at all."""

import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: two processes may then decode the same
    fcntl = None  # type: ignore[assignment]

from ssl_zoo.data.encoded import Encoded
from ssl_zoo.data.pixels import VERSION, decode_row
from ssl_zoo.errors import UserError

log = logging.getLogger("ssl_zoo")
Stamp = Callable[[], str | None]
TICK = 2_000_000_000  # ns; the coarsest clock of a file system


def stamp(paths: Iterable[str | Path], part: str = "") -> str | None:
    """A hash of the names, sizes and times of files, without reading them, and of the `part` of them that is meant. None where one has
    just changed: its next change might leave the same times.
    """
    digest, newest, now = hashlib.blake2b(part.encode(), digest_size=12), 0, time.time_ns()
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            digest.update(os.fsencode(path) + b"\0\n")
            continue
        newest = max(newest, found.st_mtime_ns, found.st_ctime_ns)
        digest.update(os.fsencode(path) + f"\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\n".encode())
    return digest.hexdigest() if newest < now - TICK else None


class Cache:
    """The decoded array of `files` at `canvas` px in the folder `root`. stamp: gives a `stamp` of the files; where it was met before,
    their content is not hashed again.
    """

    def __init__(self, root: Path, files: Encoded, canvas: int, stamp: Stamp | None = None) -> None:
        self.root, self.files, self.canvas, self.stamp = root, files, canvas, stamp

    @functools.cached_property
    def listing(self) -> Path | None:
        """Where the hash of the content is kept for the stamp."""
        found = self.stamp() if self.stamp else None
        return self.root / f"files-{len(self.files)}-{found}" if found else None

    def has(self) -> bool:
        """Whether the stamp tells that the array is there; reads no image, and no times where so many files were never decoded."""
        content = self._listed() if any(self.root.glob(f"files-{len(self.files)}-*")) else None
        return content is not None and _meta(self._folder(content), len(self.files)) is not None

    def get(self) -> tuple[Path, dict[str, Any]]:
        """The file of pixels and {"kept": rows that decoded, "skipped": [row, reason]}; decoded now where they are not there."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            folder = self._folder(self._content())
            with locked(folder):
                meta = _meta(folder, len(self.files)) or self._fill(folder)
        except OSError as e:
            raise UserError(
                f"Decoded images cannot be cached in {self.root} ({e.strerror}): free space, set data.cache to a folder you can write, or "
                f"data.decoded=false."
            ) from e
        return folder / "pixels.u8", meta

    def _folder(self, content: str) -> Path:
        key = f"{VERSION} {self.canvas} {content}".encode()
        return self.root / f"images-{hashlib.blake2b(key, digest_size=12).hexdigest()}"

    def _listed(self) -> str | None:
        try:
            return self.listing.read_text() if self.listing else None
        except OSError:
            return None

    def _content(self) -> str:
        """The hash of the bytes of all files."""
        if self.listing is None:
            return self._hash()
        with locked(self.listing):
            content = self._listed() or self._hash()
            part = self.listing.with_suffix(f".part-{os.getpid()}")
            part.write_text(content)
            part.replace(self.listing)
        return content

    def _hash(self) -> str:
        digest = hashlib.blake2b(f"{len(self.files)}".encode(), digest_size=16)
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self.files), 4096):  # in slices, so that futures do not pile up in memory
                for part in pool.map(self._hash_of, range(start, min(start + 4096, len(self.files)))):
                    digest.update(part)
        return digest.hexdigest()

    def _hash_of(self, row: int) -> bytes:
        try:
            return hashlib.blake2b(self.files.read(row), digest_size=16).digest()
        except (OSError, ValueError):  # a damaged parquet row group is a ValueError
            return b"unreadable"

    def _fill(self, folder: Path) -> dict[str, Any]:
        """Decode into `folder`, whose lock is held."""
        _remove_leftovers(folder)
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=self.root))
        kept, skipped = [], []
        try:
            with ThreadPoolExecutor() as pool, open(part / "pixels.u8", "wb") as out:
                for start in range(0, len(self.files), 1024):  # in slices, so that decoded images do not pile up in memory
                    some = range(start, min(start + 1024, len(self.files)))
                    for row, result in zip(some, pool.map(lambda row: decode_row(self.files, row, self.canvas), some), strict=True):
                        if isinstance(result, str):
                            skipped.append((row, result))
                        else:
                            kept.append(row)
                            out.write(result.tobytes())
                out.flush()
                os.fsync(out.fileno())
            meta = {"kept": kept, "skipped": skipped, "bytes": len(kept) * 3 * self.canvas**2}
            (part / "meta.json").write_text(json.dumps(meta))
            shutil.rmtree(folder, ignore_errors=True)  # one that is damaged
            try:
                os.replace(part, folder)
            except OSError:
                if not _meta(folder, len(self.files)):  # otherwise another process was first, where there are no locks: use its files
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return meta


def _meta(folder: Path, count: int) -> dict[str, Any] | None:
    """What is known about a whole array of `count` files; None where it is absent or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        rows = [*meta["kept"], *(row for row, reason in meta["skipped"] if isinstance(reason, str))]
        whole = set(map(type, rows)) <= {int} and sorted(rows) == list(range(count)) and meta["kept"] == sorted(meta["kept"])
        return meta if whole and (folder / "pixels.u8").stat().st_size == meta["bytes"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target` while making it; others wait. The system takes the lock from a process that is killed."""
    file = _lock_of(target)
    with open(file, "wb") as handle:
        if fcntl:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("waiting for another process, which reads or decodes the same images")
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError:  # a disk without locks: two processes may then decode the same
                pass
        yield
        file.unlink(missing_ok=True)  # made: whoever still waits for this lock will find it so


def _lock_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.lock")


def _remove_leftovers(folder: Path) -> None:
    """Remove parts whose maker is gone: those of `folder`, whose lock is held, and those whose lock is free."""
    for part in folder.parent.glob("images-*.part-*"):
        maker = folder.with_name(part.name.partition(".part-")[0])
        if maker == folder or _is_free(_lock_of(maker)):
            shutil.rmtree(part, ignore_errors=True)


def _is_free(lock: Path) -> bool:
    if fcntl is None:
        return False
    try:
        with open(lock, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True

"""Files that are whole or not there at all, whenever the power fails or the disk is full."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # no right or no room to write
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK, errno.ENOSYS)


@contextmanager
def whole(file: Path, previous: Path | None = None, sync: bool = True) -> Iterator[IO[bytes]]:
    """Write into what takes the place of `file` once the block has ended and the disk has it; what was there becomes `previous`.

    At every instant one of the two names is a whole file. An error leaves both as they were and nothing beside them; where the system
    refused to write, it carries the name of `file`. sync=False does not wait for the disk.
    """
    part = _part(file)
    try:
        with open(part, "wb") as f:
            yield f
            f.flush()
            if sync:
                os.fsync(f.fileno())
        if previous is not None and file.exists() and not _linked(file, previous):
            os.replace(file, previous)
        os.replace(part, file)
        if sync:
            _sync_folder(file.parent)
    except BaseException as e:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if (refused := disk_error(e)) is not None:
            refused.filename = str(file)
        raise


def locked(file: Path) -> IO[bytes] | None:
    """Hold the system's lock of a file until what is returned is closed, or this process ends in whatever way; None where another process
    holds it. A disk without locks holds nothing.
    """
    held = open(file, "ab")  # noqa: SIM115 -- held
    try:
        if fcntl is not None:
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in (errno.EACCES, errno.EAGAIN):
            held.close()
            return None
    return held


JOINING = "joining"  # a file among the parts: an index that is there already is of these parts


def parts_of(file: Path) -> Path:
    """The folder where the parts of a file lie that is written over a long time, until it is whole."""
    return file.with_name(f"{file.name}.parts")


def index_of(file: Path) -> Path:
    """What tells the rows of an array: the file beside `file`, an .npy."""
    return file.with_suffix(".index.parquet")


def also(file: Path, name: Path) -> None:
    """Let `name` hold what `file` holds: a second link, or a copy on a disk that has no links."""
    if not _linked(file, name):
        with open(file, "rb") as source, whole(name) as f:
            shutil.copyfileobj(source, f)


def disk_error(error: BaseException | None) -> OSError | None:
    """What the system said when a file could not be written, also where it is the cause of another error; None for other errors."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _part(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")


def _linked(file: Path, name: Path) -> bool:
    """Make `name` a link to `file`, in place of what it was; False where the disk has no links."""
    part = _part(name)
    part.unlink(missing_ok=True)
    try:
        os.link(file, part)
    except OSError as e:
        if e.errno not in NO_LINKS:
            raise
        return False
    os.replace(part, name)
    part.unlink(missing_ok=True)  # which stays where both were the same file already
    return True


def _sync_folder(folder: Path) -> None:
    """A renamed file is only sure to be there when its folder is on the disk as well."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as e:
        if e.errno != errno.EINVAL:  # of a network disk that does not know of it
            raise
    finally:
        os.close(handle)

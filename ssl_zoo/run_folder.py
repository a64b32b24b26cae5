"""The folder of a run: a new one, the same for all ranks, and which of its checkpoints can be read."""

import logging
import os
import time
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from ssl_zoo.errors import UserError
from ssl_zoo.files import locked
from ssl_zoo.launch import LOCK, launcher, rank, refuse_taken

TOLD = "SSL_ZOO_RUN"  # the folder that rank 0 chose, for the processes that it starts


def run_folder(config: DictConfig, name: str) -> Path:
    """A new folder for this run; one that holds a run is never written over. Ranks above 0 only learn the name: they write nothing."""
    if rank_zero_only.rank:
        return _told(None) or Path(config.run or Path(config.out) / name / time.strftime("%Y%m%d-%H%M%S"))
    run = Path(config.run or Path(config.out) / name / time.strftime("%Y%m%d-%H%M%S"))
    if not config.run:
        base, n = run, 1
        while run.exists():
            run, n = base.with_name(f"{base.name}-{n}"), n + 1
    refuse_taken(run, config.get("resume"))
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The run folder {run} cannot be made ({e.strerror}): choose another with run=... or out=...") from e
    _told(run)
    return run


def _told(run: Path | None) -> Path | None:
    """Tell the other ranks the folder of rank 0, or learn it: from the environment, or from the store that torchrun keeps."""
    if run is None and TOLD in os.environ and launcher() is None:
        return Path(os.environ[TOLD])
    if run is not None:
        os.environ[TOLD] = str(run)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or int(os.environ["WORLD_SIZE"]) < 2:
        return run
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, False, wait_for_workers=False)
    key = f"ssl_zoo/run/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
    if run is not None:
        store.set(key, str(run))
    return Path(store.get(key).decode())


HELD: dict[Path, IO[bytes]] = {}  # the locks of this process


def claim(run: Path) -> None:
    """Keep other processes from training into `run` until this one ends, in whatever way. The lock is the system's, not the file."""
    if rank_zero_only.rank:
        return
    if (lock := locked(run / LOCK)) is None:
        raise UserError(f"run={run} is being trained by another process: let it finish, or stop it first.")
    HELD[run] = lock


def first_speaks() -> None:
    """What all ranks would say alike is said by the first; to be called before anything is said."""
    rank_zero_only.rank = rank()
    if rank():
        logging.getLogger("ssl_zoo").setLevel(logging.ERROR)


def say(line: str) -> None:
    """Print on the first rank."""
    if not rank_zero_only.rank:
        print(line)


def readable_checkpoint(run: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a run that can be read, last.ckpt or the one before it, and where it is in the training: {"global_step",
    "callbacks"}. Nothing of the run is changed.
    """
    last, previous = (run / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    reason = "it is missing"
    if last.is_file():
        try:
            return last, _read(last)
        except Exception as e:  # torch raises exceptions of many kinds for a damaged file
            reason = str(e).splitlines()[0][:160] if str(e) else type(e).__name__
    try:
        found = _read(previous)
    except Exception as e:
        raise UserError(f"{last} cannot be read ({reason}): restore it from a copy or start a new run.") from e
    say(f"{last} cannot be read ({reason}): going on from the checkpoint before it, of step {found['global_step']}.")
    return previous, found


def _read(file: Path) -> dict[str, Any]:
    """A checkpoint, mapped; every byte of it is held against its checksums, which torch does not do."""
    with zipfile.ZipFile(file) as archive:
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"{bad} is damaged")
    found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    lacking = [k for k in ("state_dict", "loops", "optimizer_states", "callbacks", "global_step") if k not in found]
    place = found.get("callbacks", {}).get("Place", {})
    if lacking or not isinstance(found["global_step"], int) or not all(isinstance(v, int) for v in place.values()):
        raise ValueError(f"it is no checkpoint of a run: {lacking[0] if lacking else 'its place in the data'} is missing")
    return {"global_step": found["global_step"], "callbacks": {"Place": place}}  # and not what is mapped


def of_another(error: BaseException, file: Path | None) -> UserError | None:
    """What to say of a checkpoint that does not fit the config beside it; None for other errors."""
    if file is None or "Error(s) in loading state_dict" not in str(error):
        return None
    return UserError(f"{file} is of another config than {file.parent.parent / 'config.yaml'}: restore the one that belongs to it.")

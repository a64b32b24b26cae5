"""The folder of a run: a new one, and whether its checkpoint can be read."""

import time
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from ssl_zoo.errors import UserError


def run_folder(config: DictConfig, name: str) -> Path:
    """A new folder for this run; one that holds a run is never written over. Ranks above 0 only learn the name: they write nothing."""
    run = Path(config.run or Path(config.out) / name / time.strftime("%Y%m%d-%H%M%S"))
    if not config.run:
        base, n = run, 1
        while run.exists():
            run, n = base.with_name(f"{base.name}-{n}"), n + 1
    if rank_zero_only.rank:
        return run
    if (run / "config.yaml").exists():
        raise UserError(f"run={run} already holds a run: choose another folder, or continue it with ssl-zoo resume run={run}.")
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The run folder {run} cannot be made ({e.strerror}): choose another with run=... or out=...") from e
    return run


def check_checkpoint(file: Path) -> None:
    """Refuse a checkpoint that cannot be read before anything of the run is changed."""
    try:
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as e:  # torch raises exceptions of many kinds for a damaged file
        reason = str(e).splitlines()[0][:160]
        raise UserError(f"{file} cannot be read ({reason}): restore it from a copy or start a new run.") from e

"""The loggers that conf/logger names; metrics.csv is always written."""

import os
import shlex
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from ssl_zoo.callbacks.csv_log import CSVLog
from ssl_zoo.errors import UserError


def build_loggers(config: dict[str, Any], run: Path) -> list[Logger]:
    """metrics.csv, and TensorBoard or Weights & Biases where config["name"] asks for it."""
    loggers: list[Logger] = [CSVLog(run)]
    if config["name"] == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        try:
            loggers.append(TensorBoardLogger(run, name="", version="tensorboard"))
        except ModuleNotFoundError as e:
            raise UserError("logger=tensorboard needs the package tensorboard: pip install 'ssl-zoo[tensorboard]'.") from e
    if config["name"] == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        offline = not os.environ.get("WANDB_API_KEY") if config["offline"] == "auto" else bool(config["offline"])
        os.environ.setdefault("WANDB_SILENT", "true")
        name = f"{run.parent.name}/{run.name}"
        try:
            loggers.append(WandbLogger(project=config["project"], save_dir=str(run), offline=offline, name=name, id=wandb_id(run)))
        except ModuleNotFoundError as e:
            raise UserError("logger=wandb needs the package wandb: pip install 'ssl-zoo[wandb]'.") from e
    return loggers


def wandb_id(run: Path) -> str | None:
    """The id that wandb knows a run by, so that a resumed one stays the same there; None before its first start."""
    started = [f.name for pattern in ("run-*-*", "offline-run-*-*") for f in (run / "wandb").glob(pattern)]
    return max(started, key=lambda name: name.removeprefix("offline-")).rpartition("-")[2] if started else None


def sync_command(run: Path) -> str | None:
    """What uploads an offline wandb run with all its starts, or None."""
    offline = sorted((run / "wandb").glob("offline-run-*"))
    return shlex.join(["wandb", "sync", *map(str, offline)]) if offline else None

"""What a command of `ssl-zoo eval` asks for, checked before torch is imported."""

import re
from pathlib import Path

from omegaconf import DictConfig

from ssl_zoo.config import compose
from ssl_zoo.errors import UserError
from ssl_zoo.saved import load_run
from ssl_zoo.shard import words_for


def plan(words: list[str], config_dirs: list[str]) -> tuple[DictConfig, DictConfig | None, dict[str, DictConfig]]:
    """The config of the command, that of the run it judges (None for weights from elsewhere), and the config of each data set by name:
    "" is the run's own.
    """
    config = compose("eval", words, config_dirs)
    if (config.run is None) == (config.weights is None):
        raise UserError("eval judges a run or weights from elsewhere: give run=runs/... or weights=... (a file, timm/<model>, ...).")
    if "dataset" in config and config.transfer:
        raise UserError("dataset=... and transfer=[...] exclude each other: put all data sets into transfer.")
    trained = _trained(config) if config.run is not None else None
    if config.weights is not None:
        if not str(config.weights).startswith(("timm/", "torchvision/")) and not Path(config.weights).expanduser().is_file():
            raise UserError(f"weights={config.weights} is neither a file nor a name like timm/resnet50 or torchvision/resnet50.")
        if "dataset" not in config and not config.transfer:
            raise UserError("weights from elsewhere need a data set to be judged on: add dataset=... or transfer=[...].")
    if config.transfer:
        others = [w for w in words if not w.startswith("transfer=")]
        wanted: dict[str, DictConfig] = {}
        for data in config.transfer:
            asked = compose("eval", [*others, *words_for(data, config_dirs)], config_dirs)
            name = dataset_name(asked)
            wanted[name if name not in wanted else f"{name}-{len(wanted) + 1}"] = asked
        return config, trained, wanted
    return config, trained, {dataset_name(config): config}


def _trained(config: DictConfig) -> DictConfig:
    trained, run = load_run(config.run, trust=config.trust), Path(config.run)
    if not (run / "backbone.safetensors").is_file():
        raise UserError(f"{run} has no backbone.safetensors yet: let the run finish, or continue it with ssl-zoo resume run={run}.")
    if config.net != "auto" and not (run / "checkpoints" / "last.ckpt").is_file():
        raise UserError(f"net={config.net} is read from {run}/checkpoints/last.ckpt, which is missing: use net=auto.")
    return trained


def dataset_name(config: DictConfig) -> str:
    """What a data set is called: its path's last part, else its own name; "" where the config has none."""
    if "dataset" not in config:
        return ""
    path = config.dataset.get("path")
    return Path(path).name if path and "name" not in config.dataset else str(config.dataset.get("name", "shapes")).lower()


def judged_folder(config: DictConfig) -> Path:
    """Where eval/ and report.html are written."""
    if config.out:
        return Path(config.out).expanduser()
    return Path(config.run) if config.run else Path("judged") / re.sub(r"[^\w.-]+", "_", config.weights)

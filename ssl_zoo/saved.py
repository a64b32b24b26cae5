"""config.yaml of a run folder: written whole or not at all, read back as something that may have been tampered with."""

import math
import shlex
from collections.abc import Iterable
from pathlib import Path

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssl_zoo.checks import check_paths_and_views, check_values, unknown
from ssl_zoo.command_line import config_dirs, split_options
from ssl_zoo.config import all_keys, check_complete, compose, is_known, plain, run_name
from ssl_zoo.errors import UserError
from ssl_zoo.files import whole
from ssl_zoo.foreign_yaml import checked
from ssl_zoo.origins import refuse_resolvers
from ssl_zoo.overrides import parse

RESUMABLE = ("epochs", "trust", "data.resident", "data.workers", "data.worker_kind", "data.cache", "evaluation.", "logger.", "trainer.",
             "checkpoint.", "dataset.path", "dataset.cache", "guard.", "preemption.", "batch_size", "chunk_size")  # fmt: skip
GROUPS = ("data", "trainer", "evaluation", "checkpoint", "guard", "preemption", "optimizer", "augment")
PLACES = ("dataset.path", "dataset.cache", "data.cache")
FIXED = ("trainer.max_epochs",)
LATER = ("checkpoint", "guard", "preemption", "resume", "chunk_size")  # keys that runs of older versions lack


def save_config(config: DictConfig, run: Path, commands: Iterable[str]) -> None:
    """Write `config` and, as comments above it, the commands that made this run."""
    config = config.copy()
    config.resume = None  # how it was started, not what it is
    head = "".join(f"# {' '.join(line.split())}\n" for line in commands)
    with whole(run / "config.yaml") as f:
        f.write((head + OmegaConf.to_yaml(config)).encode())


def commands_of(run: Path) -> list[str]:
    """The commands that made a run, oldest first."""
    lines = (run / "config.yaml").read_text(encoding="utf-8").splitlines()
    return [line[2:] for line in lines if line.startswith("# ")]


def name_of(commands: list[str]) -> str | None:
    """<method>_<backbone>_<dataset> of the command that started a run; None where it does not compose any more."""
    try:
        options, words = split_options(shlex.split(commands[0])[1:])
        return run_name([w for w in words if w != "pretrain"], config_dirs(options))
    except (UserError, ValueError, IndexError):
        return None


def load_run(run: str | Path, overrides: Iterable[str] = (), trust: Iterable[str] = ()) -> DictConfig:
    """The checked config that a run folder was trained with, under `overrides` of what a resumed run may change.

    A folder may come from anyone, so it cannot vouch for itself: packages are trusted by `trust` or an override alone.
    """
    file = Path(run) / "config.yaml"
    if not file.is_file():
        found = sorted(str(p.parent) for p in Path(run).rglob("config.yaml"))[:1] if Path(run).is_dir() else []
        hint = f"did you mean run={found[0]}?" if found else "give the folder that holds config.yaml."
        raise UserError(f"run={run} is not a run folder; {hint}")
    try:
        config = OmegaConf.create(checked(file.read_text(encoding="utf-8")))
        refuse_resolvers(OmegaConf.to_container(config, resolve=False))
        known = plain(config) if isinstance(config, DictConfig) else {}
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as e:  # a value or key of a strange kind is a ValueError
        raise UserError(f"{file} cannot be read ({' '.join(str(e).split())[:160]}): restore it from a copy or start a new run.") from e
    reference = compose("train", [])
    for key in LATER if isinstance(config, DictConfig) else ():
        known.setdefault(key, plain(reference)[key])
        config.setdefault(key, reference[key])
    lacking = _lacking(reference, known)
    if lacking or not isinstance(config, DictConfig):
        raise UserError(f"{file} lacks {lacking}, so it is not a whole config of ssl_zoo: restore it from a copy or start a new run.")
    for group in ("data", "trainer", "evaluation", "checkpoint", "guard", "preemption"):  # a run of an older version lacks what came later
        config[group] = OmegaConf.merge(reference[group], config[group])
    config.trust = list(trust)
    known = plain(config)
    images = _images_per_step(config)
    for o in parse(list(overrides)):
        key = o.key_or_group
        if key in ("logger", "logger.name"):  # its fields come with it
            config.logger = compose("train", [f"logger={o.value()}"]).logger
            known["logger"] = plain(config.logger)
            continue
        if key == "resume":
            raise UserError("resume=auto belongs to a command that trains: `ssl-zoo resume run=...` needs no more.")
        if isinstance(known.get(key), dict) and key.startswith(GROUPS):
            raise UserError(f"resume takes single keys, not the group {key}: write {key}.<key>=..., one for each.")
        if not is_known(known, key):
            raise unknown("key", key, all_keys(known), listed=False)
        if o.is_sweep_override() or o.is_delete():
            raise UserError(f"'{o.input_line}' does not work with resume: write {key}=value.")
        if key in FIXED or not key.startswith(RESUMABLE):
            hint = "use epochs=" if key == "trainer.max_epochs" else "start a new run for that"
            raise UserError(f"resume cannot change {key}, on which the training so far depends: {hint}.")
        refuse_resolvers(o.value(), key)
        if key == "dataset.path":
            check_paths_and_views({"dataset": {"path": o.value()}}, {"dataset": {"path": "???"}})
        absolute = key in PLACES and o.value() is not None
        OmegaConf.update(config, key, str(Path(str(o.value())).expanduser().resolve()) if absolute else o.value())
        if key == "epochs":
            config.trainer.max_epochs = o.value()
    check_values(plain(config), known)
    check_complete(config)
    if images and (now := _images_per_step(config)) and now != images:
        raise UserError(
            f"resume cannot change the {images} images per step to {now} (batch_size x devices x nodes x accumulation), on which the "
            f"training so far depends: change them together, or start a new run for that."
        )
    return config


def _images_per_step(config: DictConfig) -> int | None:
    """The global batch, where the config alone tells how many devices there are."""
    t = config.trainer
    devices = len(t.devices) if isinstance(t.devices, ListConfig) else t.devices
    kinds = [config.batch_size, devices, t.num_nodes, t.accumulate_grad_batches]
    return math.prod(kinds) if all(isinstance(k, int) and k > 0 for k in kinds) else None


def _lacking(reference: DictConfig, config: dict) -> str | None:
    """The first thing that every config has and this one has not."""
    for key, value in reference.items():
        if key not in config or isinstance(value, DictConfig) != isinstance(config[key], dict):
            return str(key)
    return next((f"{g}._target_" for g in ("method", "backbone", "dataset") if "_target_" not in config[g]), None)

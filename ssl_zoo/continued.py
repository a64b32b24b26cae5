"""Which run `resume=auto` goes on with, and what a resumed run does otherwise than before. Needs no torch."""

import json
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from ssl_zoo.config import plain
from ssl_zoo.errors import UserError
from ssl_zoo.fingerprint import changes, config_hash, leaves
from ssl_zoo.saved import load_run

CHECKPOINTS = ("last.ckpt", "previous.ckpt")


def has_checkpoint(run: Path) -> bool:
    return any((run / "checkpoints" / name).is_file() for name in CHECKPOINTS)


def run_to_continue(config: DictConfig, name: str) -> tuple[Path | None, bool]:
    """(the newest run of this very config that can go on, whether it has finished); an unfinished one comes before a finished one.

    Looked for under <out>/<name>, or run=... alone, which must not be of another config.
    """
    folders = [Path(config.run)] if config.run else list((Path(config.out) / name).glob("*/"))
    found: list[tuple[bool, float, Path]] = []
    for run in folders:
        if not (run / "config.yaml").is_file():
            continue
        saved = _load(run, config)
        if saved is None or config_hash(plain(saved)) != config_hash(plain(_decoded_as(config, saved))):
            if config.run:
                raise _other(run, saved, config)
            continue
        if has_checkpoint(run):
            done = _finished(run, config_hash(plain(saved)))
            newest = max((run / "checkpoints" / f).stat().st_mtime for f in CHECKPOINTS if (run / "checkpoints" / f).is_file())
            found.append((not done, newest, run))
    if not found:
        return None, False
    unfinished, _, run = max(found)
    if "decoded" in config.dataset:
        config.dataset.decoded = _decoded_as(config, _load(run, config)).dataset.decoded
    return run, not unfinished


def _load(run: Path, config: DictConfig) -> DictConfig | None:
    """The config of a run; None where it cannot be read, unless it is the one that was asked for."""
    try:
        return load_run(run, trust=config.trust)
    except UserError:
        if config.run:
            raise
        return None


def _decoded_as(config: DictConfig, saved: DictConfig | None) -> DictConfig:
    """`config` with what a run has decided for dataset.decoded=auto."""
    config = config.copy()
    if saved is not None and config.dataset.get("decoded") == "auto":
        config.dataset.decoded = saved.dataset.get("decoded", "auto")
    return config


def _other(run: Path, saved: DictConfig | None, config: DictConfig) -> UserError:
    """What differs between a run and the config that asks for it."""
    differing = changes(plain(saved), plain(_decoded_as(config, saved))) if saved is not None else {}
    what = "; ".join(f"{k}: {a} -> {b}" for k, (a, b) in list(differing.items())[:3])
    return UserError(f"run={run} was trained with another config ({what}), so resume=auto does not touch it: choose another folder.")


def _finished(run: Path, wanted: str) -> bool:
    try:
        return json.loads((run / "summary.json").read_text(encoding="utf-8"))["config_hash"] == wanted
    except (OSError, ValueError, KeyError, TypeError):
        return False


def changed(run: Path, config: DictConfig) -> Iterator[str]:
    """A line "key: old -> new" for everything that a resumed run does otherwise than its config.yaml says."""
    before, now = (dict(leaves(plain(c))) for c in (load_run(run, trust=config.trust), config))
    aside = ("run", "out", "resume", "trust", "trainer.max_epochs")
    for key in sorted(now):
        if key in before and before[key] != now[key] and key not in aside:
            yield f"{key}: {before[key]} -> {now[key]}"

"""What a summary says of a run before its numbers."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ssl_zoo.augment.early import Early
from ssl_zoo.build import Data
from ssl_zoo.callbacks.loggers import sync_command
from ssl_zoo.config import plain
from ssl_zoo.data.loader import Loader
from ssl_zoo.fingerprint import config_hash
from ssl_zoo.methods.base import Method


def facts_of(
    config: DictConfig, name: str, commands: list[str], run: Path, method: Method, data: Data, loader: Loader, skipped: list[str]
) -> dict[str, Any]:
    """Config, backbone, data and views of a finished run. skipped: files that could not be read, on all ranks."""
    engine = method.augment.full if isinstance(method.augment, Early) else method.augment
    return {
        "name": name,
        "command": "\n".join(commands),
        "seed": config.seed,
        "config_hash": config_hash(plain(config)),
        "stem": getattr(method.backbone, "stem_used", "unknown"),
        "image_size": data.train.image_size,
        "num_features": method.backbone.num_features,
        "parameters": sum(p.numel() for p in method.backbone.parameters()),
        "global_batch": method.global_batch,
        "augment": {"engine": type(engine).__name__, "compiled": bool(getattr(engine, "compile_for", None))},
        "data": {
            "train": len(data.train),
            "test": len(data.test),
            "held_out": bool(config.data.held_out),
            "classes": data.train.num_classes,
            "skipped": skipped[:100],
            "skipped_count": len(skipped),
            "resident": loader.resident,
            "source": loader.about(),
            **({"captions": {**asdict(data.captions), "cut": loader.tokens.cut}} if data.captions and loader.tokens else {}),
        },
        "run": str(run),
        "sync": sync_command(run),
    }

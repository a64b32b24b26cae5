"""`ssl-zoo export`: what can be said against it before torch is imported, and which format is written by what."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ssl_zoo.checks import unknown
from ssl_zoo.errors import UserError
from ssl_zoo.judging import knows_words
from ssl_zoo.saved import load_run

FORMATS = ("open_clip",)


def check_export(config: DictConfig) -> tuple[Path, DictConfig, Path]:
    """The run folder, its config, and the folder to write; UserError where there is nothing to export or no place for it."""
    if config.format not in FORMATS:
        raise unknown("format", str(config.format), FORMATS)
    if not config.run:
        raise UserError(f"export needs a run folder: ssl-zoo export run=runs/<name>/<time> format={config.format}.")
    run = Path(str(config.run)).expanduser()
    trained = load_run(run, trust=config.trust)
    knows_words(run, trained, f"export format={config.format}")
    out = Path(str(config.out)).expanduser() if config.out else run / str(config.format)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"out={out} is {'not empty' if out.is_dir() else 'a file'}: choose a new folder.")
    return run, trained, out


def export(config: DictConfig, run: Path, trained: DictConfig, out: Path) -> list[str]:
    """Write `run` into the folder `out`. Returns lines that say what was written."""
    writers: dict[str, Callable[[Path, DictConfig, Path], list[str]]] = {"open_clip": _open_clip}
    return writers[config.format](run, trained, out)


def _open_clip(run: Path, trained: DictConfig, out: Path) -> list[str]:
    from ssl_zoo.config import plain
    from ssl_zoo.open_clip_folder import as_open_clip, write
    from ssl_zoo.words import trained_towers

    backbone: dict[str, Any] = plain(trained)["backbone"]
    method, about = trained_towers(run, trained)
    found = as_open_clip(method, backbone, about)
    write(found, out, {k: v for k, v in about.items() if k != "backbone"})
    return [
        f"{out / 'open_clip_model.safetensors'}",
        f"{out / 'open_clip_config.json'}",
        f"image tower   {found.tower}",
        f"checked       embeddings differ by {found.difference:.1e} at most from those of the run",
        f'load          open_clip.create_model_and_transforms("local-dir:{out}"), open_clip.get_tokenizer("local-dir:{out}")',
    ]

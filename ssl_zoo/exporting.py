"""`ssl-zoo export`: what can be said against it before torch is imported, and which format is written by what."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ssl_zoo.checks import unknown
from ssl_zoo.errors import UserError
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
    if "text" not in trained.method:
        name = str(trained.method._target_).rpartition(".")[2]
        raise UserError(f"run={config.run} trained no words ({name}), which open_clip needs; its backbone.safetensors is its export.")
    if not (run / "towers.safetensors").is_file():
        raise UserError(f"run={config.run} has no towers.safetensors: let it finish first, with ssl-zoo resume run={config.run}.")
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
    from ssl_zoo.export import header
    from ssl_zoo.open_clip_folder import as_open_clip, write

    file = run / "towers.safetensors"
    about = header(file)
    if not {"mean", "std"} <= about.keys() or not isinstance(about.get("image_size"), int):
        raise UserError(f"{file} does not say how its images were prepared: it is damaged or not of this run, restore it from a copy.")
    backbone: dict[str, Any] = plain(trained)["backbone"]
    found = as_open_clip(_towers(file, trained, int(about["image_size"])), backbone, about)
    write(found, out, json.loads(json.dumps({k: v for k, v in about.items() if k != "backbone"})))
    return [
        f"{out / 'open_clip_model.safetensors'}",
        f"{out / 'open_clip_config.json'}",
        f"image tower   {found.tower}",
        f"checked       embeddings differ by {found.difference:.1e} at most from those of the run",
        f'load          open_clip.create_model_and_transforms("local-dir:{out}"), open_clip.get_tokenizer("local-dir:{out}")',
    ]


def _towers(file: Path, trained: DictConfig, image_size: int) -> Any:
    """The method of a finished run, with the weights of its towers, in evaluation mode."""
    from ssl_zoo.build import build
    from ssl_zoo.export import load_backbone

    if trained.backbone.get("pretrained"):
        trained.backbone.pretrained = False  # nothing is downloaded for weights that are replaced at once
    method = build(trained, "method", backbone=build(trained, "backbone", image_size=image_size))
    return load_backbone(method, file).eval()

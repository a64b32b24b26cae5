"""`ssl-zoo export`: what can be said against it before torch is imported, and a run in a format, loaded again and compared."""

import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ssl_zoo.checks import check_new_folder, unknown
from ssl_zoo.errors import UserError, one_line
from ssl_zoo.files import whole
from ssl_zoo.judging import knows_words
from ssl_zoo.saved import load_run

if TYPE_CHECKING:
    from ssl_zoo.formats import Net
    from ssl_zoo.loading import Pretrained

FORMATS = ("safetensors", "timm", "torchvision", "onnx", "torch_export", "huggingface", "open_clip")
MOST = 1e-5  # between features in float32 here and in the other library, as a share of the largest feature


def check_export(config: DictConfig) -> tuple[Path, DictConfig, Path]:
    """The run folder, its config, and the folder to write; UserError where there is nothing to export or no place for it."""
    if config.format not in FORMATS:
        raise unknown("format", str(config.format), FORMATS)
    if not config.run:
        raise UserError(f"export needs a run folder: ssl-zoo export run=runs/<name>/<time> format={config.format}.")
    run = Path(str(config.run)).expanduser()
    trained = load_run(run, trust=config.trust)
    if config.format == "open_clip":
        knows_words(run, trained, f"export format={config.format}")
    elif not (run / "backbone.safetensors").is_file():
        raise UserError(f"{run} has no backbone.safetensors yet: let the run finish, or continue it with ssl-zoo resume run={run}.")
    if config.format in ("timm", "torchvision") and trained.backbone.get("_target_") != "ssl_zoo.nn.backbones.create":
        own = str(trained.backbone.get("_target_")).rpartition(".")[2]
        raise UserError(f"{config.format} has no network like this run's backbone ({own}): use format=safetensors, huggingface, onnx or "
                        "torch_export.")  # fmt: skip
    if config.format == "huggingface" and not (run / "summary.json").is_file():
        raise UserError(f"{run} has no summary.json for the model card: let the run finish, or continue it with ssl-zoo resume run={run}.")
    if config.format == "onnx" and (lacking := [p for p in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(p) is None]):
        raise UserError(f"format=onnx needs the package {lacking[0]}: pip install 'ssl-zoo[onnx]'.")
    out = Path(str(config.out)).expanduser() if config.out else run / str(config.format)
    check_new_folder(out)
    if config.repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(config.repo)):
        raise UserError(f"repo={one_line(config.repo)[:80]} is no name of a repository: write owner/name, as in me/simclr-birds.")
    return run, trained, out


def export(config: DictConfig, run: Path, trained: DictConfig, out: Path) -> list[str]:
    """Write `run` into the folder `out`. Returns lines that say what was written, how to load it, and how far its features are off."""
    if config.format == "open_clip":
        return _open_clip(run, trained, out)
    from ssl_zoo import formats
    from ssl_zoo.data.pixels import canvas_for
    from ssl_zoo.loading import load

    form, net = str(config.format), load(run, trust=config.trust)
    about = {**net.about, "canvas": canvas_for(net.image_size), "num_features": net.num_features, "trust": list(config.trust)}
    repo = config.repo or "YOUR-NAME/" + re.sub(r"[^\w.-]+", "-", str(net.about.get("name") or "backbone"))
    with _folder(out) as part:
        written = formats.FORMATS[form](net.backbone, about, part)
        again = written.load or partial(load, trust=config.trust)
        apart = _differences(net, partial(again, part), run, form)
        manifest = _manifest(net, part, written.lines(str(out)), apart, form)
        if form == "huggingface":
            _card(run, trained, part, manifest | {"load": formats.from_hub(written, repo)}, config.license)
        with whole(part / "export.json") as f:
            f.write((json.dumps(manifest, indent=2) + "\n").encode())
    told = [f"{'written to':14}{out}: {', '.join(sorted(f.name for f in out.iterdir()))}"]
    for what, v in apart.items():
        told.append(f"{what:14}{v['images']}: features differ by {v['largest']:.1e} at most, the largest is {v['largest_feature']:.1e}")
    told += [f"{'load' if not i else '':14}{line}" for i, line in enumerate(manifest["load"])]
    if form == "huggingface":
        told.append(f"{'push':14}{shlex.join(['hf', 'upload', repo, str(out)])}")
        told += [] if config.license else [f"{'licence':14}none is stated in README.md: export again with license=..., or edit it"]
    return told


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when all in it is written and was tried; an error leaves nothing."""
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    with _writable(out):
        part.mkdir(parents=True)
    try:
        yield part
        with _writable(out):
            part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(f"The folder out={out} cannot be written ({e.strerror}): choose another.") from e


def _differences(net: "Pretrained", again: "Callable[[], Net]", run: Path, format: str) -> dict[str, dict[str, Any]]:
    """How far the features of what was written are off, on random images and on test images of the run. again: loads it."""
    import torch

    from ssl_zoo.evaluation.features import normalised
    from ssl_zoo.formats import difference, quiet

    size = net.image_size
    images = {"random images": torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))}
    if (pixels := _pictures(run, size)) is not None:
        images["test images"] = normalised(torch.from_numpy(pixels), size, net.mean, net.std)
    found = {}
    try:
        with quiet():
            theirs = again()
            apart = {what: difference(net.backbone, theirs, x) for what, x in images.items()}
    except UserError:
        raise
    except Exception as e:  # each library has its own kinds
        why = one_line(e)[:200]
        raise UserError(f"{format} has no network of this shape ({why}): export format=safetensors, timm or onnx instead.") from e
    for what, (largest, scale) in apart.items():
        if not largest <= MOST * scale:
            raise UserError(
                f"{format} computes other features than the run (they differ by {largest:.1e}, the largest is {scale:.1e}), so nothing was "
                f"written: export format=safetensors or timm instead."
            )
        found[what] = {"images": len(images[what]), "largest": largest, "largest_feature": scale}
    return found


def _pictures(run: Path, size: int) -> Any:
    """Test images of the run, uint8 [N, 3, size, size], which its figures show; None where there are none."""
    import zipfile
    import zlib

    import numpy as np

    file = run / "figures" / "data.npz"
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.getinfo("originals.npy").file_size > 64 * 3 * size**2 + 1024:  # a few are shown
                return None
        with np.load(file, allow_pickle=False) as data:
            found = data["originals"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        return None
    return found if found.dtype == np.uint8 and found.shape[1:] == (3, size, size) and len(found) else None


def _manifest(net: "Pretrained", part: Path, lines: list[str], apart: dict[str, Any], format: str) -> dict[str, Any]:
    from ssl_zoo.data.pixels import canvas_for
    from ssl_zoo.evaluation.feature_cache import weights_hash
    from ssl_zoo.reports.summary import versions

    files = {f.name: {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in sorted(part.iterdir())}
    return {
        "format": format,
        "name": net.about.get("name"),
        "epochs": net.about.get("epochs"),
        "files": files,
        "weights": weights_hash(net.backbone),
        "num_features": net.num_features,
        "preprocessing": {
            "image_size": net.image_size,
            "resize": canvas_for(net.image_size),
            "interpolation": "bicubic",
            "crop": "center",
            "range": [0, 1],
            "mean": list(net.mean),
            "std": list(net.std),
        },
        "load": lines,
        "difference": apart,
        "versions": versions(),
    }


def _sha256(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _card(run: Path, trained: DictConfig, part: Path, manifest: dict[str, Any], license: str | None) -> None:
    from ssl_zoo.config import plain
    from ssl_zoo.judging import dataset_name
    from ssl_zoo.reports.card import model_card

    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        results = [json.loads(f.read_text(encoding="utf-8")) for f in sorted((run / "eval").glob("*.json"))]
        text = model_card(summary, manifest, dataset_name(trained), results, _paper(plain(trained)["method"]), license)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise UserError(
            f"The model card of {run} cannot be made ({one_line(e)[:160]}): summary.json or a result in eval/ is damaged."
        ) from e
    with whole(part / "README.md") as f:
        f.write(text.encode(errors="backslashreplace"))


def _paper(method: dict[str, Any]) -> str:
    """The first line of the file of a method, which names its paper."""
    import sys

    target = str(method.get("_target_"))
    module = target.rpartition(".")[0]
    if module.startswith("ssl_zoo."):
        importlib.import_module(module)
    said = (getattr(sys.modules.get(module), "__doc__", None) or target).strip()
    return said.splitlines()[0]


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

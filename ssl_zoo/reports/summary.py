"""summary.json: the numbers of a run, how they were measured, and what it takes to get them again."""

import json
import math
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ssl_zoo.files import whole

PACKAGES = ("ssl-zoo", "torch", "torchvision", "lightning", "timm", "kornia", "hydra-core", "numpy")


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        told = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None


def peak_memory_mib(device: Any) -> float:
    """Peak memory in MiB: allocated on a CUDA device, else the resident size of this process."""
    if getattr(device, "type", "cpu") == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)


def protocol(options: dict[str, Any]) -> str:
    """How the numbers were measured, in one paragraph."""
    knn, l2 = options["knn"], options["linear"]["l2"]
    bank = options["bank"]
    return (
        f"Features of un-augmented images, backbone in evaluation mode. kNN: cosine, k={knn['k']}, votes exp(s/{knn['temperature']}), "
        f"bank = labelled training images (while training {bank} at most, at the end all). Linear probe: L-BFGS logistic regression on "
        f"standardised features, L2 from {l2} chosen on a tenth held out of train. Online probe: linear layer trained beside the method. "
        f"Raw pixels: the normalised image itself, at most 32 px, as features (bank of 50000 at most, probe on {bank} at most). "
        f"'final' is after the last epoch; 'best' is the highest kNN seen while training, on the images judged on, and so optimistic."
    )


def finite(value: Any) -> Any:
    """NaN and infinity are no JSON: null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _point(entry: dict[str, float]) -> dict[str, float | None]:
    """An evaluation while training: kNN, and the seconds until then, of training alone and of everything."""
    seconds = {k: round(entry[k], 1) if k in entry else None for k in ("training_s", "total_s")}  # older versions had none
    return {"epoch": entry["epoch"], "knn_top1": entry["eval/knn_top1"], **seconds}


def write_summary(run: Path, facts: dict[str, Any], trainer: Any, evaluate: Any, speed: Any, data_seconds: float) -> dict[str, Any]:
    """Collect the numbers of a finished run and write summary.json. `trainer`, `evaluate` and `speed` are those of the run."""
    kept = [h for h in evaluate.history if "eval/knn_top1" in h]
    best = max(kept, key=lambda h: h["eval/knn_top1"]) if kept else None
    loss = trainer.callback_metrics.get("train/loss")
    summary = {
        **facts,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "final": {**evaluate.final, **({} if loss is None else {"loss": float(loss)})},
        "best": {"epoch": best["epoch"], "knn_top1": best["eval/knn_top1"]} if best else None,
        "curve": [_point(h) for h in kept],
        "baselines": evaluate.baselines,
        "health": evaluate.health,
        "verdict": evaluate.verdict,
        "evaluation": (evaluate.unlabelled and f"skipped: {evaluate.unlabelled}") or protocol(evaluate.judge.options),
        "seconds": {
            "total": round(speed.total, 1),
            "data_and_model": round(data_seconds, 1),
            "training": round(speed.seconds, 1),
            "evaluation": round(evaluate.seconds, 1),
        },
        "speed": {
            "images_per_s": round(speed.images / max(speed.seconds, 1e-9), 1),
            "data_wait": round(100 * speed.waited / max(speed.seconds, 1e-9), 1),
            "peak_memory_mib": round(peak_memory_mib(trainer.strategy.root_device), 1),
            "device": str(trainer.strategy.root_device),
            "devices": trainer.world_size,
            "precision": str(trainer.precision),
        },
        "versions": versions(),
        "commit": commit(),
    }
    with whole(run / "summary.json") as f:
        f.write(json.dumps(finite(summary), indent=2, allow_nan=False).encode() + b"\n")
    return summary

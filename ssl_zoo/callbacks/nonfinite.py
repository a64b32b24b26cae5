"""What is said and kept of a step that is not finite."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from ssl_zoo.errors import UserError
from ssl_zoo.files import whole

log = logging.getLogger("ssl_zoo")
MOST_FILES = 100  # of steps that were left out


class NonFinite(UserError):
    """A loss, gradients or weights that are not finite; all ranks raise it at the same step."""


def number(value: float) -> float | str:
    """As JSON holds it: "nan", "inf" and "-inf" are no numbers there."""
    return value if math.isfinite(value) else str(value)


def record(seen: Any, rank: int, where: str | None, passed: int, parts: dict[str, float], gradients: list[str]) -> dict[str, Any]:
    """What one rank knows of the step. `seen` is a Seen of callbacks/guard.py."""
    return {
        "rank": rank,
        "step": seen.step,
        "epoch": seen.epoch,
        "batch": seen.number,
        "learning_rate": seen.lr,
        "loss": None if seen.loss is None else number(float(seen.loss)),
        "parts": {k: number(v) for k, v in parts.items()},
        "first": where,
        "passed": passed,
        "gradients": gradients[:50],
        "gradients_count": len(gradients),
        "indices": None if seen.index is None else seen.index.tolist(),
    }


def write_record(run: Path, found: dict[str, Any], first_rank: bool) -> Path | None:
    """<run>/nonfinite/step-<n>.json; None where there are enough of them, or it cannot be written."""
    folder = run / "nonfinite"
    file = folder / f"step-{found['step']}.json"
    if not first_rank:
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if len(list(folder.iterdir())) >= MOST_FILES:
            return None
        with whole(file) as f:
            f.write(json.dumps(found, indent=1, allow_nan=False).encode() + b"\n")
    except OSError as e:
        log.warning("%s cannot be written (%s)", file, e.strerror)
        return None
    return file


def told(what: str, value: Any, at: tuple[int, int, int], where: str | None, file: Path | None) -> str:
    """What happened at (step, epoch, rank), as the beginning of a sentence."""
    step, epoch, rank = at
    became = f"The loss became {value}" if what == "loss" else f"The {what} became NaN or infinite"
    first = f", first in {where}" if where else ""
    return f"{became} at step {step} (epoch {epoch}, rank {rank}){first}" + (f" ({file} tells the images)" if file else "")


def advice(lr: float, clip: bool, precise: bool) -> str:
    """clip, precise: whether clipping and float32 are still to be tried."""
    tries = [f"a lower optimizer.base_lr (the learning rate was {lr:.3g})"]
    tries += ["trainer.gradient_clip_val=1"] if clip else []
    tries += ["trainer.precision=32-true"] if precise else []
    return f"; checkpoints before it are kept: try {', '.join(tries[:-1])}{' or ' if len(tries) > 1 else ''}{tries[-1]}."

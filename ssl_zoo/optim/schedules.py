"""Schedules as pure functions of the optimizer step."""

import math
from collections.abc import Callable
from typing import Any


def cosine(progress: float, first: float, last: float) -> float:
    """From `first` at progress 0 to `last` at progress 1 (learning rate, weight decay and teacher momentum of BYOL, MoCo v3, DINO)."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * progress))


def warmup_cosine(step: int, total: int, warmup: int, peak: float = 1.0, final: float = 0.0, inclusive: bool = False) -> float:
    """Linear from 0 to `peak` over `warmup` steps, then a cosine to `final` at step `total` (SimCLR, BYOL, MoCo v3, Barlow Twins).

    inclusive: the last warm-up step already has `peak`, as DINO's linspace does; the first step of the cosine has it again.
    """
    if step < warmup:
        return peak * step / max(1, warmup - 1 if inclusive else warmup)
    if step >= total:
        return final
    return cosine((step - warmup) / (total - warmup), peak, final)


def schedule(config: dict[str, Any], total: int, per_epoch: float) -> Callable[[int], float]:
    """The factor of the learning rate as a function of the step. config: the fields of conf/optimizer; total, per_epoch: steps."""
    warmup = round(total * 0.1 if config["warmup_epochs"] == "auto" else min(total, per_epoch * config["warmup_epochs"]))
    if config["milestones"]:
        drops = [m * total for m in config["milestones"]]
        return lambda step: min(1.0, step / warmup if warmup else 1.0) * 0.1 ** sum(step >= d for d in drops)
    return lambda step: warmup_cosine(step, total, warmup, 1.0, config["final_lr"], config["inclusive_warmup"])

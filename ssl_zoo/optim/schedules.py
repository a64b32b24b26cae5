"""Schedules as pure functions of the optimizer step."""

import math


def warmup_cosine(step: int, total: int, warmup: int, peak: float = 1.0, final: float = 0.0) -> float:
    """Linear from 0 to `peak` over `warmup` steps, then a cosine to `final` at step `total` (SimCLR, BYOL, MoCo v3, Barlow Twins)."""
    if step < warmup:
        return peak * step / warmup
    if step >= total:
        return final
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

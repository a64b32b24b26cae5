"""Figures of what was judged: confusion, calibration, accuracy by class and by labels, spectrum, likeness of representations.

All take fields of `<run>/eval/*.json` and give None where they hold nothing to draw.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from ssl_zoo.reports.style import FAINT, INK, MAIN, RAW, SECOND, SHARES, UNTRAINED, plain, short

NUMBERED = 20  # classes up to which every cell is named and told in numbers
NAMED = 60  # classes up to which names can be read
BARS = 40  # classes that have a bar each; of more, the best and the worst half as many


def confusion(counts: list[list[float]], classes: list[str]) -> Figure | None:
    """Counts [C][C] (rows: true class) as shares of each true class."""
    matrix = np.array(counts, dtype=float)
    c = len(matrix)
    if not c or matrix.shape != (c, c):
        return None
    total = matrix.sum(1, keepdims=True)
    share = np.divide(100 * matrix, total, out=np.full_like(matrix, np.nan), where=total > 0)  # a class without images has no share
    size = np.clip(2.2 + 0.34 * c, 3.0, 8.0)
    figure, ax = plt.subplots(figsize=(size + 1, size))
    norm = PowerNorm(1.0 if c <= NUMBERED else 0.5, 0, 100)  # without numbers a few per cent must be seen
    shown = ax.imshow(share, cmap=SHARES, norm=norm, interpolation="nearest" if c <= 200 else "antialiased")
    _names(ax, classes, c)
    if c <= NUMBERED:
        _numbers(ax, share, "{:.0f}", limit=55, least=0.5, size=8.5 if c <= 10 else 7)
    ax.set(title="Confusion", xlabel="predicted class", ylabel="true class")
    ax.grid(False)
    figure.colorbar(shown, ax=ax, shrink=0.75, pad=0.03).set_label("% of the true class", fontsize=9)
    return figure


def calibration(found: dict[str, Any]) -> Figure | None:
    """Accuracy against confidence by bin, and the images of each bin. found: "confidence", "accuracy" and "ece" in per cent, "count"."""
    mean, right, count = (np.array(found[k], dtype=float) for k in ("confidence", "accuracy", "count"))
    filled = count > 0
    if not filled.any():
        return None
    bins = len(count)
    left = 100 * np.arange(bins) / bins
    width = 100 / bins
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(4.6, 5.2), sharex=True, gridspec_kw={"height_ratios": [3, 1], "hspace": 0.12})
    top.plot([0, 100], [0, 100], color=RAW, ls="--", lw=1.2, label="calibrated")
    top.bar(left[filled], right[filled], width, align="edge", color=MAIN, alpha=0.85, ec="white", lw=0.8, label="accuracy")
    top.plot(mean[filled], right[filled], "o", color=INK, ms=3.5, label="at the mean confidence")
    top.set(title=f"Calibration (ECE {found['ece']:.1f} %)", ylabel="accuracy, %", xlim=(0, 100), ylim=(0, 100))
    top.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    bottom.bar(left, 100 * count / count.sum(), width, align="edge", color=UNTRAINED, ec="white", lw=0.8)
    bottom.set(xlabel="confidence, %", ylabel="% of images")
    return figure


def per_class(accuracies: dict[str, float | None]) -> Figure | None:
    """Accuracy in per cent of every class, sorted; of many classes the best and the worst."""
    known = sorted(((v, k) for k, v in accuracies.items() if v is not None and np.isfinite(v)), reverse=True)
    if not known:
        return None
    cut = len(known) > BARS
    shown = known[: BARS // 2] + known[-BARS // 2 :] if cut else known
    place = np.arange(len(shown)) + np.where(np.arange(len(shown)) >= BARS // 2, 1.5, 0) * cut
    figure, ax = plt.subplots(figsize=(6.4, 0.9 + 0.19 * (place[-1] + 1)))
    values = np.array([v for v, _ in shown])
    mean = float(np.mean([v for v, _ in known]))
    ax.barh(place, values, height=0.78, color=MAIN)
    for y, v in zip(place, values, strict=True):
        ax.text(v + 0.8, y, f"{v:.1f}", va="center", fontsize=7.5, bbox={"fc": "white", "ec": "none", "pad": 0.8})
    ax.axvline(mean, color=SECOND, lw=1.2, ls="--", label=f"mean of {len(known)} {'classes' if len(known) > 1 else 'class'}: {mean:.1f} %")
    if cut:
        ax.text(1, BARS // 2 + 0.25, f"{len(known) - BARS} classes between", va="center", fontsize=8, color=FAINT, style="italic")
    ax.set_yticks(place, [short(k) for _, k in shown], fontsize=8)
    ax.set(title="Accuracy by class" + (": best and worst" if cut else ""), xlabel="%", xlim=(0, 105), ylim=(place[-1] + 0.7, -0.7))
    ax.set_xticks(range(0, 101, 20))
    ax.grid(axis="y", visible=False)
    ax.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def few_shot(results: list[dict[str, Any]], whole: tuple[str, float] | None = None) -> Figure | None:
    """Accuracy against labels: mean and standard deviation over draws, and each draw. whole: a protocol with all labels and its top-1."""
    results = sorted((r for r in results if r.get("top1") is not None), key=lambda r: r.get("images", 0))
    if not results:
        return None
    x, mean = np.arange(len(results)), np.array([float(r["top1"]) for r in results])
    std = np.array([float(r.get("std") or 0) for r in results])
    figure, ax = plt.subplots(figsize=(1.9 + 0.95 * max(3, len(results)), 3.3))
    for i, r in enumerate(results):
        draws = [d for d in r.get("per_draw") or [] if d is not None]
        ax.plot([i] * len(draws), draws, "o", color=RAW, ms=4, label="one draw" if i == 0 and draws else None)
    ax.errorbar(x, mean, std, fmt="o-", color=MAIN, ms=5, lw=1.5, capsize=3, label="mean and standard deviation")
    if whole:
        ax.axhline(whole[1], color=SECOND, ls="--", lw=1.2, label=f"{plain(whole[0])}, all labels: {whole[1]:.1f} %")
    ax.set_xticks(x, [plain(str(r.get("labels", "?"))) for r in results])
    ax.set(title="Few labels", xlabel="labels", ylabel="top-1, %", xlim=(-0.4, len(results) - 0.6))
    ax.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def spectrum(found: dict[str, Any]) -> Figure | None:
    """Singular values and standard deviations of dimensions, each from largest to smallest and relative to the largest."""
    curves = (("singular_values", "singular values, centred", MAIN), ("dim_std", "standard deviation of dimensions", UNTRAINED))
    drawn = []
    for key, label, colour in curves:
        values = np.array([v for v in found.get(key) or [] if v is not None], dtype=float)
        values = values[np.isfinite(values)]
        if len(values) and values.max() > 0:
            drawn.append((values / values.max(), label, colour))
    if not drawn:
        return None
    figure, ax = plt.subplots(figsize=(6.2, 3.5))
    for values, label, colour in drawn:
        ax.semilogy(
            np.arange(1, len(values) + 1), np.maximum(values, 1e-8), "o-" if len(values) < 3 else "-", color=colour, lw=1.6, label=label
        )
    for key, label, colour, line in (("effective_rank", "effective rank", MAIN, "--"), ("rankme", "RankMe", SECOND, ":")):
        value = found.get(key)
        if value is not None and np.isfinite(value):
            ax.axvline(value, color=colour, ls=line, lw=1.5, label=f"{label}: {value:.1f}")
    longest = max(len(v) for v, *_ in drawn)
    lowest = min(float(v.min()) for v, *_ in drawn)
    ax.set(title="Spectrum", xlabel="index, largest first", ylabel="relative to the largest", xlim=(0, 1.02 * longest + 1))
    ax.set_ylim(max(0.6 * lowest, 5e-9), 1.6)
    ax.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def cka(found: dict[str, Any]) -> Figure | None:
    """Linear CKA of each pair of representations. found: "names" [n] and "matrix" [n][n]."""
    matrix = np.array([[np.nan if v is None else v for v in row] for row in found["matrix"]], dtype=float)
    n = len(matrix)
    if not n or matrix.shape != (n, n) or len(found["names"]) != n:
        return None
    size = np.clip(1.8 + 0.5 * n, 2.8, 8.0)
    figure, ax = plt.subplots(figsize=(size + 1, size))
    shown = ax.imshow(matrix, cmap=SHARES, vmin=0, vmax=1, interpolation="nearest")
    _names(ax, found["names"], n)
    if n <= NUMBERED:
        _numbers(ax, matrix, "{:.2f}", limit=0.55, least=-np.inf, size=8)
    ax.set(title="Linear CKA")
    ax.grid(False)
    figure.colorbar(shown, ax=ax, shrink=0.75, pad=0.03)
    return figure


def _names(ax: Axes, names: list[str], count: int) -> None:
    """Names at the ticks where they can be read, else numbers that matplotlib chooses."""
    if count > NAMED or len(names) != count:
        return
    size = 9 if count <= 12 else 7.5 if count <= NUMBERED else 5
    labels = [short(str(n)) for n in names]
    ax.set_yticks(range(count), labels, fontsize=size)
    if count > NUMBERED:
        ax.set_xticks(range(count), labels, fontsize=size, rotation=90)
    elif count > 4 or max(map(len, labels)) > 8:
        ax.set_xticks(range(count), labels, fontsize=size, rotation=45, ha="right", rotation_mode="anchor")
    else:
        ax.set_xticks(range(count), labels, fontsize=size)


def _numbers(ax: Axes, values: np.ndarray, form: str, limit: float, least: float, size: float) -> None:
    for (r, c), v in np.ndenumerate(values):
        if np.isfinite(v) and v >= least:
            ax.text(c, r, form.format(v), ha="center", va="center", fontsize=size, color="white" if v > limit else INK)

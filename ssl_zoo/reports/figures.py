"""The pictures of a run, drawn from its folder."""

import csv
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MAIN, RAW, UNTRAINED, SECOND = "#22313f", "#2a6f97", "#adb5bd", "#e09f3e", "#9e2a2b"
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#adb5bd",
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#e9ecef",
    "font.size": 10,
    "figure.dpi": 130,
    "savefig.bbox": "tight",
}


def read_metrics(run: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """metrics.csv as {key: (steps, values)}."""
    columns: dict[str, tuple[list[int], list[float]]] = {}
    file = run / "metrics.csv"
    if not file.is_file():
        return {}
    with open(file, newline="", encoding="utf-8") as f:
        for row in csv.DictReader(f):
            for key, value in row.items():
                if key and value not in ("", None, "nan", "inf", "-inf"):
                    steps, values = columns.setdefault(key, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(value))
    return {k: (np.array(s), np.array(v)) for k, (s, v) in columns.items()}


def draw_all(run: Path) -> dict[str, Path]:
    """Draw every figure that the folder has data for into figures/; returns {name: file} in the order of the report."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    metrics = read_metrics(run)
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    data = dict(np.load(folder / "data.npz")) if (folder / "data.npz").is_file() else {}
    made = {}
    with plt.rc_context(STYLE):
        for name, figure in (
            ("curves", curves(metrics, summary)),
            ("health", health(metrics, summary)),
            ("map", feature_map(data)),
            ("neighbours", neighbours(data)),
            ("views", views(data)),
        ):
            if figure is not None:
                made[name] = folder / f"{name}.png"
                figure.savefig(made[name])
                plt.close(figure)
    return made


def curves(metrics: dict, summary: dict[str, Any]) -> Figure | None:
    """Training loss, and kNN with the two baselines."""
    if "train/loss" not in metrics:
        return None
    has_knn = "eval/knn_top1" in metrics
    figure, axes = plt.subplots(1, 2 if has_knn else 1, figsize=(11.5 if has_knn else 5, 3.1), squeeze=False)
    ax = axes[0, 0]
    ax.plot(*metrics["train/loss"], color=MAIN, lw=1.4)
    ax.set(title="Training loss", xlabel="optimizer step")
    if has_knn:
        ax = axes[0, 1]
        steps, knn = metrics["eval/knn_top1"]
        untrained = summary["baselines"].get("untrained", {}).get("knn_top1")
        if untrained is not None:
            steps, knn = np.r_[0, steps], np.r_[untrained, knn]
        ax.plot(steps, knn, "o-", color=MAIN, ms=4, label=f"trained: {knn[-1]:.1f} %")
        if "eval/online_linear_top1" in metrics:
            s, v = metrics["eval/online_linear_top1"]
            ax.plot(s, v, "s--", color=SECOND, ms=3, lw=1, label=f"online linear probe: {v[-1]:.1f} %")
        for key, label, colour in (("untrained", "untrained backbone", UNTRAINED), ("raw_pixels", "raw pixels", RAW)):
            value = summary["baselines"].get(key, {}).get("knn_top1")
            if value is not None:
                ax.axhline(value, color=colour, ls="--", lw=1.4, label=f"{label}: {value:.1f} %")
        ax.set(title="kNN top-1", xlabel="optimizer step", ylabel="%", ylim=(0, min(100, 1.25 * max(knn.max(), 10))))
        ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def health(metrics: dict, summary: dict[str, Any]) -> Figure | None:
    """The four collapse numbers over training."""
    shown = (
        ("health/feature_std", "Spread of unit features", "0 = every image the same, 1 = isotropic"),
        ("health/effective_rank", "Effective rank", f"of {summary['num_features']} dimensions"),
        ("health/alignment", "Alignment of two views", "squared distance, lower = more invariant"),
        ("health/uniformity", "Uniformity", "lower = more evenly spread"),
    )
    if "health/effective_rank" not in metrics:
        return None
    figure, axes = plt.subplots(1, 4, figsize=(12.5, 2.5))
    for ax, (key, title, what) in zip(axes, shown, strict=True):
        ax.plot(*metrics[key], "o-", color=MAIN, ms=3, lw=1.4)
        ax.set_title(title)
        ax.set_xlabel(what, fontsize=8.5)
        if key != "health/uniformity":
            ax.set_ylim(bottom=0, top=1.2 * max(float(metrics[key][1].max()), 1e-3))
    figure.tight_layout()
    return figure


def feature_map(data: dict[str, np.ndarray]) -> Figure | None:
    """The first two principal components of test features, coloured by class."""
    if "map" not in data or data["map"].shape[1] < 2 or len(data["map"]) < 3:
        return None
    points = data["map"]
    figure, ax = plt.subplots(figsize=(6.2, 4.4))
    if "labels" not in data:
        ax.scatter(*points.T, s=7, color=MAIN, alpha=0.6, lw=0)
    else:
        labels, classes = data["labels"], list(data["classes"])
        present = [c for c in np.unique(labels) if c >= 0]
        colours = plt.get_cmap("tab10" if len(present) <= 10 else "tab20" if len(present) <= 20 else "gist_rainbow")
        for i, c in enumerate(present):
            colour = colours(i / max(1, len(present) - 1)) if len(present) > 20 else colours(i)
            name = plain(classes[c]) if c < len(classes) else str(c)
            ax.scatter(*points[labels == c].T, s=8, color=colour, alpha=0.75, lw=0, label=name if len(present) <= 20 else None)
        if len(present) <= 20:
            ax.legend(frameon=False, fontsize=8, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.set(title="Feature map (first two principal components)", xticks=[], yticks=[])
    return figure


def plain(name: str) -> str:
    """A name that matplotlib takes as it is: no formula, no bytes that are no text."""
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def _picture(ax: Axes, image: np.ndarray, frame: str | None = None) -> None:
    ax.imshow(image.transpose(1, 2, 0), interpolation="nearest" if image.shape[-1] <= 64 else "antialiased")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=frame is not None, color=frame, linewidth=2.2)


def neighbours(data: dict[str, np.ndarray]) -> Figure | None:
    """Some test images, each with its nearest neighbours; frames tell whether the label agrees."""
    if "queries" not in data or not len(data["queries"]):
        return None
    rows, k = data["index"].shape
    if k == 0:
        return None
    pictures = data["neighbours"].reshape(rows, k, *data["neighbours"].shape[1:])
    figure, axes = plt.subplots(
        rows, k + 1, figsize=(0.78 * (k + 1), 0.78 * rows), squeeze=False, gridspec_kw={"wspace": 0.12, "hspace": 0.12}
    )
    for r in range(rows):
        _picture(axes[r, 0], data["queries"][r], INK)
        for c in range(k):
            frame = None
            if "query_labels" in data:
                frame = "#2d936c" if data["neighbour_labels"][r, c] == data["query_labels"][r] else "#c1121f"
            _picture(axes[r, c + 1], pictures[r, c], frame)
    axes[0, 0].set_title("image", fontsize=8.5, loc="center")
    axes[0, 1].set_title("nearest", fontsize=8.5, loc="center")
    return figure


def views(data: dict[str, np.ndarray]) -> Figure | None:
    """Images and what the backbone saw of them while training."""
    shown = [data[k] for k in sorted((k for k in data if k.startswith("view_")), key=lambda k: int(k[5:]))]
    return view_grid(data["originals"], shown) if shown else None


def view_grid(originals: np.ndarray, augmented: list[np.ndarray]) -> Figure:
    """originals uint8 [N, 3, S, S] and their views, each uint8 [N, 3, h, w] of any size, as a grid of N rows."""
    rows, count = len(originals), len(augmented)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, count + 1, figsize=(0.95 * (count + 1), 0.95 * rows), squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.08}
        )
    for r in range(rows):
        _picture(axes[r, 0], originals[r], INK)
        for c in range(count):
            _picture(axes[r, c + 1], augmented[c][r])
    axes[0, 0].set_title("image", fontsize=9, loc="center")
    for c in range(count):
        axes[0, c + 1].set_title(f"view {c + 1}", fontsize=9, loc="center")
    return figure

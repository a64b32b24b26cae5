"""The figures of a run, drawn from its folder."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_zoo.reports import word_pictures
from ssl_zoo.reports.pictures import attention, feature_map, neighbours, patches, views
from ssl_zoo.reports.pictures import view_grid as view_grid
from ssl_zoo.reports.style import MAIN, RAW, SECOND, STYLE, UNTRAINED, save


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


def draw_all(run: Path) -> dict[str, tuple[Path, str]]:
    """Draw every figure that the folder has data for into figures/: {name: (file, caption)} in the order of the report. Weights from
    elsewhere have neither summary nor metrics.
    """
    whole = (run / "summary.json").is_file()
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8")) if whole else {"baselines": {}}
    metrics = read_metrics(run) if whole else {}
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    data = dict(np.load(folder / "data.npz", allow_pickle=False)) if (folder / "data.npz").is_file() else {}
    with plt.rc_context(STYLE):
        return {
            name: (save(figure, folder / f"{name}.png"), caption) for name, figure, caption in _figures(metrics, summary, data) if figure
        }


def _figures(metrics: dict, summary: dict[str, Any], data: dict[str, np.ndarray]) -> Iterator[tuple[str, Figure | None, str]]:
    """(name, figure or None, caption), one at a time."""
    yield "curves", curves(metrics, summary), curves_caption(metrics, summary)
    yield "health", health(metrics, summary), "Collapse numbers on test features; the loss alone would not show a collapse."
    judged = "Held-out" if summary.get("data", {}).get("held_out") else "Test"
    learned = str(summary.get("name", "")).startswith("supervised_")
    coloured = f"{judged} features, coloured by class (the labels were {'what was learned' if learned else 'not used in training'})."
    yield "map", feature_map(data), coloured if "labels" in data else f"{judged} features."
    yield "words", words(metrics), "What the method learns beside its towers, and how far apart the means of images and captions lie."
    yield "pairs", word_pictures.pairs(data), "Cosine of test images and captions; the image of each caption is on the diagonal."
    yield "found", word_pictures.found(data), "The nearest of the test images to captions; green: an image with this caption."
    yield "plane", word_pictures.plane(data), "Embeddings of images and captions, the first two principal components of both together."
    framed = "; green: same class, red: another" if "query_labels" in data else ""
    yield "neighbours", neighbours(data), f"{judged} images (left) and their nearest neighbours in feature space{framed}."
    query = "Where the last block looks: the weights of its class token (or the mean over patches) on the patches of the image"
    yield "attention", attention(data), f"{query}, averaged over heads and for single heads; each map from its own lowest to highest."
    colours = "Features of the parts of each image; their first three principal components over all images as red, green and blue"
    yield "patches", patches(data), f"{colours}: parts of like colour have like features."
    yield "views", views(data), "Images (left) and the random views of them that the method learned from."


def curves_caption(metrics: dict, summary: dict[str, Any]) -> str:
    """What of loss, kNN and baselines there is to see."""
    known = {"raw_pixels": "raw pixels", "untrained": "the untrained backbone"}
    found = [label for key, label in known.items() if summary["baselines"].get(key, {}).get("knn_top1") is not None]
    if "eval/knn_top1" not in metrics:
        return "Loss while training."
    return "Loss and kNN accuracy while training" + (f", against {' and '.join(found)}." if found else ".")


def curves(metrics: dict, summary: dict[str, Any]) -> Figure | None:
    """Training loss, and kNN with the two baselines."""
    if "train/loss" not in metrics:
        return None
    has_knn = "eval/knn_top1" in metrics
    figure, axes = plt.subplots(1, 2 if has_knn else 1, figsize=(11.5 if has_knn else 5, 3.1), squeeze=False)
    ax = axes[0, 0]
    line(ax, *metrics["train/loss"], "Training loss")
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


def line(ax: Axes, steps: np.ndarray, values: np.ndarray, title: str, what: str = "") -> None:
    """A quantity over training, and below its title what it says; dots where they are few, as a line alone would not show one."""
    ax.plot(steps, values, "o-" if len(steps) <= 30 else "-", color=MAIN, ms=3, lw=1.4)
    ax.set_title(title, pad=18 if what else None)
    ax.text(0, 1.04, what, fontsize=8.5, transform=ax.transAxes)
    ax.set_xlabel("optimizer step")


def words(metrics: dict) -> Figure | None:
    """Learned temperature and bias, and the modality gap, over training."""
    known = (
        ("train/logit_scale", "Temperature", "1 / learned scale", lambda v: 1 / v),
        ("train/logit_bias", "Bias", "of the sigmoid", lambda v: v),
        ("train/gap", "Modality gap", "between the means of unit embeddings, 0 to 2", lambda v: v),
    )
    shown = [one for one in known if one[0] in metrics]
    if "train/logit_scale" not in metrics:
        return None
    figure, axes = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 2.5), squeeze=False)
    for ax, (key, title, what, of) in zip(axes[0], shown, strict=True):
        steps, values = metrics[key]
        line(ax, steps, of(values), title, what)
    figure.tight_layout()
    return figure


def health(metrics: dict, summary: dict[str, Any]) -> Figure | None:
    """The four collapse numbers over training."""
    if "health/effective_rank" not in metrics:
        return None
    shown = (
        ("health/feature_std", "Spread of unit features", "0 = every image the same, 1 = isotropic"),
        ("health/effective_rank", "Effective rank", f"of {summary['num_features']} dimensions"),
        ("health/alignment", "Alignment of two views", "squared distance, lower = more invariant"),
        ("health/uniformity", "Uniformity", "lower = more evenly spread"),
    )
    figure, axes = plt.subplots(1, 4, figsize=(12.5, 2.5))
    for ax, (key, title, what) in zip(axes, shown, strict=True):
        line(ax, *metrics[key], title, what)
        if key != "health/uniformity":
            ax.set_ylim(bottom=0, top=1.2 * max(float(metrics[key][1].max()), 1e-3))
    figure.tight_layout()
    return figure

"""Figures made of images: views, neighbours, where a backbone looks; and the map of features. Data: `ssl_zoo.evaluation.pictures`."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_zoo.reports.style import INK, MAIN, RAW, RIGHT, STYLE, WRONG, plain, short

METHODS = {"pca": "first two principal components", "tsne": "t-SNE", "umap": "UMAP"}
HEADS = 6  # shown of a block


def feature_map(data: dict[str, np.ndarray]) -> Figure | None:
    """Test features as points in the plane, coloured by class."""
    if "map" not in data or data["map"].shape[1] < 2 or len(data["map"]) < 3:
        return None
    points, method = data["map"], str(data.get("map_method", "pca"))
    figure, ax = plt.subplots(figsize=(6.2, 4.4))
    if "labels" not in data:
        ax.scatter(*points.T, s=7, color=MAIN, alpha=0.6, lw=0)
    else:
        labels, classes = data["labels"], list(data["classes"])
        present = [c for c in np.unique(labels) if c >= 0]
        ax.scatter(*points[labels < 0].T, s=6, color=RAW, alpha=0.6, lw=0)
        colours = plt.get_cmap("tab10" if len(present) <= 10 else "tab20" if len(present) <= 20 else "gist_rainbow")
        for i, c in enumerate(present):
            colour = colours(i / max(1, len(present) - 1)) if len(present) > 20 else colours(i)
            name = short(classes[c]) if c < len(classes) else str(c)
            ax.scatter(*points[labels == c].T, s=8, color=colour, alpha=0.75, lw=0, label=name if len(present) <= 20 else None)
        if 0 < len(present) <= 20:
            ax.legend(frameon=False, fontsize=8, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.set(title=f"Feature map ({METHODS.get(method, plain(method))})", xticks=[], yticks=[])
    return figure


def neighbours(data: dict[str, np.ndarray]) -> Figure | None:
    """Some test images, each with its nearest neighbours; frames tell whether the label agrees."""
    if "queries" not in data or not len(data["queries"]):
        return None
    rows, k = data["index"].shape
    if k == 0:
        return None
    pictures = data["neighbours"].reshape(rows, k, *data["neighbours"].shape[1:])
    figure, axes = grid(rows, k + 1, 0.78, 0.12)
    for r in range(rows):
        show(axes[r, 0], data["queries"][r], INK)
        for c in range(k):
            frame = None
            if "query_labels" in data:
                frame = RIGHT if data["neighbour_labels"][r, c] == data["query_labels"][r] else WRONG
            show(axes[r, c + 1], pictures[r, c], frame)
    titles(axes, ["image", "nearest"])
    return figure


def attention(data: dict[str, np.ndarray]) -> Figure | None:
    """Images, and for each what the last block attends to: the mean over heads, and single heads."""
    maps = data.get("attention")
    if maps is None or not len(maps):
        return None
    heads = min(HEADS, maps.shape[1])
    figure, axes = grid(len(maps), heads + 2, 0.95, 0.08)
    for r, of_image in enumerate(maps):
        show(axes[r, 0], data["originals"][r], INK)
        for c, shown in enumerate([of_image.mean(0), *of_image[:heads]]):
            axes[r, c + 1].imshow(shown, cmap="viridis", interpolation="nearest")
            bare(axes[r, c + 1])
    titles(axes, ["image", "mean", *(f"head {h + 1}" for h in range(heads))])
    return figure


def patches(data: dict[str, np.ndarray]) -> Figure | None:
    """Images, and below them their patches in the colours of their features."""
    colours = data.get("patches")
    if colours is None or not len(colours):
        return None
    figure, axes = grid(2, len(colours), 1.05, 0.06)
    for c, found in enumerate(colours):
        show(axes[0, c], data["originals"][c])
        axes[1, c].imshow(found.transpose(1, 2, 0), interpolation="nearest")
        bare(axes[1, c])
    height, width = colours.shape[2:]
    for ax, name in ((axes[0, 0], "image"), (axes[1, 0], f"{height} × {width}")):
        ax.set_ylabel(name, fontsize=9)
    return figure


def views(data: dict[str, np.ndarray]) -> Figure | None:
    """Images and what the backbone saw of them while training."""
    shown = [data[k] for k in sorted((k for k in data if k.startswith("view_")), key=lambda k: int(k[5:]))]
    return view_grid(data["originals"], shown) if shown else None


def view_grid(originals: np.ndarray, augmented: list[np.ndarray]) -> Figure:
    """originals uint8 [N, 3, S, S] and their views, each uint8 [N, 3, h, w] of any size, as a grid of N rows."""
    rows, count = len(originals), len(augmented)
    with plt.rc_context(STYLE):
        figure, axes = grid(rows, count + 1, 0.95, 0.08)
    for r in range(rows):
        show(axes[r, 0], originals[r], INK)
        for c in range(count):
            show(axes[r, c + 1], augmented[c][r])
    titles(axes, ["image", *(f"view {c + 1}" for c in range(count))])
    return figure


def grid(rows: int, columns: int, size: float, gap: float) -> tuple[Figure, np.ndarray]:
    return plt.subplots(
        rows, columns, figsize=(size * columns, size * rows), squeeze=False, gridspec_kw={"wspace": gap, "hspace": gap}
    )  # fmt: skip


def titles(axes: np.ndarray, names: list[str]) -> None:
    for ax, title in zip(axes[0], names, strict=False):
        ax.set_title(title, fontsize=9, loc="center", fontweight="normal")


def show(ax: Axes, image: np.ndarray, frame: str | None = None) -> None:
    ax.imshow(image.transpose(1, 2, 0), interpolation="nearest" if image.shape[-1] <= 64 else "antialiased")
    bare(ax, frame)


def bare(ax: Axes, frame: str | None = None) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(visible=frame is not None, color=frame, linewidth=2.2)

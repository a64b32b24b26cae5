"""Figures made of images: views, neighbours, where a backbone looks; and the map of features. Data: `ssl_zoo.evaluation.pictures`."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

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
    shown = Mosaic(rows, k + 1, 0.78, 0.12)
    for r in range(rows):
        shown.show(r, 0, data["queries"][r], INK)
        for c in range(k):
            frame = None
            if "query_labels" in data:
                frame = RIGHT if data["neighbour_labels"][r, c] == data["query_labels"][r] else WRONG
            shown.show(r, c + 1, pictures[r, c], frame)
    return shown.titled(["image", "nearest"])


def attention(data: dict[str, np.ndarray]) -> Figure | None:
    """Images, and for each what the last block attends to: the mean over heads, and single heads."""
    maps = data.get("attention")
    if maps is None or not len(maps):
        return None
    heads = min(HEADS, maps.shape[1])
    shown = Mosaic(len(maps), heads + 2, 0.95, 0.08)
    for r, of_image in enumerate(maps):
        shown.show(r, 0, data["originals"][r], INK)
        for c, one in enumerate([of_image.mean(0), *of_image[:heads]]):
            shown.show(r, c + 1, one)
    return shown.titled(["image", "mean", *(f"head {h + 1}" for h in range(heads))])


def patches(data: dict[str, np.ndarray]) -> Figure | None:
    """Images, and below them their patches in the colours of their features."""
    colours = data.get("patches")
    if colours is None or not len(colours):
        return None
    shown = Mosaic(2, len(colours), 1.05, 0.06)
    for c, found in enumerate(colours):
        shown.show(0, c, data["originals"][c])
        shown.show(1, c, found)
    for r, name in enumerate(("image", f"{colours.shape[2]} × {colours.shape[3]}")):
        shown.ax.text(-0.04, r + 0.5, name, fontsize=9, rotation=90, ha="right", va="center")
    return shown.figure


def views(data: dict[str, np.ndarray]) -> Figure | None:
    """Images and what the backbone saw of them while training."""
    shown = [data[k] for k in sorted((k for k in data if k.startswith("view_")), key=lambda k: int(k[5:]))]
    return view_grid(data["originals"], shown) if shown else None


def view_grid(originals: np.ndarray, augmented: list[np.ndarray]) -> Figure:
    """originals uint8 [N, 3, S, S] and their views, each uint8 [N, 3, h, w] of any size, as a grid of N rows."""
    rows, count = len(originals), len(augmented)
    with plt.rc_context(STYLE):
        shown = Mosaic(rows, count + 1, 0.95, 0.08)
        for r in range(rows):
            shown.show(r, 0, originals[r], INK)
            for c in range(count):
                shown.show(r, c + 1, augmented[c][r])
        return shown.titled(["image", *(f"view {c + 1}" for c in range(count))])


class Mosaic:
    """Square pictures in rows and columns, all in one pair of axes: axes for each take ten times as long to draw."""

    def __init__(self, rows: int, columns: int, size: float, gap: float, ax: Axes | None = None) -> None:
        self.ax = ax or plt.subplots(figsize=(size * columns, size * rows))[1]
        self.figure: Figure = self.ax.figure  # type: ignore[assignment]
        self.margin = 0.5 * gap
        self.ax.set(xlim=(0, columns), ylim=(rows, 0), autoscale_on=False)
        self.ax.set_axis_off()

    def show(self, row: int, column: int, image: np.ndarray, frame: str | None = None) -> None:
        """image: [3, S, S] in colours, or [S, S] of one quantity."""
        left, right, top, bottom = (x + s * self.margin for x, s in ((column, 1), (column + 1, -1), (row, 1), (row + 1, -1)))
        picture = image if image.ndim == 2 else image.transpose(1, 2, 0)
        how = "nearest" if image.shape[-1] <= 64 else "antialiased"
        self.ax.imshow(picture, cmap="viridis", interpolation=how, extent=(left, right, bottom, top), aspect="auto")
        if frame is not None:
            self.ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=frame, lw=2.2, clip_on=False))

    def titled(self, names: list[str]) -> Figure:
        """The figure, with the names of its first columns above them."""
        for c, name in enumerate(names):
            self.ax.text(c + 0.5, -0.06, name, fontsize=9, ha="center", va="bottom")
        return self.figure

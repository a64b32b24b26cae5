"""Figures of images and words. Data: `ssl_zoo.evaluation.word_pictures`."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ssl_zoo.reports.pictures import Mosaic
from ssl_zoo.reports.style import INK, MAIN, RIGHT, SECOND, SHARES, WRONG, plain

Data = dict[str, np.ndarray]


def pairs(data: Data) -> Figure | None:
    """Captions (rows) against images (columns): their cosines."""
    if "pair_cosine" not in data or not len(data["pair_cosine"]):
        return None
    cosine, count = data["pair_cosine"], len(data["pair_cosine"])
    size = (0.72 * count, 0.72 + 0.42 * count)
    figure, (above, ax) = plt.subplots(2, 1, figsize=size, gridspec_kw={"height_ratios": [1.6, count], "hspace": 0.04})
    shown = Mosaic(1, count, 0.72, 0.06, above)
    for c, image in enumerate(data["pair_images"]):
        shown.show(0, c, image)
    low, high = float(cosine.min()), float(cosine.max())
    ax.imshow(cosine.T, cmap=SHARES, vmin=low, vmax=max(high, low + 1e-6), aspect="auto", interpolation="nearest")
    for image in range(count):
        for caption in range(count):
            value = float(cosine[image, caption])
            ink = "#ffffff" if value > (low + high) / 2 else INK
            ax.text(image, caption, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    ax.set(xticks=[], yticks=range(count))
    ax.set_yticklabels([wrapped(c, 44, 2) for c in data["pair_captions"]], fontsize=8)
    ax.grid(False)
    return figure


def found(data: Data) -> Figure | None:
    """A row for each caption: the images nearest to it, framed by whether it is theirs."""
    if "found_right" not in data or not data["found_right"].size:
        return None
    rows, count = data["found_right"].shape
    pictures = data["found"].reshape(rows, count, *data["found"].shape[1:])
    shown = Mosaic(rows, count + 2, 0.95, 0.08)
    for r in range(rows):
        shown.ax.text(1.94, r + 0.5, wrapped(data["asked"][r], 28, 4), ha="right", va="center", fontsize=8.5)
        for c in range(count):
            shown.show(r, c + 2, pictures[r, c], RIGHT if data["found_right"][r, c] else WRONG)
    return shown.figure


def plane(data: Data) -> Figure | None:
    """Images and captions as points of one plane; the first half of the points are images."""
    points = data.get("plane")
    if points is None or points.shape[1] < 2 or len(points) < 4:
        return None
    images, captions = np.split(points, 2)
    figure, ax = plt.subplots(figsize=(5.2, 3.8))
    for some, name, colour in ((images, "images", MAIN), (captions, "captions", SECOND)):
        ax.scatter(*some.T, s=8, color=colour, alpha=0.5, lw=0, label=name)
    ax.set(title="Images and captions in one space", xticks=[], yticks=[])
    ax.legend(frameon=False, fontsize=9, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def wrapped(caption: str, width: int, lines: int) -> str:
    """A caption on a few short lines, as matplotlib takes it."""
    return plain("\n".join(textwrap.wrap(caption, width, max_lines=lines, placeholder=" …")))

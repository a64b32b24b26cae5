"""How every figure looks."""

import io
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ssl_zoo.files import whole

INK, MAIN, RAW, UNTRAINED, SECOND = "#22313f", "#2a6f97", "#adb5bd", "#e09f3e", "#9e2a2b"
RIGHT, WRONG, FAINT = "#2d936c", "#c1121f", "#6c757d"
SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#a9cce0", MAIN, "#0d2b3e"]).with_extremes(bad="#e9ecef")
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
    "axes.axisbelow": True,
    "font.size": 10,
    "figure.dpi": 130,
    "savefig.bbox": "tight",
}


def plain(name: str) -> str:
    """A name that matplotlib takes as it is: no formula, no bytes that are no text."""
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def short(name: str, length: int = 18) -> str:
    """A plain name that leaves room for the figure."""
    return plain(name if len(name) <= length else f"{name[: length - 1]}…")


def save(figure: Figure, file: Path) -> Path:
    """Write a figure whole or not at all, and forget it."""
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter that the font lacks is a box
        figure.savefig(drawn, format="png")
    plt.close(figure)
    with whole(file, sync=False) as f:
        f.write(drawn.getvalue())
    return file

"""Draw the pictures of the documentation: `python docs/draw.py`, and `python docs/draw.py RUN` for that of the run's report as well.

The picture of a report is a screenshot, for which a Chromium has to be installed.
"""

import itertools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

IMAGES = Path(__file__).resolve().parent / "images"
INK, SOFT, LINE = "#22313f", "#5c6b7a", "#8a99a8"
GREY, BLUE, TEAL, AMBER, ROSE = (
    ("#f3f5f7", "#b8c2cc"),
    ("#e3eff6", "#2a6f97"),
    ("#e2f1ec", "#2f8f76"),
    ("#fbf0dc", "#c98a1b"),
    ("#f8e6e6", "#b5494c"),
)
Kind = tuple[str, str]
Point = tuple[float, float]


def card(width: float, height: float) -> Axes:
    """A white card with round corners, whose units are tenths of an inch: it looks the same on a light and on a dark page."""
    fig = plt.figure(figsize=(width / 10, height / 10))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.axis("off")
    fig.patch.set_alpha(0)
    shape = FancyBboxPatch((0.4, 0.4), width - 0.8, height - 0.8, boxstyle="round,pad=0,rounding_size=1.5", fc="white", ec="#d5dce3", lw=1)
    ax.add_patch(shape)
    return ax


def box(ax: Axes, at: Point, size: Point, title: str, lines: str = "", kind: Kind = GREY, dashed: bool = False) -> None:
    """A box whose upper left corner is `at`, with a title and smaller lines below it."""
    (x, y), (w, h) = at, size
    line = "--" if dashed else "-"
    ax.add_patch(FancyBboxPatch(at, w, h, boxstyle="round,pad=0,rounding_size=0.9", fc=kind[0], ec=kind[1], lw=1.3, ls=line))
    count = lines.count("\n") + 1 if lines else 0
    top = y + h / 2 - 0.9 * count
    ax.text(x + w / 2, top, title, ha="center", va="center", fontsize=11, color=INK, weight="bold")
    for i, line in enumerate(lines.split("\n") if lines else []):
        ax.text(x + w / 2, top + 1.95 + 1.7 * i, line, ha="center", va="center", fontsize=8.8, color=SOFT)


def room(ax: Axes, at: Point, size: Point, title: str, kind: Kind) -> None:
    """A box around other boxes, with its title in the upper left corner."""
    ax.add_patch(FancyBboxPatch(at, *size, boxstyle="round,pad=0,rounding_size=1.2", fc="white", ec=kind[1], lw=1.3))
    ax.text(at[0] + 1.4, at[1] + 1.9, title, ha="left", va="center", fontsize=11, color=kind[1], weight="bold")


def arrow(ax: Axes, *points: Point, colour: str = LINE, dashed: bool = False) -> None:
    """A line through points, which ends with a head."""
    look = {"color": colour, "lw": 1.5, "ls": "--" if dashed else "-"}
    for a, b in itertools.pairwise(points[:-1]):
        ax.plot(*zip(a, b, strict=True), solid_capstyle="round", **look)
    ax.add_patch(FancyArrowPatch(points[-2], points[-1], arrowstyle="-|>", mutation_scale=13, shrinkA=0, shrinkB=0, **look))


def word(ax: Axes, at: Point, text: str, colour: str = SOFT, size: float = 8.8, align: str = "center", **more: object) -> None:
    ax.text(*at, text, ha=align, va="center", fontsize=size, color=colour, **more)


def save(ax: Axes, name: str) -> None:
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        ax.figure.savefig(IMAGES / name, metadata={"Date": None, "Creator": None})
    plt.close(ax.figure)


def architecture() -> None:
    """From a command to a run folder."""
    ax = card(122, 72)
    box(ax, (3, 4), (25, 9), "command line", "ssl-zoo method=dino ...", GREY)
    box(ax, (3, 17), (25, 13), "conf/", "method × backbone × dataset\nviews, optimizer, trainer,\nrecipe, evaluation, logger", GREY)
    box(ax, (35, 8.5), (24, 14), "compose", "Hydra puts the files together,\nthe command line wins;\nchecked before torch starts", AMBER)
    arrow(ax, (28, 8.5), (31.5, 8.5), (31.5, 13), (35, 13))
    arrow(ax, (28, 23.5), (31.5, 23.5), (31.5, 18), (35, 18))
    box(ax, (3, 36), (25, 13), "data", "folder, parquet, shards, ...\nheld on the device,\nmapped or decoded on demand", BLUE)
    box(ax, (35, 36), (24, 13), "views on the device", "crop, flip, colour, blur\nof a whole batch,\none compiled graph", BLUE)
    arrow(ax, (47, 22.5), (47, 36))
    word(ax, (48.2, 29.5), "build", align="left")
    arrow(ax, (28, 42.5), (35, 42.5))
    arrow(ax, (59, 42.5), (66, 42.5))
    arrow(ax, (59, 15.5), (66, 15.5))
    method(ax)
    box(ax, (66, 57), (53, 11), "callbacks", "kNN, linear probe and health while training\ncheckpoints, signals, speed", TEAL)
    box(ax, (35, 57), (24, 11), "run folder", "report.html, summary.json,\nbackbone.safetensors, ...", AMBER)
    box(ax, (3, 57), (25, 11), "afterwards", "resume, eval, report,\nexport, embed, search", GREY)
    for a, b in (((92.5, 51), (92.5, 57)), ((66, 62.5), (59, 62.5)), ((35, 62.5), (28, 62.5))):
        arrow(ax, a, b)
    save(ax, "architecture.svg")


def method(ax: Axes) -> None:
    """The part of the architecture that is one file."""
    room(ax, (66, 4), (53, 47), "method: one file that reads like its paper", BLUE)
    box(ax, (69, 9), (22, 9), "backbone", "any timm model", BLUE)
    box(ax, (95, 9), (21, 9), "projector", "and predictor", BLUE)
    arrow(ax, (91, 13.5), (95, 13.5))
    room(ax, (69, 21.5), (47, 17.5), "what prevents collapse", ROSE)
    chips = (
        ("negatives", "SimCLR, CLIP"),
        ("queue", "MoCo"),
        ("EMA teacher", "MoCo, BYOL, DINO"),
        ("stop-gradient", "SimSiam, BYOL"),
        ("centering", "DINO"),
        ("decorrelation", "VICReg, Barlow Twins"),
    )
    for i, (title, line) in enumerate(chips):
        x, y = 70.3 + 15 * (i % 3), 25.6 + 6.5 * (i // 3)
        ax.add_patch(FancyBboxPatch((x, y), 14.4, 5.4, boxstyle="round,pad=0,rounding_size=0.8", fc=ROSE[0], ec=ROSE[1], lw=1.1))
        word(ax, (x + 7.2, y + 1.8), title, INK, 9.2, weight="bold")
        word(ax, (x + 7.2, y + 3.8), line, size=7.6)
    box(ax, (69, 42), (47, 6.5), "loss", "in float32, exact over all ranks", TEAL)
    arrow(ax, (105.5, 18), (105.5, 21.5))
    arrow(ax, (92.5, 39), (92.5, 42))


def step() -> None:
    """One training step, of methods with and without a teacher."""
    ax = card(132, 58)
    box(ax, (3, 26), (17, 11), "batch", "uint8 [B, 3, S, S]\non the device", GREY)
    box(ax, (26, 15), (15, 9), "view 1", "float [B, 3, h, w]", BLUE)
    box(ax, (26, 39), (15, 9), "view 2", "float [B, 3, h, w]", BLUE)
    for y in (18, 45.2):
        word(ax, (18.6, y), "augment", SOFT, 9)
    word(ax, (3, 54.5), "dashed: in some methods", SOFT, 9, align="left")
    arrow(ax, (11.5, 26), (11.5, 19.5), (26, 19.5))
    arrow(ax, (11.5, 37), (11.5, 43.5), (26, 43.5))
    box(ax, (47, 15), (17, 9), "backbone", "features h [B, D]", BLUE)
    box(ax, (70, 15), (15, 9), "projector", "z [B, K]", BLUE)
    box(ax, (91, 15), (15, 9), "predictor", "BYOL, SimSiam, ...", BLUE, dashed=True)
    box(ax, (47, 39), (17, 9), "the same, or", "an EMA teacher", ROSE, dashed=True)
    box(ax, (70, 39), (15, 9), "projector", "target [B, K]", ROSE, dashed=True)
    box(ax, (91, 39), (15, 9), "stop-gradient", "centering (DINO)", ROSE, dashed=True)
    for y in (19.5, 43.5):
        for a, b in ((41, 47), (64, 70), (85, 91)):
            arrow(ax, (a, y), (b, y))
    box(ax, (112, 26), (17, 11), "loss", "float32, exact\nover all ranks", TEAL)
    arrow(ax, (106, 19.5), (120.5, 19.5), (120.5, 26))
    arrow(ax, (106, 43.5), (116, 43.5), (116, 37))
    box(ax, (112, 47), (17, 8), "queue", "past keys (MoCo)", ROSE, dashed=True)
    arrow(ax, (124.5, 47), (124.5, 37))
    arrow(ax, (112, 31.5), (58.5, 31.5), (58.5, 24), colour=ROSE[1])
    word(ax, (85.5, 29.9), "backward, then an optimizer step", ROSE[1], 9)
    arrow(ax, (52, 24), (52, 39), colour=TEAL[1], dashed=True)
    word(ax, (50.8, 31.5), "after_step: the teacher\nfollows the student", TEAL[1], 8.6, align="right", linespacing=1.3)
    box(ax, (91, 3.5), (38, 8), "online probe and health", "they add nothing to the loss", TEAL)
    arrow(ax, (55.5, 15), (55.5, 7.5), (91, 7.5), colour=TEAL[1], dashed=True)
    word(ax, (73.2, 5.9), "h, detached", TEAL[1], 9)
    save(ax, "step.svg")


def report(run: Path) -> None:
    """The upper part of a run's report.html, as a browser shows it."""
    browser = next((b for b in map(shutil.which, ("chromium", "google-chrome", "chromium-browser")) if b), None)
    if browser is None:
        sys.exit("A picture of a report needs Chromium.")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        words = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,800", f"--screenshot={shot}"]
        page = (run / "report.html").resolve().as_uri()
        subprocess.run([browser, *words, f"--user-data-dir={folder}/profile", page], check=True, capture_output=True, timeout=120)
        picture = Image.open(shot).convert("RGB")
        picture.quantize(256, dither=Image.Dither.NONE).save(IMAGES / "report.png", optimize=True)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    mpl.rcParams["font.family"] = "DejaVu Sans"
    architecture()
    step()
    if sys.argv[1:]:
        report(Path(sys.argv[1]))

"""The pictures of the benchmark page, as SVG."""

import io
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_zoo.reports.groups import Group
from ssl_zoo.reports.style import INK, MAIN, RAW, SECOND, STYLE, UNTRAINED, plain

BASELINES = (("untrained", "untrained backbone", UNTRAINED), ("raw_pixels", "raw pixels", RAW))
SHOWN = (("knn_top1", "kNN", MAIN, "o", -0.13), ("linear_top1", "linear probe", SECOND, "s", 0.13))
SEEDS = ("#2a6f97", "#61a5c2", "#014f86", "#89c2d9", "#013a63")
FONT = {"svg.hashsalt": "ssl_zoo", "font.size": 9, "axes.titlesize": 9.5, "legend.frameon": False, "axes.axisbelow": True}


def label(text: str, length: int = 44) -> str:
    """A name as matplotlib and SVG take it, not longer than its place."""
    shown = "".join(c if c.isprintable() else " " for c in text.encode("utf-8", "backslashreplace").decode())
    return plain(shown if len(shown) <= length else f"{shown[: length - 1]}…")


def svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    return out.getvalue()


def overview(groups: list[Group]) -> bytes | None:
    """A dot for each row with its standard deviation, small dots for its seeds, against the two baselines; one panel per data set."""
    shown = [g for g in groups if any(key in g.measures for key, *_ in SHOWN)]
    if not shown:
        return None
    parts = _by_dataset(shown)
    with plt.rc_context({**STYLE, **FONT}):
        ratios = [len(p) + 0.4 for p in parts]
        height = 0.33 * sum(ratios)  # of the panels; 0.6 inches between two of them
        space = 0.6 / (height / len(parts))
        size = (11.5, height + 0.6 * len(parts) + 0.3)
        figure, axes = plt.subplots(len(parts), 1, figsize=size, squeeze=False, height_ratios=ratios, gridspec_kw={"hspace": space})
        for ax, rows in zip(axes[:, 0], parts, strict=True):
            _overview_panel(ax, rows)
        handles = {text: h for ax in axes[:, 0] for h, text in zip(*ax.get_legend_handles_labels(), strict=True)}
        axes[-1, 0].set_xlabel("top-1, %")
        axes[0, 0].legend(handles.values(), handles.keys(), ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
        return svg(figure)


def _overview_panel(ax: Axes, rows: list[Group]) -> None:
    for y, g in enumerate(rows):
        for key, name, colour in BASELINES:
            value = g.mean("baselines", key, "knn_top1")
            if value is not None:
                ax.plot([value, value], [y - 0.36, y + 0.36], color=colour, lw=1.6, ls=(0, (2, 1)), label=f"{name} (kNN)")
        for key, name, colour, marker, shift in SHOWN:
            if m := g.measures.get(key):
                ax.errorbar(m.mean, y + shift, xerr=m.std, fmt=marker, color=colour, ms=5.5, capsize=2.5, lw=1.2, label=name, zorder=3)
                if len(m.values) > 1:
                    ax.plot(m.values, [y + shift] * len(m.values), "|", color=colour, ms=5, alpha=0.5)
    ax.set_yticks(range(len(rows)), [label(f"{g.label} · {g.backbone}" + (" †" if g.stale else "")) for g in rows])
    ax.set(ylim=(len(rows) - 0.45, -0.55), title=label(rows[0].dataset))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.04)


def curves(groups: list[Group]) -> bytes | None:
    """kNN while training: one small panel per row, a line per seed, the same axes in all panels of a data set."""
    shown = [g for g in groups if any(r.curve is not None for r in g.runs)]
    if not shown:
        return None
    parts = _by_dataset(shown)
    wide = min(5, max(3, *map(len, parts)))
    tall = sum(-(-len(p) // wide) for p in parts)
    with plt.rc_context({**STYLE, **FONT, "axes.titlesize": 8.5}):
        figure = plt.figure(figsize=(13, 1.85 * tall + 0.3))
        grid = figure.add_gridspec(tall, wide, wspace=0.1, hspace=0.62)
        handles, row, several = {}, 0, len({(g.backbone, g.dataset) for g in shown}) > 1
        for rows in parts:
            limits = _limits(rows)
            for i, g in enumerate(rows):
                ax = figure.add_subplot(grid[row + i // wide, i % wide])
                _curve_panel(ax, g, " · ".join([*([g.variant] if g.variant else []), *([g.backbone, g.dataset] if several else [])]))
                ax.set(xlim=(0, limits[0]), ylim=(0, limits[1]))
                ax.tick_params(labelleft=not i % wide, labelbottom=i + wide >= len(rows))
                ax.set_ylabel("" if i % wide else "kNN top-1, %")
                handles |= {text: h for h, text in zip(*ax.get_legend_handles_labels(), strict=True)}
            row += -(-len(rows) // wide)
        figure.axes[-1].set_xlabel("optimizer step")
        place = (0.9, 0.9 + 0.3 / figure.get_figheight())
        figure.legend(handles.values(), handles.keys(), ncols=3, loc="lower right", bbox_to_anchor=place)
        return svg(figure)


def _by_dataset(groups: list[Group]) -> list[list[Group]]:
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(groups), 1) if a.dataset != b.dataset), len(groups)]
    return [groups[a:b] for a, b in pairwise(cuts)]


def _limits(groups: list[Group]) -> tuple[float, float]:
    found = [r.curve for g in groups for r in g.runs if r.curve is not None]
    base = [v for g in groups for key, *_ in BASELINES if (v := g.mean("baselines", key, "knn_top1")) is not None]
    return 1.03 * max(1.0, *(float(s.max()) for s, _ in found)), min(101.0, 1.12 * max([*base, *(float(v.max()) for _, v in found), 1.0]))


def _curve_panel(ax: Axes, g: Group, about: str) -> None:
    for key, name, colour in BASELINES:
        value = g.mean("baselines", key, "knn_top1")
        if value is not None:
            ax.axhline(value, color=colour, ls=(0, (4, 2)), lw=1.2, label=name)
    start = g.mean("baselines", "untrained", "knn_top1")
    for i, (steps, values) in enumerate(r.curve for r in g.runs if r.curve is not None):
        if start is not None:
            steps, values = np.r_[0, steps], np.r_[start, values]
        ax.plot(steps, values, "o-", color=SEEDS[i % len(SEEDS)], ms=2.2, lw=1.2, label=None if i else "trained, a line per seed")
    ax.set_title(label(g.method + (" †" if g.stale else ""), 26), pad=12 if about else 4, color=INK)
    ax.text(0, 1.02, label(about, 34), transform=ax.transAxes, fontsize=7.5, color="#6c757d")

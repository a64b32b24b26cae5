"""The pictures of the benchmark page, as SVG."""

import io
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_zoo.reports.figures import INK, MAIN, RAW, SECOND, STYLE, UNTRAINED, plain
from ssl_zoo.reports.groups import Group

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
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(shown), 1) if a.dataset != b.dataset), len(shown)]
    parts = [shown[a:b] for a, b in pairwise(cuts)]
    with plt.rc_context({**STYLE, **FONT}):
        height = 0.36 * len(shown) + 0.75 * len(parts) + 0.35
        ratios = [len(p) + 0.4 for p in parts]
        figure, axes = plt.subplots(
            len(parts), 1, figsize=(9.2, height), squeeze=False, gridspec_kw={"height_ratios": ratios, "hspace": 0.75}
        )
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
    wide = min(4, max(2, len(shown)))
    tall = -(-len(shown) // wide)
    with plt.rc_context({**STYLE, **FONT, "axes.titlesize": 8.5}):
        figure, axes = plt.subplots(
            tall, wide, figsize=(9.2, 1.75 * tall + 0.3), squeeze=False, gridspec_kw={"wspace": 0.12, "hspace": 0.55}
        )
        for ax in axes.flat[len(shown) :]:
            ax.axis("off")
        limits = {d: _limits([g for g in shown if g.dataset == d]) for d in {g.dataset for g in shown}}
        several = len(limits) > 1 or len({g.backbone for g in shown}) > 1
        for i, (ax, g) in enumerate(zip(axes.flat, shown, strict=False)):
            _curve_panel(ax, g, f"{g.label}\n{g.backbone} · {g.dataset}" if several else g.label)
            ax.set(xlim=(0, limits[g.dataset][0]), ylim=(0, limits[g.dataset][1]))
            same = i % wide and shown[i - 1].dataset == g.dataset
            ax.set_ylabel("" if i % wide else "kNN top-1, %")
            ax.tick_params(labelleft=not same)
            if i + wide >= len(shown):
                ax.set_xlabel("optimizer step")
        handles = {text: h for ax in axes.flat for h, text in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(
            handles.values(),
            handles.keys(),
            ncols=len(handles),
            loc="lower right",
            bbox_to_anchor=(0.9, 0.9 + 0.25 / figure.get_figheight()),
        )
        return svg(figure)


def _limits(groups: list[Group]) -> tuple[float, float]:
    found = [r.curve for g in groups for r in g.runs if r.curve is not None]
    base = [v for g in groups for key, *_ in BASELINES if (v := g.mean("baselines", key, "knn_top1")) is not None]
    return 1.03 * max(1.0, *(float(s.max()) for s, _ in found)), min(101.0, 1.12 * max([*base, *(float(v.max()) for _, v in found), 1.0]))


def _curve_panel(ax: Axes, g: Group, title: str) -> None:
    for key, name, colour in BASELINES:
        value = g.mean("baselines", key, "knn_top1")
        if value is not None:
            ax.axhline(value, color=colour, ls=(0, (4, 2)), lw=1.2, label=name)
    for i, run in enumerate(r for r in g.runs if r.curve is not None):
        steps, values = run.curve if run.curve is not None else (np.array([]), np.array([]))
        start = g.mean("baselines", "untrained", "knn_top1")
        if start is not None:
            steps, values = np.r_[0, steps], np.r_[start, values]
        ax.plot(steps, values, "o-", color=SEEDS[i % len(SEEDS)], ms=2.2, lw=1.2, label="trained, a line per seed" if not i else None)
    first, *rest = title.split("\n")
    ax.set_title(label(first, 30), pad=12 if rest else 4, color=INK)
    if rest:
        ax.text(0, 1.02, label(rest[0], 40), transform=ax.transAxes, fontsize=7.5, color="#6c757d")

"""The cells of the benchmark table, and the table as Markdown and in the terminal."""

import re
import shlex
from collections.abc import Callable, Iterable

from rich.table import Table
from rich.text import Text

from ssl_zoo.reports.collect import Problem
from ssl_zoo.reports.groups import LABELS, Group, Measure
from ssl_zoo.reports.page import printable

STALE = "†"
NOTE = (
    "Percent of the images judged on, after the last epoch, mean ± sample standard deviation over seeds. Bold: the highest among rows of "
    "one data set that were measured in one way."
)
HEAD = ("method", "backbone", "data", "batch", "epochs", "seeds")


def columns(groups: Iterable[Group]) -> dict[str, str]:
    """{key of a measure: title} of every column that some row fills; of protocols beyond the two that every run has, top-1 alone."""
    found = {c for g in groups for c in g.measures if c in LABELS or c.endswith("_top1")}
    return {c: LABELS.get(c) or c.replace("_top", " top-") for c in [*(c for c in LABELS if c in found), *sorted(found - set(LABELS))]}


def protocols(groups: Iterable[Group], shown: Iterable[str]) -> dict[str, str]:
    """{how a number was measured: its letter}, in the order of the table; the letters are empty where there is one protocol."""
    found = list(dict.fromkeys(g.measures[c].protocol for c in shown for g in groups if c in g.measures and g.measures[c].protocol))
    return {text: "" if len(found) == 1 else _letters(i) for i, text in enumerate(found)}


def _letters(index: int) -> str:
    return (_letters(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def head(g: Group) -> list[str]:
    """The cells before the numbers."""
    batch = g.mean("global_batch")
    return [g.label, g.backbone, g.dataset, "–" if batch is None else f"{batch:.0f}", f"{g.runs[0].summary['epochs']}", f"{len(g.runs)}"]


def percent(m: Measure | None, seeds: int) -> str:
    """Mean ± std; where not every seed has the number, how many have."""
    if m is None:
        return "–"
    few = "" if len(m.values) == seeds else f" ({len(m.values)} of {seeds})"
    return f"{m.mean:.1f}" + ("" if m.std is None else f" ± {m.std:.1f}") + few


def cost(g: Group) -> list[str]:
    """Minutes, images per second and MiB of a row."""
    values = (g.minutes, g.mean("speed", "images_per_s"), g.mean("speed", "peak_memory_mib"))
    return ["–" if v is None else f"{v:.1f}" if v < 10 else f"{v:,.0f}" for v in values]


def stale_notes(groups: Iterable[Group]) -> list[str]:
    """What has changed since the runs of stale rows, and why a row could not be checked; one sentence for rows that share it."""
    notes: dict[str, list[str]] = {}
    for g in groups:
        told = [f"{k} was {a} and would be {b}" for k, (a, b) in list(g.stale.items())[:6]]
        told += [f"and {len(g.stale) - 6} more"] if len(g.stale) > 6 else []
        unchecked = f"could not be checked against today's recipes: {g.unchecked}" if g.unchecked else ""
        if text := "; ".join(told) or unchecked:
            notes.setdefault(text, []).append(" ".join(head(g)[:3]))
    return [f"{', '.join(names)}: {text}" for text, names in notes.items()]


# ---------------------------------------------------------------------------------------------- Markdown
def escape_markdown(text: str) -> str:
    line = " ".join(printable(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    line = re.sub(r"([\\|`*\[\]~$])", r"\\\1", line)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)


def markdown(groups: list[Group], problems: list[Problem], title: str) -> str:
    """The table with its footnotes."""
    shown, e = columns(groups), escape_markdown
    letters = protocols(groups, shown)
    lines = [f"# {e(title)}", "", *_rows(groups, shown, letters, e)]
    lines += ["", NOTE]
    if any(g.published for g in groups):
        lines[-1] += " Published numbers follow their own protocols and are not comparable with ours."
    lines += [f"\n{'Measured' if not a else f'({a})'}: {e(text)}" for text, a in letters.items()]
    sections = {
        f"{STALE} Stale": [e(n) for n in stale_notes(groups)],
        "Published": [e(n) for n in dict.fromkeys(p.how for g in groups for p in g.published)],
        "Commands": [f"{e(g.label)}: `{command(g).replace('`', ' ')}`" for g in groups],
        "Not in the table": [f"{e(str(p.folder))}: {e(p.reason)}" for p in problems],
    }
    for heading, items in sections.items():
        lines += ["", f"## {heading}", "", *(f"- {item}" for item in items)] if items else []
    return "\n".join(lines) + "\n"


def _rows(groups: list[Group], shown: dict[str, str], letters: dict[str, str], e: Callable[[str], str]) -> list[str]:
    titles = [*HEAD, *shown.values(), "minutes", "images/s", "MiB", "published", "config"]
    left = ("method", "backbone", "data", "published", "config")
    lines = [[*map(e, titles)], [":--" if t in left else "--:" for t in titles]]
    for g in groups:
        first, *rest = map(e, head(g))
        numbers = []
        for c in shown:
            text, m = e(percent(g.measures.get(c), len(g.runs))), g.measures.get(c)
            letter = letters.get(m.protocol, "") if m else ""
            numbers.append((f"**{text}**" if c in g.best else text) + (f" <sup>{letter}</sup>" if letter else ""))
        published = e("; ".join(p.short for p in g.published)) or "–"
        lines.append([f"{first} {STALE}" if g.stale else first, *rest, *numbers, *cost(g), published, e(g.texts("config_hash")[0][:8])
                      if g.texts("config_hash") else "–"])  # fmt: skip
    return [f"| {' | '.join(line)} |" for line in lines]


def command(g: Group) -> str:
    """What made the first run of a row, without its folder."""
    first = printable(next(iter(g.runs[0].commands), ""))
    try:
        return shlex.join(w for w in shlex.split(first) if not w.startswith("run="))
    except ValueError:  # a quote that is not closed
        return first


# ---------------------------------------------------------------------------------------------- terminal
def terminal(groups: list[Group], title: str) -> Table:
    """The table for rich; a row that is stale is dim."""
    shown = columns(groups)
    told = Table(title=Text(printable(title)), title_justify="left")
    for name in (*HEAD, *shown.values(), "minutes"):
        told.add_column(Text(printable(name)), justify="left" if name in HEAD[:3] else "right")
    for g in groups:
        numbers = [Text(percent(g.measures.get(c), len(g.runs)), style="bold" if c in g.best else "") for c in shown]
        first, *rest = (Text(printable(t)) for t in head(g))
        told.add_row(first + Text(f" {STALE}") if g.stale else first, *rest, *numbers, Text(cost(g)[0]), style="dim" if g.stale else "")
    return told

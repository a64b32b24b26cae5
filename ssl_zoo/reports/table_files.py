"""The benchmark table as files for other programs: CSV with raw numbers, and LaTeX."""

import csv
import io
import unicodedata
from typing import Any

from ssl_zoo.reports.collect import number, table
from ssl_zoo.reports.groups import Group
from ssl_zoo.reports.page import printable
from ssl_zoo.reports.table import HEAD, STALE, columns, command, cost, head, percent

LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
         "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
         '"': "''", "[": "{[}", "]": "{]}", "*": "{*}", "±": r"\(\pm\)", "†": r"\dag{}", "–": "--"}  # fmt: skip


# ---------------------------------------------------------------------------------------------- CSV
def group_csv(groups: list[Group]) -> str:
    """Raw numbers, one line for each row of the table."""
    shown = dict.fromkeys(c for g in groups for c in g.measures)
    lines = []
    for g in groups:
        line: dict[str, Any] = {"method": g.method, "variant": g.variant, "backbone": g.backbone, "dataset": g.dataset}
        line |= {"global_batch": g.mean("global_batch"), "epochs": g.runs[0].summary["epochs"], "n": len(g.runs)}
        line |= {"seeds": " ".join(str(r.seed) for r in g.runs)}
        for c in shown:
            if m := g.measures.get(c):
                line |= {f"{c}_mean": m.mean, f"{c}_std": m.std, f"{c}_n": len(m.values), f"{c}_protocol": m.protocol}
        line |= {"minutes": g.minutes} | {k: g.mean("speed", k) for k in ("images_per_s", "peak_memory_mib")}
        line |= {"stale": " ".join(g.stale), "unchecked": g.unchecked, "published": "; ".join(f"{p.short}, {p.how}" for p in g.published)}
        line |= {"command": command(g), "config_hash": " ".join(g.texts("config_hash")), "commit": " ".join(g.texts("commit"))}
        lines.append(line)
    return _csv(lines)


def run_csv(groups: list[Group]) -> str:
    """Raw numbers, one line for each run."""
    lines = []
    for g in groups:
        for r in g.runs:
            line: dict[str, Any] = {"run": str(r.folder), "method": g.method, "variant": g.variant, "backbone": g.backbone}
            line |= {"dataset": g.dataset, "seed": r.seed, "epochs": r.summary["epochs"]}
            line |= {"global_batch": number(r.summary.get("global_batch"))}
            line |= {c: found.value for c, found in r.at_end.items()} | {f"eval_{c}": found.value for c, found in r.judged.items()}
            line |= {"seconds": number(table(r.summary, "seconds").get("total"))}
            line |= {k: number(table(r.summary, "speed").get(k)) for k in ("images_per_s", "peak_memory_mib")}
            line |= {k: r.summary.get(k) for k in ("command", "config_hash", "commit")}
            lines.append(line)
    return _csv(lines)


def _csv(lines: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    columns = list(dict.fromkeys(k for line in lines for k in line))
    csv.writer(out).writerows([[_cell(c) for c in columns], *([_cell(line.get(c)) for c in columns] for line in lines)])
    return out.getvalue()


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula is marked as text, as spreadsheets do it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value


# ---------------------------------------------------------------------------------------------- LaTeX
def escape_latex(text: str) -> str:
    """Text that pdflatex takes: accented Latin letters stay, other letters are told by their code point."""
    out = []
    for c in " ".join(printable(text).split()):
        letter = unicodedata.decomposition(c).split()
        accented = "À" <= c <= "ÿ" and len(letter) == 2
        out.append(LATEX.get(c) or (c if c.isascii() or accented else f"U+{ord(c):04X}"))
    return "".join(out)


def latex(groups: list[Group]) -> str:
    """A tabular without a float around it; needs the package booktabs."""
    shown, e = columns(groups), escape_latex
    titles = [*HEAD, *shown.values(), "minutes"]
    lines = ["% \\usepackage{booktabs}", rf"\begin{{tabular}}{{lll{'r' * (len(titles) - 3)}}}", r"\toprule"]
    lines += [" & ".join(map(e, titles)) + r" \\", r"\midrule"]
    for before, g in zip([None, *groups], groups, strict=False):
        if before and before.dataset != g.dataset:
            lines.append(r"\midrule")
        first, *rest = map(e, head(g))
        texts = [(c, e(percent(g.measures.get(c), len(g.runs)))) for c in shown]
        numbers = [rf"\textbf{{{t}}}" if c in g.best else t for c, t in texts]
        lines.append(" & ".join([f"{first} {e(STALE)}" if g.stale else first, *rest, *numbers, e(cost(g)[0])]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

"""index.html: many runs on one self-contained page, with the same table as Markdown, CSV and LaTeX beside it."""

import base64
import os
import urllib.parse
from pathlib import Path

from ssl_zoo.reports import benchmark_figures as figures
from ssl_zoo.reports.benchmark_look import LOOK, SORT
from ssl_zoo.reports.collect import Problem, Run
from ssl_zoo.reports.groups import Group, Measure
from ssl_zoo.reports.page import escaped as _e
from ssl_zoo.reports.page import page, printable, write_page
from ssl_zoo.reports.published import Published
from ssl_zoo.reports.table import HEAD, NOTE, STALE, columns, command, cost, head, markdown, protocols, stale_notes
from ssl_zoo.reports.table_files import group_csv, latex, run_csv

LEAD = "Rows marked † are stale and do not compete. Minutes are of all starts of a run together, on the machine that it ran on."
OTHERS = "Published numbers come from other code under other protocols and are shown for orientation only."


def write_benchmark(groups: list[Group], problems: list[Problem], out: Path, title: str) -> list[Path]:
    """Write index.html, table.md, table.csv, runs.csv and table.tex into `out`; returns the page and the Markdown table."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "table.md": markdown(groups, problems, title),
        "table.csv": group_csv(groups),
        "runs.csv": run_csv(groups),
        "table.tex": latex(groups),
        "index.html": render(groups, problems, out, title),
    }
    for name, text in texts.items():
        write_page(out / name, text)
    return [out / "index.html", out / "table.md"]


def render(groups: list[Group], problems: list[Problem], out: Path, title: str) -> str:
    """The page. out: the folder that its links start from."""
    shown = columns(groups)
    letters = protocols(groups, shown)
    sources = list(dict.fromkeys(p.how for g in groups for p in g.published))
    count = sum(len(g.runs) for g in groups)
    rows = f"{count} run{'s' * (count != 1)} in {len(groups)} row{'s' * (len(groups) != 1)}."
    stale = stale_notes(groups)
    parts = [
        f'<p class="lead">{_e(f"{rows} {NOTE} {LEAD}")}</p>',
        '<section><h2>Results</h2><div class="scroll" tabindex="0" role="region" aria-label="Results">',
        f"{_table(groups, shown, letters, sources, out)}</div>{_protocols(letters)}</section>",
        _figure(figures.overview(groups), "Summary", "Mean and standard deviation of each row; thin marks are seeds."),
        _figure(figures.curves(groups), "kNN while training", "One panel per row, one line per seed, the same axes for one data set."),
        _list(f"{STALE} Stale rows", stale, "What the commands of these rows would train today is not what was trained."),
        _list("Published numbers", sources, OTHERS, "s"),
        _commands(groups),
        _list("Not in the table", [f"{p.folder}: {p.reason}" for p in problems]),
    ]
    return page(printable(title), "\n".join(p for p in parts if p), LOOK, SORT)


# ---------------------------------------------------------------------------------------------- the table
def _table(groups: list[Group], shown: dict[str, str], letters: dict[str, str], sources: list[str], out: Path) -> str:
    numbers = (*HEAD[3:], *shown.values(), "minutes", "images/s", "MiB")
    heads = [f'<th scope="col" data-kind="text">{_e(h)}</th>' for h in HEAD[:3]]
    common = {c: next(iter(used)) for c in shown if len(used := _letters_of(c, groups, letters)) == 1}
    marks = {title: _mark(common.get(c, "")) for c, title in shown.items()}
    heads += [
        f'<th scope="col" data-kind="number" class="number">{_e(h).replace("top-", "top&#8209;")}{marks.get(h, "")}</th>' for h in numbers
    ]
    heads += [f'<th scope="col">{h}</th>' for h in ("published", "reports", "config")]
    body = "\n".join(_row(g, {c: {} if c in common else letters for c in shown}, sources, out) for g in groups)
    return f'<table id="results"><thead><tr>{"".join(heads)}</tr></thead><tbody>\n{body}\n</tbody></table>'


def _letters_of(column: str, groups: list[Group], letters: dict[str, str]) -> set[str]:
    return {letters.get(g.measures[column].protocol, "") for g in groups if column in g.measures}


def _mark(letter: str) -> str:
    return f'<sup><a href="#how-{letter}">{letter}</a></sup>' if letter else ""


def _row(g: Group, shown: dict[str, dict[str, str]], sources: list[str], out: Path) -> str:
    """shown: the columns, and for each the letters of its protocols where rows differ in them."""
    _, *texts = head(g)
    stale = f' <abbr title="{_e("stale: " + ", ".join(g.stale))}">{STALE}</abbr>' if g.stale else ""
    variant = f"<small>{_e(g.variant)}</small>" if g.variant else ""
    cells = [f'<td data-value="{_e(g.label)}"><span>{_e(g.method)}{stale}</span>{variant}</td>']
    cells += [f'<td data-value="{_e(t)}">{_e(t)}</td>' for t in texts[:2]]
    cells += [_number(t, t.replace("–", "")) for t in texts[2:]]
    for c, letters in shown.items():
        m = g.measures.get(c)
        cells.append(_number(_measure(m, len(g.runs), c in g.best, letters), f"{m.mean}" if m else ""))
    values = (g.minutes, g.mean("speed", "images_per_s"), g.mean("speed", "peak_memory_mib"))
    cells += [_number(t, "" if v is None else f"{v}") for t, v in zip(cost(g), values, strict=True)]
    cells.append(f"<td>{''.join(_published(p, sources) for p in g.published) or '–'}</td>")
    cells.append(f"<td>{', '.join(_link(r, out) for r in g.runs)}</td>")
    hashes, commits = g.texts("config_hash"), g.texts("commit")
    told = f'<code title="{_e(" ".join(hashes))}">{_e(hashes[0][:8])}</code>' if hashes else "–"
    told += f'<small title="commit">{_e(" ".join(c[:14] for c in commits))}</small>' if commits else ""
    return f"{'<tr class=stale>' if g.stale else '<tr>'}{''.join(cells)}<td>{told}</td></tr>"


def _number(shown: str, value: str) -> str:
    return f'<td class="number" data-value="{value}">{shown}</td>'


def _measure(m: Measure | None, seeds: int, best: bool, letters: dict[str, str]) -> str:
    if m is None:
        return "–"
    text = f"<b>{m.mean:.1f}</b>" if best else f"{m.mean:.1f}"
    text += f'<span class="std"> ± {m.std:.1f}</span>' if m.std is not None else ""
    text += f" ({len(m.values)} of {seeds})" if len(m.values) != seeds else ""
    return text + _mark(letters.get(m.protocol, ""))


def _published(p: Published, sources: list[str]) -> str:
    n = sources.index(p.how) + 1
    return f'<small title="{_e(p.how)}">{_e(p.short)} <sup><a href="#s{n}">{n}</a></sup></small>'


def _link(run: Run, out: Path) -> str:
    file = run.folder / "report.html"
    name = _e(str(run.seed))
    if not file.is_file():
        return name
    place = urllib.parse.quote(os.fsencode(os.path.relpath(file, out)))
    return f'<a href="{place}" aria-label="report of seed {name}">{name}</a>'


# ---------------------------------------------------------------------------------------------- below it
def _protocols(letters: dict[str, str]) -> str:
    marks = {t: (f' id="how-{a}"', f"<sup>{a}</sup> ") if a else ("", "") for t, a in letters.items()}
    return "".join(f'<p class="note"{anchor}>{mark}{_e(t)}</p>' for t, (anchor, mark) in marks.items())


def _figure(drawn: bytes | None, title: str, caption: str) -> str:
    if drawn is None:
        return ""
    source = base64.b64encode(drawn).decode()
    picture = f'<div class="scroll wide"><img alt="{_e(title)}" src="data:image/svg+xml;base64,{source}"></div>'
    return f'<section><h2>{_e(title)}</h2>{picture}<p class="note">{_e(caption)}</p></section>'


def _list(title: str, items: list[str], note: str = "", anchor: str = "") -> str:
    if not items:
        return ""
    kind = "ol" if anchor else "ul"
    told = "".join(f'<li id="{anchor}{i}">{_e(t)}</li>' if anchor else f"<li>{_e(t)}</li>" for i, t in enumerate(items, 1))
    below = f'<p class="note">{_e(note)}</p>' if note else ""
    return f"<section><h2>{_e(title)}</h2><{kind}>{told}</{kind}>{below}</section>"


def _commands(groups: list[Group]) -> str:
    told = "".join(f"<h3>{_e(g.label)} · {_e(g.backbone)} · {_e(g.dataset)}</h3><pre>{_e(command(g))}</pre>" for g in groups)
    return f'<section><h2>Get them again</h2>{told}<p class="note">The command of the first seed of each row.</p></section>'

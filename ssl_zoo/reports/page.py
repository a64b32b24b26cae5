"""The skeleton of every page: one look, one self-contained file."""

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from ssl_zoo.files import whole

STYLE = """\
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: #22313f; background: #f8f9fa; margin: 0; }
main { max-width: 1000px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 0 0 12px; }
.verdict { font-size: 16px; margin: 4px 0 20px; } .bad { color: #9e2a2b; font-weight: 600; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin-bottom: 20px; }
.card { background: #fff; border: 1px solid #e9ecef; border-radius: 8px; padding: 12px 18px; min-width: 128px; }
.card b { display: block; font-size: 25px; color: #2a6f97; } .card.plain b { color: #6c757d; }
section { background: #fff; border: 1px solid #e9ecef; border-radius: 8px; padding: 18px 20px; margin-bottom: 18px; overflow-x: auto; }
img { max-width: 100%; display: block; } p.note { color: #6c757d; font-size: 13.5px; margin: 8px 0 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { padding: 5px 14px 5px 0; border-bottom: 1px solid #f1f3f5; vertical-align: top; overflow-wrap: anywhere; text-align: left; }
th { color: #6c757d; font-weight: 600; border-bottom: 2px solid #e9ecef; white-space: nowrap; }
td:first-child { color: #6c757d; white-space: nowrap; width: 1%; }
table.wide { font-size: 13.5px; } table.wide td:first-child { color: inherit; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td small { color: #6c757d; font-size: 12px; }
pre { background: #22313f; color: #f8f9fa; padding: 12px 16px; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def printable(text: str) -> str:
    """Text without bytes that are none and without control characters, among them those that turn the direction of writing."""
    whole = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else " " for c in whole)


def escaped(text: str) -> str:
    """Any text as HTML that shows it."""
    return html.escape(printable(text))


def _policy(script: str) -> str:
    """What a browser may do for the page: show what lies in it and run this one script, and nothing that came in otherwise."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    runs = f"script-src 'sha256-{digest}'; " if script else ""
    return f"default-src 'none'; {runs}style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page under its title, which is text; body is HTML, style and script what only this page needs."""
    title, script = escaped(title), f"\n{script}" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}{style}</style></head><body><main>\n<h1>{title}</h1>\n{body}\n</main>"
        + (f"<script>{script}</script>" if script else "")
        + "</body></html>\n"
    )


def section(body: str, heading: str | None = None) -> str:
    """HTML in a box of its own; heading: text."""
    head = f"<h2>{escaped(heading)}</h2>" if heading else ""
    return f"<section>{head}{body}</section>\n"


def picture(name: str, file: Path, caption: str) -> str:
    """An image that lies inside the page, and a sentence about it."""
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<img alt="{escaped(name)}" src="data:image/png;base64,{data}"><p class="note">{escaped(caption)}</p>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A table of (what, text)."""
    return f"<table>{''.join(f'<tr><td>{escaped(k)}</td><td>{escaped(v)}</td></tr>' for k, v in rows)}</table>"


def wide_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table with a head. Cells are HTML; columns whose index is in `numbers` are set to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = (' class="number"' if i in numbers else "" for i in range(len(cells)))
        return f"<tr>{''.join(f'<{tag}{kind}>{c}</{tag}>' for kind, c in zip(kinds, cells, strict=True))}</tr>"

    return f'<table class="wide">{line(head, "th")}{"".join(line(r, "td") for r in rows)}</table>'


def write_page(file: Path, text: str) -> Path:
    """Write a page whole or not at all; file names may hold bytes that are no text."""
    with whole(file, sync=False) as f:
        f.write(text.encode(errors="backslashreplace"))
    return file

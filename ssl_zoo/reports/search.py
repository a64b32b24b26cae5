"""What `ssl-zoo search` found: pictures, tables and a page."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from ssl_zoo.files import whole
from ssl_zoo.reports.page import escaped, page, picture, section, wide_table, write_page
from ssl_zoo.reports.pictures import Mosaic
from ssl_zoo.reports.style import INK, STYLE, plain, save

SHOWN = 200  # rows of a table on the page
PICTURES = 8  # of a group


def draw_neighbours(file: Path, queries: np.ndarray, names: Sequence[str], found: Sequence[np.ndarray], cosines: np.ndarray) -> Path:
    """queries uint8 [Q, 3, S, S], what they are called, for each its neighbours [k, 3, S, S], and their cosines [Q, k]."""
    with plt.rc_context(STYLE):
        shown = Mosaic(len(queries), 1 + cosines.shape[1], 1.15, 0.06)
        for r, (query, name) in enumerate(zip(queries, names, strict=True)):
            shown.show(r, 0, query, INK)
            shown.ax.text(-0.04, r + 0.5, plain(_short(name)), fontsize=8, rotation=90, ha="right", va="center")
            for c, image in enumerate(found[r]):
                shown.show(r, c + 1, image)
                _write(shown, r, c + 1, f"{cosines[r, c]:.3f}")
        return save(shown.titled(["query", "nearest"]), file)


def draw_duplicates(file: Path, groups: Sequence[np.ndarray], cosines: Sequence[Sequence[float]], names: Sequence[str]) -> Path:
    """Groups of images, each uint8 [n, 3, S, S], in rows, with the cosine of each; names: what is written beside a group."""
    with plt.rc_context(STYLE):
        shown = Mosaic(len(groups), max(map(len, groups)), 1.15, 0.06)
        for r, (images, name) in enumerate(zip(groups, names, strict=True)):
            shown.ax.text(-0.04, r + 0.5, plain(name), fontsize=8, rotation=90, ha="right", va="center")
            for c, image in enumerate(images):
                shown.show(r, c, image)
                _write(shown, r, c, f"{cosines[r][c]:.4f}")
        return save(shown.figure, file)


def _write(shown: Mosaic, row: int, column: int, text: str) -> None:
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    shown.ax.text(column + 0.93, row + 0.93, text, fontsize=7, ha="right", va="bottom", bbox=box)


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"…{name[-19:]}"


def write_csv(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows with the same keys; text that a spreadsheet would compute begins with an apostrophe."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"'{v}" if isinstance(v, str) and v[:1] in "=+-@\t\r" and v else v for k, v in row.items()})
    with whole(file) as f:
        f.write(out.getvalue().encode("utf-8", "backslashreplace"))
    return file


def write_search(folder: Path, title: str, parts: list[tuple[str, Path | None, list[dict[str, Any]], str]]) -> Path:
    """search.html. parts: (heading, figure, rows of its table, a sentence)."""
    body = ""
    for heading, figure, rows, said in parts:
        inner = picture(heading, figure, said) if figure else f'<p class="note">{escaped(said)}</p>'
        if rows:
            cells = ([escaped(_cell(v)) for v in row.values()] for row in rows[:SHOWN])
            numbers = [i for i, v in enumerate(rows[0].values()) if isinstance(v, (int, float))]
            inner += wide_table([escaped(k) for k in rows[0]], cells, numbers)
        if len(rows) > SHOWN:
            inner += f'<p class="note">The first {SHOWN} of {len(rows):,} rows; the CSV has all.</p>'
        body += section(inner, heading)
    return write_page(folder / "search.html", page(title, body))


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "–" if value is None else str(value)

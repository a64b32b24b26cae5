"""The part of a run's page that tells what `ssl-zoo eval` found: `<run>/eval/*.json`. A file that is damaged gets a note."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ssl_zoo.reports import scores
from ssl_zoo.reports.page import escaped, picture, section, wide_table
from ssl_zoo.reports.style import STYLE, save

Result = tuple[str, dict[str, Any]]  # name of the file, what it holds
ORDER = ("linear", "linear_dinov2", "linear_dino", "linear_mocov3", "linear_mocov2", "linear_simclr", "linear_byol", "linear_simsiam",
         "linear_barlow", "linear_vicreg", "finetune", "knn", "few_shot", "zero_shot", "retrieval", "health")  # fmt: skip
DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError)
COMMON = ("top1", "top5", "train_images", "test_images", "seed", "epochs")  # numbers that have their own place
NOT_SETTINGS = ("std", "interval", "per_draw", "top5", "per_class", "confusion")  # of one of several results
HEAD = ("protocol", "data set", "top-1, %", "top-5, %", "more", "settings", "seconds")


def evaluation_section(run: Path) -> str:
    """HTML of the section "Evaluation" and of its figures, which are drawn into figures/; empty without eval/*.json."""
    files = sorted((run / "eval").glob("*.json"))
    if not files:
        return ""
    results, damaged = read_results(files)
    lines: list[list[str]] = []
    for name, result in list(results):
        try:
            lines += rows(result)
        except DAMAGE:
            results.remove((name, result))
            damaged.append(name)
    drawn = "".join(section(picture(*d)) for d in draw(run / "figures", results, damaged))
    files_left = escaped(", ".join(f"eval/{n}.json" for n in sorted(set(damaged))))
    told = f'<p class="note">Damaged, so what they hold is not all here: {files_left}.</p>'
    how = '<p class="note">Brackets: 95 % interval. Every number is from eval/*.json of this run.</p>'
    body = (wide_table(HEAD, lines, numbers=(2, 3, 6)) + how if lines else "") + (told if damaged else "")
    return section(body, "Evaluation") + drawn


def read_results(files: list[Path]) -> tuple[list[Result], list[str]]:
    """The results in the order of the page, those on the run's own data set first; and the names of files that hold none."""
    results, damaged = [], []
    for file in files:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(found["protocol"], str) or not isinstance(found["dataset"], str):
                raise TypeError
            results.append((file.stem, found))
        except (OSError, *DAMAGE):
            damaged.append(file.stem)
    return sorted(results, key=_place), damaged


def _place(result: Result) -> tuple[bool, int, str]:
    name, protocol = result[0], result[1]["protocol"]
    return name != protocol, ORDER.index(protocol) if protocol in ORDER else len(ORDER), name


def rows(r: dict[str, Any]) -> list[list[str]]:
    """The lines of the table for one result: its own, and one for each of several settings."""
    more = [f"{which} {r[which]['top1']:.1f} after epoch {r[which]['epoch']}" for which in ("final", "best") if which in r]
    numbers = {_word(k): v for k, v in r.items() if type(v) in (int, float) and k not in COMMON}
    more += [f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.3g}" if abs(v) < 1000 else f"{k} {v:,.0f}" for k, v in numbers.items()]
    of = r.get("features") or {}
    used = [f"{k} {of[k]}" for k, usual in (("net", "auto"), ("layer", None), ("blocks", 1), ("pool", "auto")) if of.get(k, usual) != usual]
    used += [f"{r['train_images']:,} training images"] if isinstance(r.get("train_images"), int) else []
    seconds = sum((r.get("seconds") or {}).values())
    lines = [[r["protocol"], r["dataset"], _top1(r), _number(r.get("top5")), "; ".join(more),
              "; ".join([words(r.get("settings") or {}), *used]).strip("; "), f"{seconds:.1f}" if seconds else "–"]]  # fmt: skip
    several = r.get("results") or []
    if len(several) > 1 or "top1" not in r:
        for one in several:
            draws = [f"{len(one['per_draw'])} draws"] if one.get("per_draw") else []
            own = {k: v for k, v in one.items() if not k.startswith("top1") and k not in NOT_SETTINGS}
            lines.append(["", "", _top1(one), _number(one["top5"]) if "top5" in one else "", "; ".join(draws), words(own), ""])
    return [[cell if i == 2 else escaped(cell) for i, cell in enumerate(line)] for line in lines]


def _top1(r: dict[str, Any]) -> str:
    low, high = r.get("top1_interval") or r.get("interval") or (None, None)
    within = f" <small>[{low:.1f}, {high:.1f}]</small>" if low is not None and high is not None else ""
    return _number(r.get("top1")) + (f" ± {r['std']:.1f}" if r.get("std") is not None else "") + within


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _word(key: str) -> str:
    return key.replace("_at_", "@").replace("_", " ")


def words(settings: dict[str, Any]) -> str:
    """Settings as a person would say them."""
    return ", ".join(f"{_word(str(k))} {_value(v)}" for k, v in settings.items())


def _value(v: Any) -> str:
    if isinstance(v, dict):
        return f"({words(v)})"
    if isinstance(v, list):
        return f"{_value(v[0])} … {_value(v[-1])} ({len(v)})" if len(v) > 3 else " | ".join(map(_value, v))
    return {None: "none", True: "yes", False: "no"}[v] if v is None or isinstance(v, bool) else f"{v:g}" if isinstance(v, float) else str(v)


def draw(folder: Path, results: list[Result], damaged: list[str]) -> list[tuple[str, Path, str]]:
    """(name, file, caption) of every figure that the results have data for; names of those that cannot be drawn go to `damaged`."""
    folder.mkdir(exist_ok=True)
    made = []
    with plt.rc_context(STYLE):
        for name, of, make, caption in _figures(results):
            try:
                figure = make()
                if figure is not None:
                    made.append((name, save(figure, folder / f"eval_{name}.png"), caption))
            except DAMAGE:
                plt.close("all")
                damaged.append(of)
    return made


def _figures(results: list[Result]) -> Iterator[tuple[str, str, Callable[[], Figure | None], str]]:
    """(name, file it is of, how to draw it, caption) from the first result that has what a figure shows."""

    def first(field: str, protocol: str = "") -> Iterator[tuple[str, dict[str, Any], str]]:
        found = [(n, r) for n, r in results if r.get(field) and r["protocol"].startswith(protocol)]
        return iter([(n, r, f"{r['protocol']} on {r['dataset']}") for n, r in found][:1])

    for n, r, what in first("confusion"):
        yield "confusion", n, lambda r=r: scores.confusion(r["confusion"], r.get("classes") or []), f"What is taken for what: {what}."
    for n, r, what in first("confusion", "zero_shot"):
        if r is not next(first("confusion"))[1]:
            told = f"What is taken for what by words alone: {what}."
            yield "zero_shot", n, lambda r=r: scores.confusion(r["confusion"], r.get("classes") or []), told
    for n, r, what in first("calibration"):
        yield "calibration", n, lambda r=r: scores.calibration(r["calibration"]), f"Whether confidence can be believed: {what}."
    for n, r, what in first("per_class"):
        yield "per_class", n, lambda r=r: scores.per_class(r["per_class"]), f"Which classes are told apart: {what}."
    whole = next(((r["protocol"], r["top1"]) for _, r, _ in first("top1", "linear")), None)
    for n, r, what in first("results", "few_shot"):
        yield "few_shot", n, lambda r=r: scores.few_shot(r["results"], whole), f"How far few labels go: {what}."
    for n, r, what in first("singular_values", "health"):
        yield "spectrum", n, lambda r=r: scores.spectrum(r), f"How variance spreads over directions and dimensions: {what}."
    for n, r, what in first("cka", "health"):
        yield "cka", n, lambda r=r: scores.cka(r["cka"]), f"How alike representations of the same images are, from 0 to 1: {what}."

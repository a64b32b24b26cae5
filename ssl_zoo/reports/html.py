"""report.html: a run on one self-contained page."""

import json
from pathlib import Path
from typing import Any

from ssl_zoo.reports.evaluations import evaluation_section
from ssl_zoo.reports.figures import draw_all
from ssl_zoo.reports.page import escaped, facts, page, picture, section, write_page


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


def cards(summary: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(value, what it is, whether it is a baseline) for the top of the page."""
    final, base = summary["final"], summary["baselines"]
    shown = [
        (_percent(final.get("knn_top1")), "kNN, trained", False),
        (_percent(base.get("untrained", {}).get("knn_top1")), "kNN, untrained", True),
        (_percent(base.get("raw_pixels", {}).get("knn_top1")), "kNN, raw pixels", True),
        (_percent(final.get("linear_top1")), "linear probe, trained", False),
        (_percent(base.get("raw_pixels", {}).get("linear_top1")), "linear probe, raw pixels", True),
    ]
    found = summary["health"].get("effective_rank")
    rank = ("–" if found is None else f"{found:.0f} / {summary['num_features']}", "effective rank", False)
    return [c for c in [*shown, rank] if c[0] != "–"]


def rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The table of the page."""
    d, s, speed, best = summary["data"], summary["seconds"], summary["speed"], summary["best"]
    skipped = f"; {d['skipped_count']} files skipped: {', '.join(d['skipped'][:5])}" if d["skipped"] else ""
    where = "held on the device" if d["resident"] else "memory-mapped on the host"
    backbone = f"{summary['parameters'] / 1e6:.2f} M parameters, {summary['num_features']} features, stem: {summary['stem']}"
    kind = "held-out" if d.get("held_out") else "test"
    images = f"{d['train']:,} training and {d['test']:,} {kind} images of {summary['image_size']} px, {d['classes']} classes"
    parts = f"training {s['training']:.0f}, evaluation {s['evaluation']:.0f}, data and model {s['data_and_model']:.0f}"
    memory = "" if speed["peak_memory_mib"] is None else f", {speed['peak_memory_mib']:,.0f} MiB at peak"
    hardware = f"{speed['devices']} x {speed['device']} in {speed['precision']}{memory}"
    return [
        ("run", summary["name"]),
        ("training", f"{summary['epochs']} epochs, {summary['steps']} steps of {summary['global_batch']} images, seed {summary['seed']}"),
        ("best kNN", f"{best['knn_top1']:.1f} % after epoch {best['epoch']} (final: epoch {summary['epochs']})" if best else "no labels"),
        ("backbone", backbone),
        ("data", f"{images}, {where}{skipped}"),
        ("time", f"{s['total']:.0f} s in all: {parts}"),
        ("speed", f"{speed['images_per_s']:,.0f} images/s on {hardware}"),
        ("measured", summary["evaluation"]),
        ("config", f"config.yaml, hash {summary['config_hash']}"),
    ]


def write_report(run: Path) -> Path:
    """Draw the figures of `run` and write report.html; needs summary.json. Returns the page."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    bad = "" if summary["verdict"].startswith("Healthy") else " bad"
    shown = "".join(
        f'<div class="card{" plain" if plain else ""}"><b>{escaped(v)}</b>{escaped(what)}</div>' for v, what, plain in cards(summary)
    )
    versions = ", ".join(f"{k} {v}" for k, v in summary["versions"].items()) + (
        f", commit {summary['commit']}" if summary["commit"] else ""
    )
    command = "\n".join(escaped(line) for line in summary["command"].split("\n"))
    body = (
        f'<p class="verdict{bad}">{escaped(summary["verdict"])}</p>\n<div class="cards">{shown}</div>\n',
        _pictures(run),
        evaluation_section(run),
        section(facts(rows(summary)), "The run"),
        section(f'<pre>{command}</pre><p class="note">{escaped(versions)}</p>', "Get it again"),
    )
    return write_page(run / "report.html", page(" · ".join(summary["name"].split("_", 2)), "".join(body)))


def _pictures(folder: Path) -> str:
    return "".join(section(picture(name, file, caption)) for name, (file, caption) in draw_all(folder).items())


def write_evaluations(folder: Path, title: str) -> Path:
    """report.html of a folder that holds no run, only what `ssl-zoo eval` found of other weights. Returns the page."""
    return write_page(folder / "report.html", page(title, _pictures(folder) + evaluation_section(folder)))


def table(summary: dict[str, Any], run: Path) -> list[tuple[str, str]]:
    """The six lines that end a run in the terminal."""
    final, base, s = summary["final"], summary["baselines"], summary["seconds"]
    untrained, raw = base.get("untrained", {}), base.get("raw_pixels", {})
    compared = f"   untrained {_percent(untrained.get('knn_top1'))}, raw pixels {_percent(raw.get('knn_top1'))}" if base else ""
    linear = f"   raw pixels {_percent(raw.get('linear_top1'))}" if "linear_top1" in raw else ""
    return [
        ("kNN top-1", f"{_percent(final.get('knn_top1'))}{compared}" if "knn_top1" in final else summary["evaluation"]),
        ("linear probe", f"{_percent(final.get('linear_top1'))}{linear}"),
        ("health", summary["verdict"]),
        ("time", f"{s['total']:.0f} s, of which training {s['training']:.0f} s at {summary['speed']['images_per_s']:,.0f} images/s"),
        ("weights", str(run / "backbone.safetensors")),
        ("report", str(run / "report.html")),
    ]

"""README.md of an exported folder: a model card with what a run was, what it reached and how to load it."""

import json
import re
from typing import Any

from ssl_zoo.reports.page import printable
from ssl_zoo.reports.results import told as numbers


def model_card(
    summary: dict[str, Any], manifest: dict[str, Any], dataset: str, evaluations: list[dict[str, Any]], paper: str, license: str | None
) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads.

    summary: summary.json of the run. manifest: export.json. dataset: what it was trained on, in words. evaluations: results of
    `ssl-zoo eval`. paper: of the method, in a line. license: of the weights; None where nobody has said.
    """
    name, prepared = _line(summary["name"]), manifest["preprocessing"]
    timm = "import timm" in manifest["load"]
    front = {
        "library_name": "timm" if timm else "ssl-zoo",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised", "image-feature-extraction", "ssl_zoo", *(["timm"] if timm else [])],
        **({"license": license} if license else {}),
    }
    mean, std = (", ".join(f"{v:.4f}" for v in prepared[k]) for k in ("mean", "std"))
    head = "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---"])
    body = [
        f"# {name}",
        f"A vision backbone ({summary['parameters'] / 1e6:.1f} M parameters, {summary['num_features']} features) that was trained without "
        f"labels on {_line(dataset)} with ssl_zoo.",
        f"Method: {_line(paper)}",
        "## Use",
        _block("python", manifest["load"]),
        f"`net` maps images [B, 3, {prepared['image_size']}, {prepared['image_size']}] to features [B, {summary['num_features']}]. Images: "
        f"RGB on 0 to 1, the shorter side resized to {prepared['resize']} px ({prepared['interpolation']}), the centre "
        f"{prepared['image_size']} px, minus mean ({mean}), divided by standard deviation ({std}).",
        "## Results",
        _table(_results(summary)),
        "Numbers after the last epoch, in per cent, one seed; the untrained backbone and raw pixels are judged in the same way. "
        + _line(summary["evaluation"]),
        *(_block("text", numbers([result]).splitlines()) for result in evaluations),
        "## Training",
        _table([("", ""), *_training(summary, dataset)]),
        _block("bash", [f"# {_plain(line)}" if i else _plain(line) for i, line in enumerate(summary["command"].split("\n"))]),
        "## Licence",
        f"{_line(license)}." if license else "None was stated for these weights. Ask whoever made them, and respect that of the images.",
        "## Limits",
        "The backbone has no classifier and was never told what its images show. It reflects what the images hold, and whom and what they "
        "leave out. The numbers above say nothing about images of other kinds.",
    ]
    return "\n\n".join([head, *body]) + "\n"


def _line(text: object) -> str:
    """Text on one line that Markdown and HTML show as it is."""
    return re.sub(r"([\\`*\[\]<>!#|~])", r"\\\1", _plain(text))


def _plain(text: object) -> str:
    return " ".join(printable(str(text)).split())


def _block(kind: str, lines: list[str]) -> str:
    return "\n".join([f"```{kind}", *(printable(line).replace("```", "` ` `") for line in lines), "```"])


def _table(rows: list[tuple[str, ...]]) -> str:
    head, *body = (f"| {' | '.join(_line(c) for c in row)} |" for row in rows)
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *body])


def _results(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    base = summary["baselines"]

    def row(what: str, key: str) -> tuple[str, ...]:
        found = (summary["final"].get(key), *(base.get(b, {}).get(key) for b in ("untrained", "raw_pixels")))
        return (what, *("–" if v is None else f"{v:.1f}" for v in found))

    health = ("effective rank", f"{summary['health'].get('effective_rank') or 0:.0f} of {summary['num_features']}", "–", "–")
    rows = [row("kNN top-1", "knn_top1"), row("linear probe top-1", "linear_top1"), row("linear probe top-5", "linear_top5"), health]
    return [("", "trained", "untrained", "raw pixels"), *rows]


def _training(summary: dict[str, Any], dataset: str) -> list[tuple[str, str]]:
    s, speed = summary["seconds"], summary["speed"]
    return [
        ("data", f"{dataset}: {summary['data']['train']:,} images of {summary['image_size']} px"),
        ("epochs", f"{summary['epochs']} ({summary['steps']} steps of {summary['global_batch']} images)"),
        ("seed", str(summary["seed"])),
        ("stem", str(summary["stem"])),
        ("hardware", f"{speed['devices']} x {speed['device']} in {speed['precision']}, {s['total'] / 60:.1f} minutes"),
        ("config hash", str(summary["config_hash"])),
        ("versions", ", ".join(f"{k} {v}" for k, v in summary["versions"].items())),
    ]

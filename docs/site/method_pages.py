"""The generated parts of docs/methods/*.md: hyper-parameters, recipes, views and results.

    python docs/site/method_pages.py

A part stands between `<!-- generated: NAME -->` and `<!-- end -->` and is rewritten in place. Its values come from conf/, docs/results/,
ssl_zoo/reports/published.yaml and, for what the papers used, papers.yaml beside this file.
"""

import json
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ssl_zoo.augment.spec import View, resolve_all
from ssl_zoo.config import compose, plain

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "methods"
METHODS = sorted(f.stem for f in (ROOT / "conf/method").glob("*.yaml"))
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
WORDS = ("clip", "siglip")
ALWAYS = ("epochs", "batch_size", "optimizer.name", "optimizer.base_lr", "optimizer.weight_decay", "optimizer.warmup_epochs")
DATASETS = {"shapes": "shapes", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
BACKBONES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "vit_s": "ViT-S/16", "vit_b": "ViT-B/16"}


# ---------------------------------------------------------------------------------------------- small parts
def load(path: str) -> Any:
    text = (ROOT / path).read_text(encoding="utf-8")
    return json.loads(text) if path.endswith(".json") else yaml.safe_load(text)


def papers(method: str) -> dict[str, Any]:
    """What the paper used, {dotted key: value}."""
    found = load("docs/site/papers.yaml")[method]
    return {**{f"method.{k}": v for k, v in found["method"].items()}, **found["training"]}


def cell(value: Any) -> str:
    """A value as YAML would have it, short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(cell, value)) + "]"
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}", value


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def paragraph(text: str, bullet: bool = False) -> str:
    """Wrapped at 138 characters."""
    first, rest = ("- ", "  ") if bullet else ("", "")
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(" ".join(text.split()), 138, initial_indent=first, subsequent_indent=rest, **options) + "\n"


# ---------------------------------------------------------------------------------------------- recipes
def recipes(method: str) -> list[str]:
    """The names of its recipe files; those of MoCo v1 belong to moco."""
    names = sorted(f.stem for f in (ROOT / "conf/recipe").glob(f"{method}-*.yaml"))
    return names + (["moco_v1-resnet50-imagenet"] if method == "moco" else [])


def short(recipe: str) -> str:
    method, rest = recipe.split("-", 1)
    return f"v1: {rest}" if method == "moco_v1" else rest


@cache
def composed(method: str, recipe: str) -> dict[str, Any]:
    """The whole config of a recipe, or of "none" for a backbone and images as in the paper."""
    plain_backbone = "vit_b" if method in WORDS else "resnet50"
    _, backbone, dataset, *_ = recipe.split("-") if recipe != "none" else ("", plain_backbone, "imagenet")
    words = [f"method={method}", f"recipe={recipe}", f"backbone={backbone}", f"dataset={dataset}"]
    return plain(compose("train", [*words, *(["dataset.path=."] if dataset == "imagenet" else [])]))


def trained(config: dict[str, Any]) -> dict[str, Any]:
    """What a recipe may set, but for the views: {dotted key: value}."""
    kept = {k: config[k] for k in ("method", "epochs", "batch_size", "optimizer")}
    kept |= {"backbone": {"kwargs": config["backbone"].get("kwargs", {})}, "trainer": {"compile": config["trainer"]["compile"]}}
    return dict(flat({**kept, "augment": {"early_size": config["augment"]["early_size"]}}))


# ---------------------------------------------------------------------------------------------- the parts of a page
def recipe_table(method: str) -> str:
    """Every key of conf/method, and what a recipe sets besides: without a recipe, with each, in the paper."""
    names = ["none", *recipes(method)]
    columns = [trained(composed(method, name)) for name in names]
    paper = papers(method)
    keys = [k for k in dict.fromkeys(k for c in columns for k in c) if tells(k, columns, paper)]
    assert set(paper) <= set(keys), f"papers.yaml, {method}: no such key"
    rows = [(f"`{k}`", *(cell(c.get(k)) for c in columns), cell(paper.get(k, ""))) for k in keys]
    files = ", ".join(f"[{name}.yaml](../../conf/recipe/{name}.yaml)" for name in names[1:])
    head = ("key", "default", *map(short, names[1:]), "paper")
    return paragraph(f"{reading(method)} Recipes: {files}.") + "\n" + table(head, rows)


def tells(key: str, columns: list[dict[str, Any]], paper: dict[str, Any]) -> bool:
    """Whether a row of the table would say something."""
    differs = len({cell(c.get(key)) for c in columns}) > 1
    filled = any(c.get(key) not in (None, {}) for c in columns)
    return key in paper or (filled and (differs or key in ALWAYS or key.startswith("method.")))


def reading(method: str) -> str:
    """How the table is read."""
    backbone = composed(method, "none")["backbone"]["name"]
    scaled = composed(method, "none")["optimizer"].get("scale_lr", True)
    rate = "base_lr x global batch / 256" if scaled else "base_lr as it stands (`optimizer.scale_lr=false`)"
    return f"""The defaults are those of [conf/method/{method}.yaml](../../conf/method/{method}.yaml) and, for training, of
        `{backbone}` on data without a recipe. A recipe is picked up by itself where method, backbone and dataset are those of its name, one
        that ends in `-fast` with `recipe=` alone.
        `batch_size` counts images on each device; the learning rate is {rate}."""


def views(method: str) -> str:
    names = recipes(method)
    names = names if any(n.endswith("imagenet") for n in names) else ["none", *names]
    rows = [row for name in names for row in view_rows(method, name)]
    head = (
        "views",
        "px",
        "crop scale",
        "resampling",
        "flip p",
        "jitter p: brightness, contrast, saturation, hue",
        "gray p",
        "blur p",
        "solarize p",
    )
    return table(head, rows)


def view_rows(method: str, recipe: str) -> list[tuple[str, ...]]:
    config = composed(method, recipe)
    found = resolve_all(config["augment"], config["dataset"]["image_size"])
    name, crops = ("no recipe" if recipe == "none" else short(recipe)), len(found) - 2
    if len(found) == 1:
        return [(f"{name}, the one", *described(found[0]))]
    both = [("both", found[0])] if found[0] == found[1] else [("first", found[0]), ("second", found[1])]
    return [(f"{name}, {which}", *described(v)) for which, v in [*both, *([(f"{crops} local", found[2])] if crops else [])]]


def described(v: View) -> tuple[str, ...]:
    colours = ", ".join(f"{x:g}" for x in (v.brightness, v.contrast, v.saturation, v.hue))
    jitter = f"{v.jitter_p:g}: {colours}" if v.jitter_p else "0"
    crop = f"{v.scale[0]:g} to {v.scale[1]:g}"
    return (str(v.size), crop, v.interpolation, f"{v.flip:g}", jitter, *(f"{p:g}" for p in (v.gray, v.blur_p, v.solarize_p)))


# ---------------------------------------------------------------------------------------------- results
def measured(method: str) -> str:
    if method in WORDS:
        return with_words(method)
    found = load("docs/results/short_runs.json")
    runs = {k: v for k, v in found.items() if f"method={method}" in v["command"].split()}
    if not runs:
        return suites(method)
    own, photos = runs[method], runs[f"{method} on CIFAR-10"]
    head = ("run", "epochs", "kNN top-1", "rank of features", "rank of z", "verdict")
    rows = (run_row(method, k, v) for k, v in runs.items())
    return f"{paragraph(setting(own, photos))}\n{table(head, rows)}{longer(method)}\n{suites(method)}"


def setting(own: dict[str, Any], photos: dict[str, Any]) -> str:
    (raw, untrained), (raw_photos, untrained_photos) = map(baselines, (own, photos))
    return f"""Measured here, from [short_runs.json](../results/short_runs.json): backbone `tiny`, seed {own["seed"]}, final epoch, one
        thread of a CPU, kNN top-1 with k=20, T=0.07. `shapes` is 4,000 training images of 32 px in 10 classes, {own["epochs"]} epochs,
        {own["steps"]} steps of 256 images; there raw pixels give {raw:.1f} % and the untrained backbone {untrained:.1f} %. CIFAR-10 is
        10,000 of its training images with the recipe for `shapes`, {photos["steps"]} steps of 256 images; there raw pixels give
        {raw_photos:.1f} % and the untrained backbone {untrained_photos:.1f} %. The commands are in the file. Such short runs show that
        the method learns. They do not rank methods."""


def baselines(run: dict[str, Any]) -> tuple[float, float]:
    return run["baselines"]["raw_pixels"]["knn_top1"], run["baselines"]["untrained"]["knn_top1"]


def run_row(method: str, name: str, run: dict[str, Any]) -> tuple[str, ...]:
    names = {method: "shapes", f"{method}+local": "shapes, 2 local crops", f"{method} on CIFAR-10": "CIFAR-10"}
    ranks = f"{run['health']['effective_rank']:.0f}", f"{run['health']['z_rank']:.1f}"
    verdict = run["verdict"].partition(":")[0]
    return names.get(name, f"shapes, {name}"), str(run["final"]["epoch"]), f"{run['final']['knn_top1']:.1f} %", *ranks, verdict


def longer(method: str) -> str:
    """What a run of the bare command gave, where it is recorded."""
    name = f"{method}-tiny-shapes.json"
    if not (ROOT / "docs/results" / name).is_file():
        return ""
    run = load(f"docs/results/{name}")
    final = run["final"]
    return "\n" + paragraph(
        f"""Measured here, from [{name}](../results/{name}): `{run["command"]}`, backbone `tiny`, dataset `shapes`, {run["epochs"]} epochs,
        seed {run["seed"]}, final epoch, {run["seconds"]["total"]:.0f} s: kNN top-1 {final["knn_top1"]:.1f} % (k=20, T=0.07), linear
        probe {final["linear_top1"]:.1f} %."""
    )


def suites(method: str) -> str:
    """What the tables of docs/results.md say of it."""
    found = []
    for file in sorted((ROOT / "docs/results").glob("cifar10_*.json")):
        runs = [r for r in load(f"docs/results/{file.name}") if r["method"] == method and not (r["variant"] or r["data"]["held_out"])]
        if not runs:
            continue
        first = runs[0]
        backbone = first["name"].removeprefix(f"{method}_").removesuffix("_cifar10")
        scores = {k: statistics.fmean(r["final"][k] for r in runs) for k in ("knn_top1", "linear_top1")}
        seeds = ", ".join(str(r["seed"]) for r in runs)
        text = f"""[{file.name}](../results/{file.name}), see [Measured on CIFAR-10](../results.md): backbone `{backbone}`,
            {first["data"]["train"]:,} training images of CIFAR-10, {first["epochs"]} epochs,
            {"seeds" if len(runs) > 1 else "seed"} {seeds}, final epoch:
            kNN top-1 {scores["knn_top1"]:.1f} % (k={first["knn"]["k"]},
            T={first["knn"]["temperature"]}), linear probe {scores["linear_top1"]:.1f} %."""
        found.append(paragraph(text, bullet=True))
    return "".join(found)


SHOWN = {  # the runs with captions
    "cifar10-prompts": "CIFAR-10, captions of class names",
    "flickr-1k": "photographs, 64 px",
    "noto-emoji": "Noto emoji, 48 px",
    "shapes-held-out": "shapes, 16 of 80 combinations of colour and shape held out",
}


def with_words(method: str) -> str:
    """The results of a method that reads captions: its runs, zero-shot and retrieval."""
    names = [f.stem.removeprefix(f"{method}-") for f in sorted((ROOT / "docs/results").glob(f"{method}-*.json"))]
    if not names:
        return f"No result of {method} is recorded in docs/results, so none is given here.\n"
    runs = {n: load(f"docs/results/{method}-{n}.json") for n in names}
    assert all(f"method={method}" in r["command"].split() for r in runs.values())
    text = "Measured here: backbone `tiny`, `recipe=clip-tiny-shapes`, final epoch, one core of a CPU."
    zero = table(("zero-shot", "top-1", "95 % interval", "chance"), [row for n, r in runs.items() for row in zero_shot_rows(n, r)])
    head = ("retrieval", "direction", "R@1", "95 % interval", "chance", "R@5", "chance")
    found = table(head, [row for n, r in runs.items() for row in retrieval_rows(n, r)])
    return f"{paragraph(text)}\n{''.join(told(method, n, r) for n, r in runs.items())}\n{zero}\n{found}"


def told(method: str, name: str, run: dict[str, Any]) -> str:
    final, file = run["final"], f"{method}-{name}.json"
    text = f"[{file}](../results/{file}): {SHOWN[name]}; {run['captions']['images']:,} images and {run['captions']['captions']:,} captions"
    text += f", {run['epochs']} epochs, seed {run['seed']}, {run['seconds']['training']:.0f} s of training."
    if final:
        text += f" Its backbone: kNN top-1 {final['knn_top1']:.2f} % (k=20, T=0.07), linear probe {final['linear_top1']:.2f} %."
    return paragraph(text, bullet=True)


def zero_shot_rows(name: str, run: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    z = run.get("zero_shot", {})
    for prefix, group in (("", "all test images"), ("seen_", "seen combinations"), ("held_out_", "held out")):
        if f"{prefix}top1" in z:
            rest = interval(z[f"{prefix}top1_interval"]), f"{z['chance_top1']:.2f} %"
            yield f"{name}, {group}, {z['templates']} sentences", f"{z[f'{prefix}top1']:.2f} %", *rest


def retrieval_rows(name: str, run: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for r in run.get("retrieval", []):
        scores = [f"{r[f'{what}_at_{k}']:.2f} %" for k in (1, 5) for what in ("recall", "chance")]
        yield name, r["direction"], scores[0], interval(r["top1_interval"]), *scores[1:]


def interval(ends: list[float]) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f} %"


def published(method: str) -> str:
    """A line for each protocol."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for key, block in load("ssl_zoo/reports/published.yaml").items():
        dataset, backbone, _ = key.split(" / ")
        for epochs, value in block["results"].get(method, {}).items():
            how = block["metric"], block["source"], block["protocol"]
            lines.setdefault(how, []).append(f"{DATASETS[dataset]}, {BACKBONES[backbone]}, {epochs} epochs {value:g} %")
    return "".join(
        paragraph(f"{metric}: {'; '.join(found)}. Source: {source}. Protocol: {protocol}.", bullet=True)
        for (metric, source, protocol), found in lines.items()
    )


PARTS: dict[str, Callable[[str], str]] = {
    "recipes": recipe_table,
    "views": views,
    "measured": measured,
    "published": published,
}


def page(method: str, text: str) -> str:
    """The text of a page with its generated parts as they are today."""
    return PART.sub(lambda m: f"{m[1]}{PARTS[m[2]](method)}{m[3]}", text)


def main() -> None:
    for method in METHODS:
        file = PAGES / f"{method}.md"
        file.write_text(page(method, file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

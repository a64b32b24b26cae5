"""Short CPU runs of every method on `shapes` and on CIFAR-10: what each learns, and which broken variants are seen to collapse.

    python benchmarks/short_runs.py OUT --cifar FOLDER_OF_PARQUET [--jobs 2]

Runs what OUT does not hold yet, one process and thread per job, then writes docs/results/short_runs.json and docs/methods.md from it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("simclr", "moco", "moco_v3", "byol", "simsiam", "dino", "barlow_twins", "vicreg")
BROKEN = {
    "SimSiam without stop-gradient": ["method=simsiam", "method.stop_gradient=false"],
    "BYOL without predictor": ["method=byol", "method.predictor=false"],
    "DINO without centering": ["method=dino", "method.center_momentum=1.0"],
    "DINO without sharpening": ["method=dino", "method.teacher_temp=1.0", "method.teacher_temp_start=1.0"],
    "Barlow Twins without off-diagonal term": ["method=barlow_twins", "method.lambd=0.0"],
    "VICReg without variance term": ["method=vicreg", "method.std_coeff=0.0"],
}
COMMON = ["trainer=cpu", "evaluation.every_n_epochs=8", "evaluation.linear.final=false", "evaluation.health_every_n_steps=25"]
STEPS = 300  # on CIFAR-10
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}  # DINO's own: with the shapes' its teacher became uniform
ON_PHOTOS = {
    "dino": [
        "method.momentum=0.99",
        "optimizer.base_lr=2e-3",
        *(f"augment.{view}.jitter.{key}={value}" for view in ("view1", "view2") for key, value in JITTER.items()),
    ]
}
HEAD = """# Methods in short runs

Written by `python benchmarks/short_runs.py`, from [results/short_runs.json](results/short_runs.json). Backbone `tiny`, dataset `shapes`
(4,000 images of 32 px, 10 classes), {epochs} epochs of {steps} steps with 256 images, seed 0, final epoch; kNN top-1 with k=20, T=0.07
against all training images. One thread of a CPU. Such runs show that a method learns; they do not rank methods. Rank is the effective
rank of the 256 features, z rank that of the projections.

Raw pixels: {raw:.1f} %. Untrained backbone: {untrained:.1f} %.

| method | kNN | rank | z rank | with 2 local crops: kNN | rank | z rank | verdict |
|---|---|---|---|---|---|---|---|
"""
COLLAPSE = """
## What collapses, and whether it is seen

The same runs with the part removed that the paper calls essential. "warned" is the optimizer step of the warning;
where it is "no", no limit was passed (of z rank, 1.75).

| variant | kNN | spread | rank | z spread | z rank | warned | what the report says |
|---|---|---|---|---|---|---|---|
"""
CIFAR = """
## CIFAR-10

{steps} steps with 256 images each, of 10,000 training images, evenly spaced, with the small heads of the recipes above; the views are not
tuned for photos. DINO has the colour jitter of its paper, momentum 0.99 and rate 2e-3. Images per second are
of one thread, while a second run had the other core.

Raw pixels: {raw:.1f} %. Untrained backbone: {untrained:.1f} %.

| method | kNN | rank | images/s | verdict |
|---|---|---|---|---|
"""


def jobs(epochs: int, cifar: Path | None) -> dict[str, list[str]]:
    words = [*COMMON, f"epochs={epochs}"]
    photos = [*COMMON, "dataset=parquet", f"dataset.path={cifar}", "data.subset=10000", f"trainer.max_steps={STEPS}"]
    return {
        **{m: [f"method={m}", *words] for m in METHODS},
        **{f"{m}+local": [f"method={m}", "augment.local_crops=2", "evaluation.baselines=false", *words] for m in METHODS},
        **{name: [*change, "evaluation.baselines=false", *words] for name, change in BROKEN.items()},
        **{f"{m} on CIFAR-10": [f"method={m}", f"recipe={m}-tiny-shapes", *photos, *ON_PHOTOS.get(m, [])] for m in METHODS if cifar},
    }


def run(out: Path, name: str, words: list[str]) -> dict:
    folder = out / name.replace(" ", "_")
    if not (folder / "summary.json").is_file():
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "ssl_zoo", *words, f"run={folder}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "stderr.txt").write_text(done.stderr)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    summary = json.loads((folder / "summary.json").read_text())
    kept = {
        k: summary[k] for k in ("command", "config_hash", "seed", "epochs", "steps", "final", "baselines", "health", "verdict", "speed")
    }
    shown = [re.sub("^dataset.path=.*", "dataset.path=...", w) for w in kept["command"].split() if not w.startswith("run=")]
    kept["command"] = " ".join(shown)
    return {**kept, "warnings": (folder / "stderr.txt").read_text().splitlines()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--cifar", type=Path, help="folder with CIFAR-10 as parquet; without it that table is left out")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=24)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = jobs(args.epochs, args.cifar)
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(wanted, pool.map(lambda n: run(args.out, n, wanted[n]), wanted), strict=True))
    (ROOT / "docs/results").mkdir(exist_ok=True)
    (ROOT / "docs/results/short_runs.json").write_text(json.dumps(found, indent=1) + "\n")
    (ROOT / "docs/methods.md").write_text(page(found))


def page(found: dict[str, dict]) -> str:
    first = found["simclr"]
    text = HEAD.format(epochs=first["epochs"], steps=first["steps"] // first["epochs"], **baselines(first))
    for m in METHODS:
        a, b = found[m], found[f"{m}+local"]
        text += f"| {m} | {knn(a)} | {ranks(a)} | {knn(b)} | {ranks(b)} | {verdicts(a, b)} |\n"
    text += COLLAPSE
    for name in BROKEN:
        x = found[name]
        h = x["health"]
        steps = [w.partition(":")[0].removeprefix("step ") for w in x["warnings"] if w.startswith("step ")]
        numbers = f"{h['feature_std']:.2f} | {h['effective_rank']:.0f} | {h['z_std']:.2f} | {h['z_rank']:.1f}"
        text += f"| {name} | {knn(x)} | {numbers} | {steps[0] if steps else 'no'} | {x['verdict']} |\n"
    if f"{METHODS[-1]} on CIFAR-10" in found:
        text += CIFAR.format(steps=STEPS, **baselines(found["simclr on CIFAR-10"]))
        for m in METHODS:
            x = found[f"{m} on CIFAR-10"]
            text += f"| {m} | {knn(x)} | {x['health']['effective_rank']:.0f} | {x['speed']['images_per_s']:,.0f} | {verdicts(x)} |\n"
    return text


def baselines(x: dict) -> dict[str, float]:
    return {"raw": x["baselines"]["raw_pixels"]["knn_top1"], "untrained": x["baselines"]["untrained"]["knn_top1"]}


def knn(x: dict) -> str:
    return f"{x['final']['knn_top1']:.1f} %"


def ranks(x: dict) -> str:
    return f"{x['health']['effective_rank']:.0f} | {x['health']['z_rank']:.1f}"


def verdicts(*runs: dict) -> str:
    return "; ".join(dict.fromkeys(x["verdict"].partition(":")[0] for x in runs))


if __name__ == "__main__":
    main()

"""Short CPU runs of every method on `shapes`: what each learns, and which broken variants are seen to collapse.

    python benchmarks/short_runs.py OUT [--jobs 2] [--epochs 12]

Runs what OUT does not hold yet, one process and thread per job, then writes docs/results/short_runs.json and docs/methods.md from it.
"""

import argparse
import json
import os
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
BATCH = 128
COMMON = [
    "trainer=cpu",
    f"batch_size={BATCH}",
    "evaluation.every_n_epochs=10",
    "evaluation.linear.final=false",
    "evaluation.health_every_n_steps=25",
]
HEAD = """# Methods in short runs

Written by `python benchmarks/short_runs.py`, from [results/short_runs.json](results/short_runs.json). Backbone `tiny`, dataset `shapes`
(4,000 images of 32 px, 10 classes), {epochs} epochs of {steps} steps with {batch} images, seed 0, final epoch; kNN top-1 with k=20, T=0.07
against all training images. One thread of a CPU. Such runs show that a method learns; they do not rank methods.

Raw pixels: {raw:.1f} %. Untrained backbone: {untrained:.1f} %.

| method | kNN | effective rank | with 2 local crops: kNN | rank | verdict |
|---|---|---|---|---|---|
"""
COLLAPSE = """
## What collapses, and whether it is seen

The same runs with the part removed that the paper calls essential. "warned" is the optimizer step of the warning.

| variant | kNN | spread | effective rank | warned | what the report says |
|---|---|---|---|---|---|
"""


def jobs(epochs: int) -> dict[str, list[str]]:
    words = [*COMMON, f"epochs={epochs}"]
    return {
        **{m: [f"method={m}", *words] for m in METHODS},
        **{f"{m}+local": [f"method={m}", "augment.local_crops=2", "evaluation.baselines=false", *words] for m in METHODS},
        **{name: [*change, "evaluation.baselines=false", *words] for name, change in BROKEN.items()},
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
    kept["command"] = " ".join(w for w in kept["command"].split() if not w.startswith("run="))
    return {**kept, "warnings": (folder / "stderr.txt").read_text().splitlines()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--finished", action="store_true", help="collect what OUT holds, run nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = jobs(args.epochs)
    if args.finished:
        wanted = {k: v for k, v in wanted.items() if (args.out / k.replace(" ", "_") / "summary.json").is_file()}
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(wanted, pool.map(lambda n: run(args.out, n, wanted[n]), wanted), strict=True))
    (ROOT / "docs/results").mkdir(exist_ok=True)
    (ROOT / "docs/results/short_runs.json").write_text(json.dumps(found, indent=1) + "\n")
    (ROOT / "docs/methods.md").write_text(page(found))


def page(found: dict[str, dict]) -> str:
    first = found["simclr"]
    base = first["baselines"]
    text = HEAD.format(
        epochs=first["epochs"],
        batch=BATCH,
        steps=first["steps"] // first["epochs"],
        raw=base["raw_pixels"]["knn_top1"],
        untrained=base["untrained"]["knn_top1"],
    )
    for m in METHODS:
        a, b = found[m], found[f"{m}+local"]
        ranks = [f"{x['health']['effective_rank']:.0f}" for x in (a, b)]
        knns = [f"{x['final']['knn_top1']:.1f} %" for x in (a, b)]
        verdicts = "; ".join(dict.fromkeys(x["verdict"].partition(":")[0] for x in (a, b)))
        text += f"| {m} | {knns[0]} | {ranks[0]} | {knns[1]} | {ranks[1]} | {verdicts} |\n"
    text += COLLAPSE if any(name in found for name in BROKEN) else ""
    for name in (n for n in BROKEN if n in found):
        x = found[name]
        steps = [w.partition(":")[0].removeprefix("step ") for w in x["warnings"] if w.startswith("step ")]
        h = x["health"]
        numbers = f"{x['final']['knn_top1']:.1f} % | {h['feature_std']:.3f} | {h['effective_rank']:.1f}"
        text += f"| {name} | {numbers} | {steps[0] if steps else 'no'} | {x['verdict']} |\n"
    return text


if __name__ == "__main__":
    main()

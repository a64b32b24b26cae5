"""docs/results.md: what the suites of CIFAR-10 gave, from the run folders that `ssl-zoo benchmark` leaves.

    ssl-zoo benchmark suite=cifar10_resnet18_200ep
    python benchmarks/results.py runs/cifar10_resnet18_200ep [runs/cifar10_tiny_20k ...]

Each folder's finished runs go to docs/results/<name of the folder>.json, and the page is written anew from all that lie there. Folders
whose runs hold training images out (data.held_out) are where settings were chosen: they become the lists of what was tried.
"""

import itertools
import json
import re
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness import table

from ssl_zoo.reports.collect import Run, collect
from ssl_zoo.reports.published import published

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs/results.md", ROOT / "docs/results"
KEPT = ("name", "command", "config_hash", "seed", "epochs", "steps", "global_batch", "final", "best", "curve", "baselines", "health",
        "verdict", "evaluation", "seconds", "speed", "versions", "commit")  # fmt: skip
PLACES = re.compile(r"\s*(dataset\.path|run|out|data\.cache)=\S+")  # of this machine
ORDER = ("supervised", "simclr", "moco", "moco_v3", "byol", "simsiam", "dino", "barlow_twins", "vicreg")
REACHED = {"resnet18": (85, 90), "tiny": (45, 50)}  # kNN in percent of which the time is told
Found = dict[str, Any]


def kept(run: Run, root: Path) -> Found:
    """What of a run goes to the file: its numbers, and where in the suite it stands."""
    folder = run.folder.relative_to(root)
    found = {k: run.summary[k] for k in KEPT if k in run.summary}
    variant = folder.parts[0].partition("+")[2]
    data = {k: run.summary["data"][k] for k in ("train", "test", "held_out") if k in run.summary["data"]}
    method = str(run.config["method"]["_target_"]).split(".")[2]
    return {"method": method, "variant": variant, **found, "command": PLACES.sub("", found["command"].splitlines()[0]), "data": data}


def write(root: Path) -> Path:
    """docs/results/<suite>.json of the finished runs below `root`; what else lies there is told."""
    runs, problems = collect([root], root / "report")
    for folder, reason in problems:
        print(f"left out: {folder}: {reason}")
    if not runs:
        sys.exit(f"{root} holds no finished run: train them with ssl-zoo benchmark suite={root.name}.")
    file = RESULTS / f"{root.name}.json"
    lines = (json.dumps(kept(run, root)) for run in runs)
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    return file


# ---------------------------------------------------------------------------------------------- numbers
def grouped(runs: Iterable[Found]) -> dict[str, list[Found]]:
    """Runs that differ in their seed only, by method and variant."""
    found: dict[str, list[Found]] = {}
    for run in runs:
        found.setdefault(run["method"] + (f" ({run['variant']})" if run["variant"] else ""), []).append(run)
    return {k: sorted(v, key=lambda r: r["seed"]) for k, v in found.items()}


def values(runs: list[Found], *keys: str) -> list[float]:
    found = []
    for run in runs:
        value: Any = run
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found.append(float(value))
    return found


def spread(found: list[float]) -> str:
    """Mean, and the sample standard deviation where there are several."""
    if not found:
        return ""
    return f"{statistics.fmean(found):.1f}" + (f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else "")


def reached(run: Found, percent: float) -> tuple[float, float] | None:
    """Seconds of training alone, and with evaluation, at the first evaluation whose kNN is at least so much."""
    at = next((p for p in run.get("curve", []) if p["knn_top1"] >= percent and p["training_s"] is not None), None)
    return None if at is None else (at["training_s"], at["total_s"])


def not_apart(groups: dict[str, list[Found]]) -> list[str]:
    """Neighbours of the ranking whose seeds overlap."""
    ranked = sorted(groups, key=lambda k: -statistics.fmean(values(groups[k], "final", "knn_top1")))
    seeds = {k: values(groups[k], "final", "knn_top1") for k in ranked}
    return [f"{a} and {b}" for a, b in itertools.pairwise(ranked) if min(seeds[a]) <= max(seeds[b])]


# ---------------------------------------------------------------------------------------------- the page
HEAD = """# Measured on CIFAR-10

Written by `python benchmarks/results.py` from the files named below, each of which lists its runs with command, seed, commit and numbers.
The images are CIFAR-10's; the measuring machine read them from parquet files whose pictures are JPEG, which costs a little against the
original pixels. Nothing here was chosen on the test images: see [What was tried](#what-was-tried).
"""


def page() -> str:
    files = {f.stem: json.loads(f.read_text(encoding="utf-8")) for f in sorted(RESULTS.glob("cifar10_*.json"))}
    tables = {k: v for k, v in files.items() if not v[0]["data"].get("held_out")}
    tried = {k: v for k, v in files.items() if k not in tables}
    parts = [HEAD, *(suite(name, runs) for name, runs in tables.items()), *full_table(files)]
    if tried:
        parts.append("## What was tried\n")
        parts += [choices(name, runs) for name, runs in tried.items()]
    return "\n".join(parts)


def suite(name: str, runs: list[Found]) -> str:
    """A table of final numbers, ranked, between its two anchors."""
    groups, first = grouped(runs), runs[0]
    backbone = next(b for b in REACHED if f"_{b}_" in first["name"])
    ranked = sorted(groups, key=lambda k: -statistics.fmean(values(groups[k], "final", "knn_top1")))
    rows = [row(k, groups[k], backbone) for k in ranked]
    untrained, raw = (values(runs, "baselines", b, "knn_top1") for b in ("untrained", "raw_pixels"))
    rows += [{**dict.fromkeys(rows[0], ""), "method": label, "kNN, final": spread(found)} for label, found in
             (("raw pixels", raw[:1]), ("untrained backbone", untrained)) if found]  # fmt: skip
    seeds = sorted({r["seed"] for r in runs})
    text = f"""## {name}

[results/{name}.json](results/{name}.json): `ssl-zoo benchmark suite={name}`, {first["data"]["train"]:,} training and
{first["data"]["test"]:,} test images, backbone `{backbone}`, {first["epochs"]} epochs, {"seeds" if len(seeds) > 1 else "seed"}
{", ".join(map(str, seeds))}, {first["speed"]["precision"]} on {first["speed"]["device"]}. {first["evaluation"]}
Numbers are mean ± standard deviation over seeds in percent; minutes are of one run with all evaluation, images/s of training alone.

{table(rows)}
"""
    overlap = not_apart({k: v for k, v in groups.items() if k != "supervised"})
    if len(seeds) > 1:
        text += f"Seeds overlap, so that the order says nothing, between {'; '.join(overlap) if overlap else 'no two neighbours'}.\n"
    return text


def row(name: str, runs: list[Found], backbone: str) -> Found:
    final, best = values(runs, "final", "knn_top1"), values(runs, "best", "knn_top1")
    known = [p for p in published(runs[0]["method"], backbone, "cifar10") if p.metric == "kNN" and p.epochs == runs[0]["epochs"]]
    top = max((p.value for p in known), default=None)
    times = {p: [t for r in runs if (t := reached(r, p)) is not None] for p in REACHED[backbone]}
    return {
        "method": name,
        "kNN, final": spread(final),
        "kNN, best epoch": spread(best),
        "linear": spread(values(runs, "final", "linear_top1")),
        "online linear": spread(values(runs, "final", "online_linear_top1")),
        "published kNN, best epoch": "" if top is None else f"{top:.1f}",
        **{f"minutes to {p} %": minutes(t, len(runs)) for p, t in times.items()},
        "minutes": spread([s / 60 for s in values(runs, "seconds", "total")]),
        "images/s": f"{statistics.fmean(values(runs, 'speed', 'images_per_s')):,.0f}",
        "memory, MiB": f"{max(values(runs, 'speed', 'peak_memory_mib')):,.0f}",
        "rank": f"{statistics.fmean(values(runs, 'health', 'effective_rank')):.0f}",
        "verdict": "; ".join(dict.fromkeys(r["verdict"].partition(":")[0] for r in runs)),
    }


def minutes(times: list[tuple[float, float]], runs: int) -> str:
    """Training alone / with evaluation, the median over the runs that got there."""
    if not times:
        return "–"
    alone, whole = (statistics.median(t) / 60 for t in zip(*times, strict=True))
    return f"{alone:.1f} / {whole:.1f}" + (f" ({len(times)} of {runs})" if len(times) < runs else "")


def full_table(files: dict[str, list[Found]]) -> Iterator[str]:
    """How to get the tables that were not measured, and what they take."""
    lacking = [s for s in ("cifar10_resnet18_200ep", "cifar10_resnet18_800ep") if s not in files]
    if not lacking:
        return
    peers = json.loads((RESULTS / "peers-resnet18-cpu.json").read_text(encoding="utf-8"))
    hours = peers["minutes_per_200_epochs"]["ssl_zoo"] / 60
    yield f"""## Not measured yet

{" and ".join(f"`ssl-zoo benchmark suite={s}`" for s in lacking)} are there, and no GPU was at hand to run
them. What they take: SimCLR with ResNet-18 trains {peers["images_per_s"]["ssl_zoo"]:,.0f} images/s on the CPU of
[results/peers-resnet18-cpu.json](results/peers-resnet18-cpu.json), so that 200 epochs would take it {hours:,.0f} hours. Elsewhere the
minutes are 200 x 50,000 / 60 / (images/s), and the first epoch of any run tells its images/s. Nine runs make a table; those of 800 epochs
take four times as long. `--cfg job` lists them, the same command goes on after an interruption, and `method=` and `seed=` choose.
"""


def choices(name: str, runs: list[Found]) -> str:
    """What was tried for each method, and what it gave on images that were held out of train."""
    first = runs[0]
    rows = []
    for method in sorted({r["method"] for r in runs}, key=ORDER.index):
        own = sorted((r for r in runs if r["method"] == method), key=lambda r: -r["final"]["knn_top1"])
        rows += [{"method": method, "change": r["variant"], "epochs": str(r["epochs"]), "kNN": f"{r['final']['knn_top1']:.1f}",
                  "rank": f"{r['health']['effective_rank']:.0f}", "verdict": r["verdict"].partition(":")[0]} for r in own]  # fmt: skip
    return f"""[results/{name}.json](results/{name}.json): kNN (k=200, T=0.1) on {first["data"]["test"]:,} training images that
were held out (`data.held_out={first["data"]["test"]}`), {first["data"]["train"]:,} to train on, final epoch, one seed; its standard error
is 0.7. The commands are in the file.

{table(rows)}"""


def main() -> None:
    for place in sys.argv[1:]:
        print(write(Path(place)))
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""docs/results.md: what the suites of CIFAR-10 gave, from the run folders that `ssl-zoo benchmark` leaves.

    ssl-zoo benchmark suite=cifar10_resnet18_200ep
    python benchmarks/results.py runs/cifar10_resnet18_200ep [runs/cifar10_tiny_20ep ...]

Each folder's finished runs go to docs/results/<name of the folder>.json, and the page is written anew from all that lie there. Folders
whose runs hold training images out (data.held_out) are where settings were chosen: they become the lists of what was tried.
"""

import itertools
import json
import shlex
import statistics
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness import table

from ssl_zoo.fingerprint import group_hash, leaves
from ssl_zoo.reports.collect import Run, collect
from ssl_zoo.reports.published import published

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs/results.md", ROOT / "docs/results"
KEPT = ("name", "command", "config_hash", "seed", "epochs", "steps", "global_batch", "final", "best", "curve", "baselines", "health",
        "verdict", "evaluation", "seconds", "speed", "versions", "commit")  # fmt: skip
PLACES = ("dataset.path", "run", "out", "data.cache")  # of a machine
REACHED = {"resnet18": (85, 90), "tiny": (40, 45)}  # kNN in percent of which the time is told
Found = dict[str, Any]


def decides(config: Found) -> str:
    """The same for all seeds of a config, wherever its data lie."""
    return group_hash({**config, "dataset": {**config["dataset"], "path": None}})


def kept(run: Run, root: Path) -> Found:
    """What of a run goes to the file: its numbers, where in the suite it stands, and what it was trained with."""
    found = {k: run.summary[k] for k in KEPT if k in run.summary}
    words = shlex.split(found["command"].splitlines()[0])
    command = shlex.join(w for w in words if w.partition("=")[0] not in PLACES)
    data = {k: run.summary["data"][k] for k in ("train", "test", "held_out")}
    place = {
        "method": str(run.config["method"]["_target_"]).split(".")[2],
        "variant": run.folder.relative_to(root).parts[0].partition("+")[2],
    }
    settings = {k: run.config[k] for k in ("epochs", "method", "optimizer", "batch_size")}
    crops = " and ".join(dict.fromkeys(str(run.config["augment"][v]["crop"]["scale"]) for v in ("view1", "view2")))
    settings |= {"crops": crops, "early_size": run.config["augment"].get("early_size")}
    shown = {"knn": run.config["evaluation"]["knn"], "settings": settings, "decides": decides(run.config)}
    return {**place, **found, "command": command, "data": data, **shown}


def write(root: Path) -> Path:
    """docs/results/<suite>.json of the finished runs below `root`; what else lies there is told."""
    runs, problems = collect([root], root / "report")
    for folder, reason in problems:
        print(f"left out: {folder}: {reason}")
    if not runs:
        sys.exit(f"{root} holds no finished run: train them with ssl-zoo benchmark suite={root.name}.")
    file = RESULTS / f"{root.name}.json"
    found = [kept(run, root) for run in runs]
    for name, group in grouped(found).items():
        if len({r["decides"] for r in group}) > 1 or len({r["seed"] for r in group}) < len(group):
            folders = ", ".join(str(run.folder) for run, r in zip(runs, found, strict=True) if r in group)
            sys.exit(f"{name} was trained with several configs: keep those of one and move the others away ({folders}).")
    lines = (json.dumps(r) for r in found)
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    return file


# ---------------------------------------------------------------------------------------------- numbers
def grouped(runs: Iterable[Found]) -> dict[str, list[Found]]:
    """Seeds by method and variant."""
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


def mean(found: list[float]) -> str:
    return f"{statistics.fmean(found):.0f}" if found else ""


def reached(run: Found, percent: float) -> tuple[float, float] | None:
    """Seconds of training alone, and with evaluation, at the first evaluation whose kNN is at least so much."""
    at = next((p for p in run.get("curve", []) if p["knn_top1"] >= percent and p["training_s"] is not None), None)
    return None if at is None else (at["training_s"], at["total_s"])


def not_apart(groups: dict[str, list[Found]]) -> list[str]:
    """Neighbours of the ranking whose seeds overlap, or are less apart than a standard error on so many test images."""
    ranked = sorted(groups, key=lambda k: -statistics.fmean(values(groups[k], "final", "knn_top1")))
    seeds = {k: values(groups[k], "final", "knn_top1") for k in ranked}
    return [f"{a} and {b}" for a, b in itertools.pairwise(ranked) if min(seeds[a]) <= max(seeds[b]) + error(min(seeds[a]), groups[a])]


def error(percent: float, runs: list[Found]) -> float:
    """The standard error of a share of the test images, in percent."""
    return 100 * (percent / 100 * (1 - percent / 100) / runs[0]["data"]["test"]) ** 0.5


# ---------------------------------------------------------------------------------------------- the page
HEAD = """# Measured on CIFAR-10

Written by `python benchmarks/results.py` from the files named below, each of which lists its runs with command, seed, commit and numbers.
The images are CIFAR-10's, read from parquet files whose pictures are JPEG: training and test images have lost what JPEG loses, so these
numbers are a little below those on the original pixels. Nothing was chosen on the test images: see [What was tried](#what-was-tried).
Minutes and images/s on the CPU are of two runs side by side on two cores that did other work at times: they tell how long a table takes,
not which method is faster.
"""
NEXT = """## What is next

- `ssl-zoo benchmark suite=tune_cifar10_resnet18` (33 runs of 50 epochs on a GPU) makes the same list for ResNet-18, whose recipes are
  not tuned yet: they are of papers that have a CIFAR-10 run, else of common practice, as each says. Tried are half and twice the rate, and
  the other crops. With `tiny`, crops from 0.2 on instead of 0.08 gave MoCo v3 3.1, VICReg with SGD 1.4, Barlow Twins 0.9 and SimCLR 0.7
  points more, and BYOL at momentum 0.97 none.
- Of `cifar10_tiny_tuning` the first of each method is its recipe.
- DINO and BYOL are the lowest here. DINO with SGD, and with few prototypes, a fast teacher and smaller crops, collapsed; its recipe for
  ResNet-18 has SGD, so a run with AdamW belongs beside it, and is in that suite.
- SimSiam wants long training: lightly's published numbers for it gain 14 points from 200 to 800 epochs, those of SimCLR 3, of BYOL 4.
- Small views first pay little with `tiny` (`tune_cifar10_tiny_early`): an epoch at 24 px took 0.79 to 0.86 of the time of one at 32 px,
  not the 0.56 of its operations; kNN was 1.0 below to 0.8 above that of as many epochs without, and 0.2 below to 1.9 above that of five.
  Where the second size was compiled for the first time (SimCLR, BYOL), that took longer than it saved in so short a run.
- The recipes that end in `-fast` are put together from such parts for ResNet-18, where operations count for more; the times to 85 and
  90 % are to be measured on a GPU.
"""


def page() -> str:
    files = {f.stem: json.loads(f.read_text(encoding="utf-8")) for f in sorted(RESULTS.glob("*cifar10_*.json"))}
    tables = {k: v for k, v in files.items() if not v[0]["data"].get("held_out")}
    tried = {k: v for k, v in files.items() if k not in tables}
    parts = [HEAD, *(suite(name, runs) for name, runs in tables.items()), *full_table(files)]
    if tried:
        parts.append("## What was tried\n")
        parts += [choices(name, runs) for name, runs in tried.items()]
    return "\n".join([*parts, NEXT])


def suite(name: str, runs: list[Found]) -> str:
    """A table of final numbers, ranked, between its two anchors."""
    groups, first = grouped(runs), runs[0]
    backbone = first["name"].removeprefix(f"{first['method']}_").rpartition("_")[0]
    ranked = sorted(groups, key=lambda k: -statistics.fmean(values(groups[k], "final", "knn_top1")))
    seeds = sorted({r["seed"] for r in runs})
    rows = [row(k, groups[k], backbone, len(seeds)) for k in ranked]
    for label, key in (("raw pixels", "raw_pixels"), ("untrained backbone", "untrained")):
        found = {r["seed"]: r["baselines"][key]["knn_top1"] for r in runs if key in r["baselines"]}  # the same for every method of a seed
        alike = len(set(found.values())) == 1  # as raw pixels are
        rows.append({**dict.fromkeys(rows[0], ""), "method": label, "kNN, final": spread(list(found.values())[: 1 if alike else None])})
    rows = [{k: v for k, v in r.items() if any(o[k] for o in rows)} for r in rows]  # without columns that no row fills
    how = f"""[results/{name}.json](results/{name}.json): `ssl-zoo benchmark suite={name}`, {first["data"]["train"]:,} training and
        {first["data"]["test"]:,} test images, backbone `{backbone}`, {first["epochs"]} epochs, {"seeds" if len(seeds) > 1 else "seed"}
        {", ".join(map(str, seeds))}, {first["speed"]["precision"]} on {first["speed"]["device"]}, versions and commits in the file.
        {first["evaluation"]} Numbers are mean ± standard deviation over seeds in percent. Minutes are of one run: in all, and until the
        first evaluation whose kNN was at least so many percent (the median over seeds), of training alone / with everything
        (evaluated first after {first["curve"][0]["epoch"]} epochs). Images/s are of training."""
    text = f"## {name}\n\n{wrapped(how)}\n{table(rows)}"
    overlap = not_apart({k: v for k, v in groups.items() if k != "supervised"})
    if len(seeds) > 1:
        between = "; ".join(overlap) or "no two neighbours"
        text += "\n" + wrapped(f"Seeds overlap or nearly do, so that the order says nothing, between {between}.")
    return text


def wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 138, break_long_words=False, break_on_hyphens=False) + "\n"


def row(name: str, runs: list[Found], backbone: str, seeds: int) -> Found:
    final, best = values(runs, "final", "knn_top1"), values(runs, "best", "knn_top1")
    known = [p for p in published(runs[0]["method"], backbone, "cifar10") if p.metric == "kNN" and p.epochs == runs[0]["epochs"]]
    top = max((p.value for p in known), default=None)
    times = {p: [t for r in runs if (t := reached(r, p)) is not None] for p in REACHED.get(backbone, ())}
    return {
        "method": name + (f" ({len(runs)} of {seeds} seeds)" if len(runs) < seeds else ""),
        "kNN, final": spread(final),
        "kNN, best epoch": spread(best),
        "linear": spread(values(runs, "final", "linear_top1")),
        "online linear": spread(values(runs, "final", "online_linear_top1")),
        "published kNN, best epoch": "" if top is None else f"{top:.1f}",
        **{f"minutes to {p} %": minutes(t, len(runs)) for p, t in times.items()},
        "minutes": spread([s / 60 for s in values(runs, "seconds", "total")]),
        "images/s": f"{statistics.fmean(values(runs, 'speed', 'images_per_s')):,.0f}",
        "memory, MiB": f"{max(values(runs, 'speed', 'peak_memory_mib')):,.0f}",
        "rank": mean(values(runs, "health", "effective_rank")),
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
    file = RESULTS / "peers-resnet18-cpu.json"
    if not file.is_file():
        sys.exit(f"{file} is missing, which says how long the other tables take: python benchmarks/peers.py ... --backbone resnet18.")
    peers = json.loads(file.read_text(encoding="utf-8"))
    hours = peers["minutes_per_200_epochs"]["ssl_zoo"] / 60
    commands = " and ".join(f"`ssl-zoo benchmark suite={s}`" for s in lacking)
    per_s = 10_000
    one = 200 * 50_000 / 60 / per_s
    text = f"""{commands} are there for a GPU, and have not been run. What they take: SimCLR with ResNet-18 trains
        {peers["images_per_s"]["ssl_zoo"]:,.0f} images/s on one thread of a CPU
        ([results/peers-resnet18-cpu.json](results/peers-resnet18-cpu.json)), so that 200 epochs would take it {hours:,.0f} hours. Elsewhere
        the minutes of a run are 200 x 50,000 / 60 / (images/s), without evaluation, and its first epoch tells its images/s: at {per_s:,},
        say, {one:.0f} minutes, and {9 * one / 60:.1f} hours for the nine runs of a table; those of 800 epochs take four times as long.
        While a suite runs it says how long it has left. `--cfg job` lists the runs, the same command goes on after an interruption, and
        `method=` and `seed=` choose."""
    yield f"## Not measured yet\n\n{wrapped(text)}"


def choices(name: str, runs: list[Found]) -> str:
    """What was tried for each method, and what it gave on images that were held out of train."""
    first, seeds = runs[0], sorted({r["seed"] for r in runs})
    (k, temperature), count = first["knn"].values(), first["data"]["test"]
    rows = []
    timed = len({(r["epochs"], r["settings"].get("early_size")) for r in runs}) > 1  # else minutes tell what the machine did beside
    for method in sorted({r["method"] for r in runs}):
        own = sorted((r for r in runs if r["method"] == method), key=lambda r: -r["final"]["knn_top1"])
        for run, told in zip(own, differences(own), strict=True):
            numbers = {"kNN": f"{run['final']['knn_top1']:.1f}"}
            numbers |= {"minutes of training": f"{run['seconds']['training'] / 60:.1f}"} if timed else {}
            health = {"rank": mean(values([run], "health", "effective_rank")), "verdict": run["verdict"].partition(":")[0]}
            rows.append({"method": method, "settings": told, **numbers, **health})
    worst = max(error(r["final"]["knn_top1"], [r]) for r in runs)
    usual = max(r["epochs"] for r in runs)
    how = f"""[results/{name}.json](results/{name}.json): kNN (k={k}, T={temperature}) on {count:,} training images that were held out
        (`data.held_out={count}`), {first["data"]["train"]:,} to train on, {usual} epochs if nothing else is said, final epoch, seed
        {", ".join(map(str, seeds))}; a number has a standard error of at most {worst:.1f}. Of each method the settings are named in which
        its runs differ; commands and all settings are in the file."""
    return f"{wrapped(how)}\n{table(rows)}"


def differences(runs: list[Found]) -> list[str]:
    """The settings of each run in which these differ."""
    flat = [dict(leaves(r["settings"])) for r in runs]
    keys = [k for k in dict.fromkeys(k for f in flat for k in f) if len({str(f.get(k)) for f in flat}) > 1]
    return [", ".join(f"`{k}={f[k]}`" for k in keys if f.get(k) is not None) for f in flat]


def main() -> None:
    for place in sys.argv[1:]:
        print(write(Path(place)))
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What every benchmark shares: interleaved rounds, medians and their spread, and a JSON, a Markdown table and a plot of what was found.

Alternatives are timed in turn within each round, so that a machine that slows down slows all of them. A figure is the median over
rounds. How far to trust a ratio tells its spread: the width of the 95 % interval of its median, over that median. Where the spread of the
ratio that a script is about (ours to the peer's) is above a quarter, the result is written with `"too_busy": true` and reported as a
failure: more rounds, or a quieter machine, narrow it. Every row has its own interval.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.methods.base import Method
from ssl_zoo.methods.two_towers import TwoTowers
from ssl_zoo.nn.text import END
from ssl_zoo.reports.summary import versions

Rounds = dict[str, list[float]]
MOST = 0.25  # of a ratio's spread
LEAST = 6  # rounds


def arguments(description: str, **defaults: Any) -> argparse.Namespace:
    """OUT, --device, --threads, and an option for each default, of its type (a list takes several values)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for name, value in defaults.items():
        many = isinstance(value, list)
        kind = type(value[0]) if many else type(value)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, nargs="+" if many else None)
    found = parser.parse_args()
    if getattr(found, "rounds", LEAST) < LEAST:
        parser.error(f"--rounds {found.rounds}: a median of fewer than {LEAST} rounds has no 95 % interval.")
    torch.set_num_threads(found.threads)
    found.out.mkdir(parents=True, exist_ok=True)
    return found


def now(device: str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(kinds: dict[str, Callable[[], float]], rounds: int, warmup: int = 1) -> Rounds:
    """Seconds that each alternative reports for a round of it, `rounds` times in turn after `warmup` rounds that do not count."""
    seconds: Rounds = {k: [] for k in kinds}
    for number in range(warmup + rounds):
        for kind, run in kinds.items():
            found = run()
            if number >= warmup:
                seconds[kind].append(found)
    return seconds


def timed(run: Callable[[], Any], device: str, times: int = 1) -> Callable[[], float]:
    """A round of `times` calls, as the seconds of one."""

    def round_of() -> float:
        start = now(device)
        for _ in range(times):
            run()
        return (now(device) - start) / times

    return round_of


def ratio(seconds: Rounds, of: str, to: str) -> dict[str, float]:
    """How many times as long `of` takes as `to`: the median over rounds of the ratio in each, its 95 % interval ("low", "high") by order
    statistics, which takes `LEAST` rounds, and "spread", the width of the interval over the median.
    """
    ratios = sorted(a / b for a, b in zip(seconds[of], seconds[to], strict=True))
    n, cut = len(ratios), 0
    while sum(math.comb(n, i) for i in range(cut + 2)) <= 0.025 * 2**n:  # so seldom does the median lie below all but cut + 1 ratios
        cut += 1
    low, middle, high = ratios[cut], statistics.median(ratios), ratios[n - 1 - cut]
    return {"ratio": round(middle, 4), "low": round(low, 4), "high": round(high, 4), "spread": round((high - low) / middle, 3)}


def interval(found: dict[str, float]) -> str:
    """That of a `ratio`, for a table."""
    return f"{found['low']:.2f} to {found['high']:.2f}"


def medians(seconds: Rounds) -> dict[str, float]:
    return {k: statistics.median(v) for k, v in seconds.items()}


def words_for(method: Method, batch: int) -> dict[str, Tensor]:
    """What a step takes beside views: tokens that are drawn, for a method with words."""
    if not isinstance(method, TwoTowers):
        return {}
    tokens = torch.randint(1, END - 1, (batch, int(method.text.context)), dtype=torch.int32)
    tokens[:, -1] = END
    return {"tokens": tokens.to(method.log_scale.device)}


def facts(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else "CPU"
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions()}


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table."""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(str(r.get(k, "")) for k in head) + " |" for r in rows)]) + "\n"


def write_rows(out: Path, name: str, result: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """<name>.json and <name>.md in `out`, and the table on the terminal."""
    (out / f"{name}.json").write_text(json.dumps(result | {"rows": rows}, indent=2) + "\n")
    (out / f"{name}.md").write_text(table(rows))
    print(table(rows))


def write(
    out: Path, name: str, result: dict[str, Any], rows: list[dict[str, Any]], bars: dict[str, float], unit: str, worst: float
) -> None:
    """<name>.json, <name>.md and <name>.png in `out`. bars: what the plot shows, in `unit`. worst: the largest spread of the ratios the
    script is about: more than `MOST` ends the program with a failure, after everything is written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    busy = worst > MOST
    write_rows(out, name, result | {"worst_spread": round(worst, 3), "too_busy": busy}, rows)
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.34 * len(bars)), layout="constrained")
    axes.barh(list(bars), list(bars.values()), color="#4269d0")
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.bar_label(axes.containers[0], fmt="{:,.3g}", padding=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.savefig(out / f"{name}.png", dpi=130)
    print(f"{out}/{name}.json, .md, .png")
    if busy:
        sys.exit(f"A ratio is known to {worst:.0%} only: take more rounds, or a quieter machine.")

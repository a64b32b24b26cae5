"""Images per second of training SimCLR on CIFAR-10, end to end, beside lightly.

    python benchmarks/peers.py OUT --data CIFAR10_PARQUET --backbone resnet18 --batch 256 --steps 4 --rounds 5

One process for each contestant, each in an environment of its own (made in OUT/venv-<peer>, or given: --venv-lightly), which train
--steps steps in turn on the same decoded images with the same backbone, head, optimizer, batch size and precision. ssl_zoo runs as on
its command line, with online probe and collapse health (every 50 steps, so that rounds of 50 have it once each), without evaluation.
lightly runs its own transform on Pillow images in memory in a DataLoader, once for each of --workers with each of --lightly-threads
(0: as many as --threads), and the fastest counts.

While one trains the others wait for a line on stdin and have nothing to do: a round of lightly is an epoch of exactly so many batches,
made by workers that live on between rounds. They begin it with nothing prefetched and end it with nothing left over, so a round holds
the work of its own batches and no other; it also holds the wait for the first batch, as each epoch does. Where workers have cores of
their own (--device cuda), let a round be an epoch as users have it: --steps 195 at a batch of 256.

The method, its head, rate, decay, temperature and views are those of lightly's published CIFAR-10 runs of SimCLR, which have ResNet-18, a
batch of 128 or 512 and 200 epochs: --backbone resnet18 --batch 128. The minutes of 200 epochs are extrapolated from the medians, without
evaluation.

Each also takes as many steps on views at hand; what the whole step takes beyond that is the share of data and augmentation.
solo-learn cannot be measured beside them: every release needs torch 1.9.1, which Python 3.11 does not have.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import Rounds, arguments, facts, interleaved, interval, medians, ratio, write

from ssl_zoo.data.downloads import Torchvision
from ssl_zoo.reports.summary import versions

HERE = Path(__file__).resolve().parent
EPOCHS = 200
OURS, STILL = "ssl_zoo", ", views at hand"


def environment(given: str, out: Path, peer: str) -> Path:
    """The Python of an environment with `peer` and our versions of torch, torchvision and timm; `given`, or made where there is none."""
    folder = Path(given) if given else out / f"venv-{peer}"
    python = folder / "bin/python"
    if not python.exists():
        own = versions()
        wanted = [peer, *(f"{p}=={own[p].partition('+')[0]}" for p in ("torch", "torchvision", "timm"))]
        uv = shutil.which("uv")
        make = [uv, "venv", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
        install = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
        for command in ([*make, str(folder)], [*install, *wanted]):
            if subprocess.run(command).returncode:
                shutil.rmtree(folder, ignore_errors=True)
                sys.exit(f"{peer} cannot be installed here ({' '.join(command)}): give its environment with --venv-{peer}.")
    return python


class Contestant:
    """A process that trains when told to. facts: what it said of itself when it was ready."""

    def __init__(self, name: str, python: Path | str, script: str, settings: dict[str, Any]) -> None:
        self.name, self.log = name, Path(settings["out"]) / f"{name.replace(', ', '-').replace(' ', '_')}.log"
        env = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": str(settings["threads"])}
        with open(self.log, "w") as log:
            command = [str(python), str(HERE / script), json.dumps(settings)]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        self.facts = json.loads(self._hear().removeprefix("ready "))

    def _hear(self) -> str:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            sys.exit(f"{self.name} ended early; its last words are in {self.log}.")
        return line

    def take(self, kind: str, steps: int) -> float:
        """Seconds of a round: "go" for whole steps, "still" for steps on views at hand."""
        print(kind, steps, file=self.process.stdin, flush=True)
        seconds = float(self._hear())
        print(f"{self.name}, {kind} {steps}: {seconds:.2f} s", file=sys.stderr)
        return seconds

    def end(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait(60)


def start(options: argparse.Namespace) -> list[Contestant]:
    python = environment(options.venv_lightly, options.out, "lightly")
    images = options.out.resolve() / "images.npy"
    np.save(images, Torchvision("CIFAR10", options.data, cache=str(options.out / "cache")).load("train").pixels.permute(0, 2, 3, 1).numpy())
    settings = {k: getattr(options, k) for k in ("backbone", "batch", "device", "threads")}
    options.train_images = len(np.load(images, mmap_mode="r"))
    settings |= {"data": str(Path(options.data).resolve()), "images": str(images), "out": str(options.out.resolve())}
    found = [Contestant(OURS, sys.executable, "peer_ssl_zoo.py", settings)]
    for threads, workers in itertools.product(options.lightly_threads, options.workers):
        own = settings | {"workers": workers, "threads": threads or options.threads}
        name = f"lightly, {workers} workers, {own['threads']} thread{'s' if own['threads'] > 1 else ''}"
        found.append(Contestant(name, python, "peer_lightly.py", own))
    for c in found[1:]:
        if any(c.facts[k] != found[0].facts[k] for k in ("backbone", "head")):
            sys.exit(f"{c.name} has {c.facts['backbone']} + {c.facts['head']} parameters, ssl_zoo {found[0].facts}: not the same network.")
    return found


def alike(a: Contestant, b: Contestant) -> bool:
    """Whether two take the same step once they have their views: of one library, with as many threads."""
    return (a.name == OURS) == (b.name == OURS) and a.facts["threads"] == b.facts["threads"]


def still(contestants: list[Contestant]) -> dict[str, Contestant]:
    """The first of each kind that takes the same step: workers make no difference to it."""
    return {c.name: c for i, c in enumerate(contestants) if not any(alike(c, other) for other in contestants[:i])}


def main() -> None:
    options = arguments(
        __doc__, data="", backbone="resnet18", batch=256, steps=4, rounds=12, workers=[0, 2], lightly_threads=[0], venv_lightly=""
    )
    if not options.data:
        sys.exit("CIFAR-10 is needed: add --data FOLDER_OF_PARQUET.")
    contestants = start(options)
    kinds: dict[str, Callable[[], float]] = {c.name: partial(c.take, "go", options.steps) for c in contestants}
    kinds |= {name + STILL: partial(c.take, "still", options.steps) for name, c in still(contestants).items()}
    seconds = interleaved(kinds, options.rounds)
    for c in contestants:
        c.end()
    report(options, contestants, seconds)


def report(options: argparse.Namespace, contestants: list[Contestant], seconds: Rounds) -> None:
    names, middle = [c.name for c in contestants], medians(seconds)
    best = min(names[1:], key=lambda n: middle[n])
    at_hand = {c.name: next(n for n, s in still(contestants).items() if alike(c, s)) + STILL for c in contestants}
    per_second = {k: round(options.steps * options.batch / v, 1) for k, v in middle.items()}
    minutes = {c: round(EPOCHS * options.train_images / per_second[c] / 60, 1) for c in names}
    share = {n: round(1 - statistics.median(s / w for s, w in zip(seconds[at_hand[n]], seconds[n], strict=True)), 3) for n in names}
    against, steps = ratio(seconds, best, OURS), ratio(seconds, at_hand[best], at_hand[OURS])
    result = facts(options.device) | {
        "settings": {
            **{k: getattr(options, k) for k in ("backbone", "batch", "steps", "rounds", "train_images")},
            "precision": "bf16-mixed" if options.device == "cuda" else "32-true",
            "optimizer": "sgd",
            "data": Path(options.data).name,
        },
        "contestants": {c.name: c.facts for c in contestants},
        "same_torch": len({c.facts["versions"]["torch"].partition("+")[0] for c in contestants}) == 1,
        "images_per_s": per_second,
        "minutes_per_200_epochs": minutes,
        "share_of_data_and_augmentation": share,
        "ssl_zoo_over_lightly": {"lightly": best, **against},
        "ssl_zoo_over_lightly_with_views_at_hand": steps,
        "seconds": {k: [round(s, 4) for s in v] for k, v in seconds.items()},
    }
    rows = [
        {
            "": n,
            "images/s": f"{per_second[n]:,.1f}",
            f"times {best}": f"{r['ratio']:.2f}",
            "95 % interval": interval(r),
            f"minutes of {EPOCHS} epochs": f"{minutes[n]:,.0f}" if n in minutes else "",
            "data and augmentation": f"{share[n]:.0%}" if n in share else "",
        }
        for n in per_second
        for r in [ratio(seconds, best, n)]
    ]
    name = "-".join(["peers", *([] if options.backbone == "tiny" else [options.backbone]), options.device])
    write(options.out, name, result, rows, per_second, "images per second", against["spread"])


if __name__ == "__main__":
    main()

"""How a contestant of peers.py is told what to do: its settings as JSON in argv, then one line for each round on stdin.

It answers "ready {...}" once it is warm, and the seconds of each round. Whatever else is printed goes to stderr. Imports no ssl_zoo: peers
have environments of their own.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

import torch

WARMUP = 3  # steps
WEIGHT_DECAY, MOMENTUM, BASE_LR, TEMPERATURE, PROJ_DIM = 5e-4, 0.9, 0.12, 0.5, 128


class Line:
    """settings: data, images, backbone, batch, steps, device, threads, workers and out, as peers.py writes them."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries print
        self.settings = SimpleNamespace(**json.loads(sys.argv[1]))
        torch.set_num_threads(self.settings.threads)
        torch.manual_seed(0)

    def ready(self, packages: list[str], **facts: Any) -> None:
        facts |= {"threads": torch.get_num_threads(), "versions": {p: installed(p) for p in ("torch", "torchvision", "timm", *packages)}}
        print(f"ready {json.dumps(facts)}", file=self.answers)

    def answer(self, seconds: float) -> None:
        print(seconds, file=self.answers)

    def rounds(self) -> Iterator[tuple[str, int]]:
        """("go", steps) for whole steps, ("still", steps) for steps on views at hand; ends with stdin."""
        for line in sys.stdin:
            kind, steps = line.split()
            yield kind, int(steps)

    def now(self) -> float:
        if self.settings.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())

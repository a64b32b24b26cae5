"""How near a training step comes to its ceiling: forward, backward and optimizer alone on views that already lie on the device.

    python benchmarks/step.py backbone=tiny dataset=shapes batch_size=256

Takes the overrides of `ssl-zoo`. Interleaves rounds of the whole step (loader, augmentation, model, optimizer) and of the ceiling,
so that a machine that slows down slows both; prints medians, their ratio and its spread as JSON, and refuses a ratio that differs
by more than a quarter between rounds.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

from ssl_zoo.build import build_data, build_method
from ssl_zoo.config import compose
from ssl_zoo.data.loader import Loader
from ssl_zoo.optim.build import build_optimizer
from ssl_zoo.reports.summary import versions

ROUNDS, STEPS, WARMUP, SPREAD = 7, 8, 3, 0.25


def main() -> None:
    config = compose("train", sys.argv[1:])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = build_data(config)
    method = build_method(config, data).to(device)
    optimizer = build_optimizer(method, dict(config.optimizer))
    loader = Loader(data.train, config.batch_size, config.seed, device, resident=config.data.resident)
    batches = endless(loader)
    still = [v.clone() for v in method.augment(next(batches)["image"], 0)]

    def step(views: list[torch.Tensor]) -> None:
        optimizer.zero_grad()
        method.step(views, {})["loss"].backward()
        optimizer.step()

    kinds: dict[str, Callable[[], None]] = {
        "whole": lambda: step(method.augment(next(batches)["image"], 1)),
        "ceiling": lambda: step(still),
        "augment": lambda: method.augment(next(batches)["image"], 1),
    }
    seconds: dict[str, list[float]] = {k: [] for k in kinds}
    for number in range(WARMUP + ROUNDS):
        for kind, run in kinds.items():
            start = clock(device)
            for _ in range(STEPS):
                run()
            if number >= WARMUP:
                seconds[kind].append((clock(device) - start) / STEPS)
    report(config.batch_size, seconds, str(device))


def endless(loader: Loader):
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def report(batch_size: int, seconds: dict[str, list[float]], device: str) -> None:
    median = {k: statistics.median(v) for k, v in seconds.items()}
    ratios = [c / w for c, w in zip(seconds["ceiling"], seconds["whole"], strict=True)]
    spread = (max(ratios) - min(ratios)) / statistics.median(ratios)
    found = {
        "images_per_s": {k: round(batch_size / m, 1) for k, m in median.items()},
        "whole_over_ceiling": round(statistics.median(ratios), 3),
        "spread": round(spread, 3),
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    print(json.dumps(found, indent=2))
    if spread > SPREAD:
        sys.exit(f"The rounds differ by {spread:.0%}: this machine is too busy for a figure.")


if __name__ == "__main__":
    main()

"""Where the time of a training step goes: the model, the augmentation, the data, the framework.

    python benchmarks/step.py OUT --set backbone=tiny dataset=cifar10 batch_size=256

--set takes the overrides of `ssl-zoo`. In one process and in turn, over the same model and images:
whole     steps of the Trainer with the callbacks of a run (probe, health, progress, throughput), evaluation left out
bare      the same steps as a plain loop: batch, views, loss, backward, optimizer
ceiling   the bare loop on views that already lie on the device
views     batch and views alone;  data: the batch alone
The tax of the framework is whole / bare - 1, that of augmentation and data 1 - ceiling / bare.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as L
import torch
from harness import arguments, facts, medians, now, ratio, timed, words_for, write
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ssl_zoo.build import build_data, build_method, build_tokens, build_trainer, data_for, precision
from ssl_zoo.callbacks.guard import Guard
from ssl_zoo.callbacks.health import Health
from ssl_zoo.callbacks.place import Place
from ssl_zoo.callbacks.probe import OnlineProbe
from ssl_zoo.callbacks.progress import RunProgress
from ssl_zoo.callbacks.stop import Stop
from ssl_zoo.callbacks.throughput import Throughput
from ssl_zoo.config import compose
from ssl_zoo.data.loader import Loader
from ssl_zoo.methods.base import Method
from ssl_zoo.optim.build import build_optimizer
from ssl_zoo.train import quieten


def endless(loader: Loader) -> Iterator[dict[str, Tensor]]:
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


class Contest(Callback):
    """Every `steps` steps of the Trainer: note how long they took, then run a round of each alternative; ends training after `rounds`."""

    def __init__(self, others: dict[str, Any], steps: int, rounds: int, device: str, warmup: int = 2) -> None:
        self.seconds: dict[str, list[float]] = {k: [] for k in ("whole", *others)}
        self.others, self.steps, self.rounds, self.device, self.warmup = others, steps, rounds, device, warmup
        self.number, self.done, self.start = 0, 0, 0.0

    def on_train_start(self, *args: Any) -> None:
        self.start = now(self.device)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.done += 1
        if self.done % self.steps:
            return
        found = {"whole": (now(self.device) - self.start) / self.steps}
        found |= {k: run() for k, run in self.others.items()}
        if self.number >= self.warmup:
            for k, v in found.items():
                self.seconds[k].append(v)
        self.number += 1
        trainer.should_stop = self.number >= self.warmup + self.rounds
        self.start = now(self.device)


def alternatives(method: Method, config: Any, loader: Loader, device: str, steps: int) -> dict[str, Any]:
    optimizer = build_optimizer(method, dict(config.optimizer), fused=True)
    half = str(precision(config)).startswith("bf16")
    batches = endless(loader)
    still: list[Tensor] = []
    words = words_for(method, config.batch_size)

    def views() -> list[Tensor]:
        batch = next(batches)
        made = method.augment(batch["image"], 1) if "image" in batch else method.augment(batch["pixels"], 1, batch["index"])
        return made

    def step(x: list[Tensor]) -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext():
            loss = method.step(x, words)["loss"]
        loss.backward()
        optimizer.step()
        method.after_step()

    def ceiling() -> None:
        if not still:
            still.extend(v.clone() for v in views())
        step(still)

    kinds = {"bare": lambda: step(views()), "ceiling": ceiling, "views": views, "data": lambda: next(batches)}
    return {k: timed(torch.enable_grad()(run), device, steps) for k, run in kinds.items()}


def main() -> None:
    options = arguments(__doc__, set=["backbone=tiny"], rounds=9, steps=8)
    quieten()
    config = compose("train", [*options.set, "epochs=1000000", "trainer.devices=1", "+trainer.enable_checkpointing=false"])
    config.trainer.accelerator = "gpu" if options.device == "cuda" else "cpu"
    config.augment.compile = True if config.augment.compile == "auto" else config.augment.compile
    data = data_for(config, build_data(config))
    method = build_method(config, data)
    loaders = [
        Loader(data.train, config.batch_size, config.seed, options.device, resident=config.data.resident, gather=False,
               tokens=build_tokens(method, data.train))
        for _ in range(2)
    ]  # fmt: skip
    contest = Contest(
        alternatives(method, config, loaders[1], options.device, options.steps), options.steps, options.rounds, options.device
    )
    probe = OnlineProbe(method.backbone.num_features, data.train.num_classes) if data.train.labels is not None else None
    with TemporaryDirectory() as folder:
        callbacks = [
            Guard(Path(folder)),
            Throughput(time.perf_counter()),
            *([probe] if probe else []),
            Health(),
            RunProgress(),
            Stop(f"{folder}/last.ckpt"),
            Place(loaders[0]),
            contest,
        ]
        trainer = build_trainer(config, Path(folder), callbacks)
        if config.trainer.compile:
            method.backbone.compile()
        trainer.fit(method, loaders[0])
    seconds = contest.seconds
    middle = medians(seconds)
    whole, top = ratio(seconds, "whole", "bare"), ratio(seconds, "ceiling", "bare")
    result = facts(options.device) | {
        "command": " ".join(options.set),
        "batch_size": config.batch_size,
        "milliseconds_per_step": {k: round(v * 1e3, 2) for k, v in middle.items()},
        "images_per_s": {k: round(config.batch_size / v, 1) for k, v in middle.items()},
        "framework_tax_percent": round((whole["ratio"] - 1) * 100, 2),
        "framework_tax_interval_percent": [round((whole[k] - 1) * 100, 2) for k in ("low", "high")],
        "augmentation_and_data_tax_percent": round((1 - top["ratio"]) * 100, 2),
        "of_the_ceiling_percent": round(ratio(seconds, "ceiling", "whole")["ratio"] * 100, 1),
        "spread": {"framework": whole["spread"], "ceiling": top["spread"]},
    }
    if options.device == "cuda":
        result["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    rows = [
        {
            "": k,
            "ms / step": f"{v * 1e3:.1f}",
            "images/s": f"{config.batch_size / v:,.0f}",
            "share of the whole step": f"{v / middle['whole']:.1%}",
        }
        for k, v in middle.items()
    ]
    name = "-".join(str(w).split("=")[-1] for w in options.set)
    write(
        options.out,
        f"step-{options.device}-{name}",
        result,
        rows,
        result["milliseconds_per_step"],
        "milliseconds per step",
        whole["spread"],
    )
    print({k: v for k, v in result.items() if k.endswith("percent")})


if __name__ == "__main__":
    main()

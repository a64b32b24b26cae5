"""kNN, linear probe and collapse health while a method trains. Reads features; never adds to the loss."""

import copy
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ssl_zoo.callbacks.health import Health
from ssl_zoo.callbacks.probe import OnlineProbe
from ssl_zoo.callbacks.throughput import Throughput
from ssl_zoo.collapse.health import measure, verdict
from ssl_zoo.data.images import Images, spread
from ssl_zoo.data.ondemand import OnDemand
from ssl_zoo.distributed import broadcast_buffers, fold_seed, union
from ssl_zoo.evaluation.features import eval_mode, extract, raw_pixels
from ssl_zoo.evaluation.knn import accuracy
from ssl_zoo.evaluation.labelled import knn_top1, labelled_pair, linear
from ssl_zoo.evaluation.pictures import figure_data, save_figure_data
from ssl_zoo.evaluation.word_pictures import word_figure_data
from ssl_zoo.methods.two_towers import TwoTowers

SAMPLE = 2048  # images in the health numbers
RAW = 50_000  # images in the bank of raw pixels: 600 MB


@dataclass
class Judge:
    """Evaluates one backbone on one pair of splits. mean, std: the normalisation of the method's views."""

    train: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: dict[str, Any]
    seed: int = 0

    def features(self, backbone: torch.nn.Module, images: Images, device: torch.device) -> Tensor:
        return extract(backbone, images.pixels, images.image_size, self.mean, self.std, device, self.options["batch_size"])

    @functools.cached_property
    def known(self) -> Images:
        """The labelled part of train: the bank of the final evaluation."""
        return self.train.only_labelled()

    @functools.cached_property
    def bank(self) -> Images:
        """What of it serves as bank while training."""
        return self.known.some(min(self.options["bank"], len(self.known)))


class Evaluate(Callback):
    """Every `every_n_epochs`: eval/knn_top1, eval/online_linear_top1, health/*. At the end `final` holds the results on all of
    train, and the figures' data is written to `figures`. speed: counts the seconds in which each evaluation was reached.
    """

    def __init__(self, judge: Judge, figures: Path, probe: OnlineProbe | None, watch: Health, speed: Throughput) -> None:
        self.judge, self.figures, self.probe, self.watch, self.speed = judge, figures, probe, watch, speed
        self.unlabelled = labelled_pair(judge.train, judge.test)
        self.baselines: dict[str, dict[str, float]] = {}
        self.untrained: dict[str, Tensor] = {}  # weights that are yet to be judged
        self.history: list[dict[str, float]] = []
        self.final: dict[str, float] = {}
        self.health: dict[str, float] = {}
        self.verdict = ""
        self.seconds = 0.0
        self.pending = 0  # an epoch that was saved before it was judged
        self.caught_up = 0  # that epoch, once it is judged by the process that goes on
        self.skipped: list[str] = []  # files that could not be read, on all ranks

    def state_dict(self) -> dict[str, Any]:
        whole = {"baselines": self.baselines, "untrained": self.untrained, "history": self.history, "seconds": self.seconds}
        return {**whole, "pending": self.pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.baselines, self.history, self.seconds = state["baselines"], list(state["history"]), state["seconds"]
        self.untrained, self.pending = state.get("untrained", {}), state.get("pending", 0)  # older versions kept none

    # ------------------------------------------------------------------------------------ before
    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The untrained backbone, before the first step; where images are decoded on demand, its weights are kept for the end. Raw pixels
        can wait too: training should start soon. A run that ended before its last epoch was judged does that first.
        """
        if self.pending:
            self.caught_up = self.pending
            metrics = {"epoch": self.pending - 1, **self.evaluate(module, self.judge.bank, self.pending)[0]}
            for logger in trainer.loggers:
                logger.start = trainer.global_step  # of metrics.csv: its last row is completed
                logger.log_metrics(metrics, step=trainer.global_step - 1)
        if self.unlabelled or not self.judge.options["baselines"] or trainer.global_step > 0:
            return
        start = time.perf_counter()
        if isinstance(self.judge.train.pixels, OnDemand):
            self.untrained = {k: v.cpu().clone() for k, v in module.evaluated.state_dict().items()}
        else:
            self.judge_untrained(module.evaluated, module.device)
        self.seconds += time.perf_counter() - start

    def judge_untrained(self, backbone: torch.nn.Module, device: torch.device) -> None:
        j = self.judge
        bank, queries = (j.features(backbone, images, device) for images in (j.known, j.test))
        self.baselines["untrained"] = {"knn_top1": knn_top1(bank, j.known, queries, j.test, j.options["knn"])}

    def judge_raw_pixels(self, device: torch.device) -> None:
        """kNN and linear probe on the pixels themselves, measured like the features; the probe with `bank` images at most, for its cost."""
        j = self.judge
        most = j.known.some(min(RAW, len(j.known)))
        bank, few, queries = (raw_pixels(i.pixels, i.image_size, j.mean, j.std).to(device) for i in (most, j.bank, j.test))
        found = {"knn_top1": knn_top1(bank, most, queries, j.test, j.options["knn"])}
        if j.options["linear"]["final"]:
            found["linear_top1"] = linear(few, j.bank, queries, j.test, j.options["linear"], j.seed)["top1"]
        self.baselines["raw_pixels"] = found

    # ------------------------------------------------------------------------------------ during
    def due(self, trainer: L.Trainer) -> bool:
        every, epochs = self.judge.options["every_n_epochs"], trainer.max_epochs or 1
        every = max(1, epochs // 10) if every == "auto" else every
        return (trainer.current_epoch + 1) % every == 0 and trainer.current_epoch + 1 < epochs

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.due(trainer):
            module.log_dict(self.evaluate(module, self.judge.bank, trainer.current_epoch + 1)[0])

    def evaluate(self, module: L.LightningModule, train: Images, epoch: int) -> tuple[dict[str, float], Tensor | None, Tensor]:
        """Metrics after `epoch` epochs with `train` as bank, and the features of bank (None without labels) and test."""
        start = time.perf_counter()
        j = self.judge
        broadcast_buffers(module.evaluated)  # each rank extracts a part: with the same network
        queries = j.features(module.evaluated, j.test, module.device)
        bank, metrics = None, {}
        if self.unlabelled is None:
            bank = j.features(module.evaluated, train, module.device)
            metrics["eval/knn_top1"] = knn_top1(bank, train, queries, j.test, j.options["knn"])
            if self.probe is not None:
                known = j.test.labelled.to(queries.device)
                metrics["eval/online_linear_top1"] = accuracy(self.probe.scores(queries[known]), j.test.labels[j.test.labelled])
        self.health = measure(queries[spread(len(queries), min(SAMPLE, len(queries)))], *self.view_features(module))
        metrics.update({f"health/{k}": v for k, v in self.health.items()})
        self.history.append({"epoch": epoch, "training_s": self.speed.seconds, "total_s": self.speed.total, **metrics})
        self.verdict = self.watch.finding or verdict(self.health, queries.shape[1], min(len(queries), SAMPLE))
        self.health |= self.watch.projections  # of the last training batch that was watched, the rest is of test images
        self.pending = 0
        self.seconds += time.perf_counter() - start
        return metrics, bank, queries

    @torch.no_grad()
    def view_features(self, module: L.LightningModule) -> tuple[Tensor, Tensor]:
        """Features of two views of some test images, drawn the same at every evaluation."""
        test = self.judge.test
        pixels = test.pixels[spread(len(test), min(512, len(test)))].to(module.device)
        views = module.augment(pixels, fold_seed("health", self.judge.seed))
        if len(views) == 1:
            views += module.augment(pixels, fold_seed("health", self.judge.seed, 1))
        with eval_mode(module.evaluated):
            dtype = next(module.evaluated.parameters()).dtype  # a teacher keeps its own
            h1, h2 = (module.evaluated(v.to(dtype)).float() for v in views[:2])
        return h1, h2

    # ------------------------------------------------------------------------------------ after
    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        j = self.judge
        metrics, bank, queries = self.evaluate(module, j.known, trainer.current_epoch)
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **metrics}, step=trainer.global_step)
        start = time.perf_counter()
        last = self.history[-1]
        self.final = {"epoch": last["epoch"]}
        for key in ("knn_top1", "online_linear_top1"):
            if f"eval/{key}" in last:
                self.final[key] = last[f"eval/{key}"]
        if bank is not None and j.options["linear"]["final"]:
            found = linear(bank, j.known, queries, j.test, j.options["linear"], j.seed)
            self.final |= {"linear_top1": found["top1"], "linear_top5": found["top5"], "linear_l2": found["l2"]}
        if self.untrained:
            backbone = copy.deepcopy(module.evaluated)
            backbone.load_state_dict(self.untrained)
            self.judge_untrained(backbone, module.device)
        if j.options["baselines"] and self.unlabelled is None:
            self.judge_raw_pixels(module.device)
        self.skipped = union([*j.train.skipped, *j.test.skipped])
        if trainer.is_global_zero:  # for as long as it takes: nobody waits for it
            self.save_figures(module, bank, queries)
        self.seconds += time.perf_counter() - start

    def save_figures(self, module: L.LightningModule, bank: Tensor | None, queries: Tensor) -> None:
        """What the report draws of test images, into data.npz."""
        j = self.judge

        def views(images: Tensor) -> list[Tensor]:
            return module.augment(images, fold_seed("figure", j.seed)) + module.augment(images, fold_seed("figure", j.seed, 1))

        known = j.known if bank is not None else None
        data = figure_data(module.evaluated, j.test, queries, j.mean, j.std, views, known, bank, j.options["map"], j.seed)
        if isinstance(module, TwoTowers):
            data |= word_figure_data(module.project, module.text, j.test, queries)
        save_figure_data(self.figures, data)

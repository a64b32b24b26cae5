"""How fast training goes, without evaluation."""

import time
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback


class Throughput(Callback):
    """Logs speed/images_per_s once an epoch; `seconds` and `images` add up over this process's training steps."""

    def __init__(self) -> None:
        self.seconds, self.images, self._start, self._batches = 0.0, 0, 0.0, 0

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._start, self._batches = self._now(module), 0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        self._batches += 1

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        seconds = self._now(module) - self._start
        images = self._batches * module.batch_size * trainer.world_size
        self.seconds += seconds
        self.images += images
        if images:
            module.log("speed/images_per_s", images / max(seconds, 1e-9))

    @staticmethod
    def _now(module: L.LightningModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return time.perf_counter()

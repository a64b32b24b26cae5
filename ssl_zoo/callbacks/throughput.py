"""How fast training goes, without evaluation."""

import time
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback


class Throughput(Callback):
    """Logs speed/images_per_s and speed/data_wait, the per cent of training time in which batches were waited for, once an epoch;
    `seconds`, `waited` (seconds) and `images` add up over whole epochs, also those before a resume. started: when the process began, by
    time.perf_counter; `total` adds up all seconds from there.
    """

    def __init__(self, started: float) -> None:
        self.started, self.earlier = started, 0.0
        self.seconds, self.waited, self.images = 0.0, 0.0, 0
        self._start, self._before, self._batches = 0.0, 0.0, 0

    @property
    def total(self) -> float:
        return self.earlier + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "waited": self.waited, "images": self.images, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds, self.waited, self.images = state["seconds"], state["waited"], state["images"]
        self.earlier = state.get("total", self.seconds)  # which older checkpoints lack

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._start, self._before, self._batches = self._now(module), self._waited(trainer), 0

    on_train_epoch_start = on_train_start  # which a run that goes on within an epoch does not call

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        self._batches += 1

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        seconds = self._now(module) - self._start
        images = self._batches * module.batch_size * trainer.world_size
        waited = self._waited(trainer) - self._before
        self.seconds += seconds
        self.waited += waited
        self.images += images
        if images:
            module.log("speed/images_per_s", images / max(seconds, 1e-9))
            module.log("speed/data_wait", 100 * waited / max(seconds, 1e-9))

    @staticmethod
    def _waited(trainer: L.Trainer) -> float:
        return getattr(trainer.train_dataloader, "waited", 0.0)  # a loader that is not ours does not count

    @staticmethod
    def _now(module: L.LightningModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return time.perf_counter()

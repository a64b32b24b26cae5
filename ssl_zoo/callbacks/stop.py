"""Ctrl-C and SIGTERM end a run after the current step, with everything saved; a resumed run goes on with the next batch."""

import signal
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback

from ssl_zoo.distributed import max_over_ranks


class Stopped(Exception):
    """Training ended on request and is saved. An exception, because a loop that merely stops would count its epoch as finished."""


class Stop(Callback):
    """On the first signal: finish the step, write `checkpoint`, raise Stopped. On the second: raise it at once.

    With several devices a signal may reach one of them only, so they agree on it every `every_n_steps` steps and stop at the same one.
    After the last step of an epoch, the epoch is judged and saved first.
    """

    def __init__(self, checkpoint: str, every_n_steps: int = 10) -> None:
        self.checkpoint, self.every_n_steps, self.asked = checkpoint, every_n_steps, False
        self._before: dict[int, Any] = {}
        self._step = 0
        self._due = False  # whether the devices have to agree at the next step
        self._epochs = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._step = trainer.global_step
        try:
            self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals stay the caller's
            self._before = {}
        if self._before and trainer.world_size > 1:  # Lightning would ask all ranks at every step, and wait for the answer
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise Stopped("Stopped at once; nothing since the last checkpoint is saved.")
        self.asked = True

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step  # gradients that accumulate are in no checkpoint
        self._due |= stepped and trainer.global_step % self.every_n_steps == 0
        if stepped and not trainer.is_last_batch and (trainer.world_size == 1 or self._due) and self._agreed(trainer):
            trainer.save_checkpoint(self.checkpoint)
            raise Stopped(f"Stopped after step {trainer.global_step}; nothing is lost.")

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._epochs += 1
        if self._epochs > 1 and self._saved(trainer) and self._agreed(trainer):
            raise Stopped(f"Stopped after epoch {trainer.current_epoch}; nothing is lost.")

    def _saved(self, trainer: L.Trainer) -> bool:
        """Whether the epoch before was saved, which not every one is; else the next step is."""
        return getattr(trainer.checkpoint_callback, "saved_step", trainer.global_step) == trainer.global_step

    def _agreed(self, trainer: L.Trainer) -> bool:
        self._due = False
        if trainer.world_size == 1:
            return self.asked
        return bool(max_over_ranks(torch.tensor([float(self.asked)], device=trainer.strategy.root_device)))

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

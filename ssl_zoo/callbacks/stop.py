"""A signal ends a run after the current step, with everything saved; a resumed run goes on with the next batch."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback

from ssl_zoo.callbacks.evaluate import Evaluate
from ssl_zoo.distributed import max_over_ranks

SIGNALS = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR2", "SIGUSR1") if hasattr(signal, n))  # the last one prevails
RUN_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: what runs the command may run it again
SAME = 2.0  # seconds in which a second signal is taken for the first: a terminal and a launcher may both pass it on


def exit_code(number: int) -> int:
    """130 after Ctrl-C and 143 after SIGTERM, as shells count; 75 after SIGUSR1 and SIGUSR2, which ask for another run."""
    return 128 + number if number in (signal.SIGINT, signal.SIGTERM) else RUN_AGAIN


class Stopped(Exception):
    """Training ended on request and is saved. An exception, because a loop that merely stops would count its epoch as finished."""

    def __init__(self, where: str, number: int, saved: bool = True) -> None:
        what = "nothing is lost" if saved else "nothing up to the last checkpoint is lost"
        super().__init__(f"Stopped {where}; {what} ({signal.Signals(number).name}).")
        self.number = number


class Stop(Callback):
    """On the first signal: finish the step, write `checkpoint`, raise Stopped. On the second: raise it at once.

    With several devices a signal may reach one of them only, so they agree on it every `every_n_steps` steps (less where steps are slow)
    and stop at the same one. An epoch that is to be judged is saved before, and judged when the run goes on. A signal while it is judged
    waits `deadline_s` for the end of that, then the process exits from a thread: the ranks may be at different places. ending: what to say
    and do at last, of the number of the signal.
    """

    def __init__(
        self,
        checkpoint: str,
        every_n_steps: int = 10,
        evaluate: Evaluate | None = None,
        deadline_s: float = 20.0,
        ending: Callable[[int], str] = lambda number: "",
    ) -> None:
        self.checkpoint, self.every_n_steps, self.evaluate, self.deadline_s, self.ending = (
            checkpoint,
            every_n_steps,
            evaluate,
            deadline_s,
            ending,
        )
        self.asked, self.number = False, int(signal.SIGINT)
        self.saved = ""  # where training is, while nothing of it is unsaved
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._step = 0
        self._due = False  # whether the devices have to agree at the next step
        self._mark = (0.0, 0)  # time and step of the last agreement
        self._epochs = 0
        self._rank = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._step, self._rank = trainer.global_step, trainer.global_rank
        self._mark = time.monotonic(), self._step
        try:
            self._before = {s: signal.signal(s, self._ask) for s in SIGNALS}
        except ValueError:  # not the main thread: signals stay the caller's
            self._before = {}
        if self._before and trainer.world_size > 1:  # Lightning would ask all ranks at every step, and wait for the answer
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and time.monotonic() - self._since > SAME:
            raise Stopped("at once", number, saved=False)
        self.hear(number)

    def hear(self, number: int) -> None:
        """A signal has come, to this process or to another rank."""
        if self.asked:
            self.number = max(self.number, number, key=SIGNALS.index)
            return
        self.asked, self.number, self._since = True, number, time.monotonic()
        timer = threading.Timer(self.deadline_s, self._late)
        timer.daemon = True
        timer.start()

    def _late(self) -> None:
        """The deadline has passed. A step is waited for all the same: it is not saved yet."""
        if not self.saved:
            return
        if self._rank == 0:
            print(f"\n{Stopped(self.saved, self.number)} {self.ending(self.number)}".rstrip(), file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(0 if self._rank else exit_code(self.number))

    # ------------------------------------------------------------------------------------ where to stop
    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step  # gradients that accumulate are in no checkpoint
        self._due |= stepped and trainer.global_step % self.every_n_steps == 0
        if stepped and not trainer.is_last_batch and (trainer.world_size == 1 or self._due) and self._agreed(trainer):
            trainer.save_checkpoint(self.checkpoint)
            raise Stopped(f"after step {trainer.global_step}", self.number)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Comes before Evaluate's. Where that has nothing to do, the epoch's own checkpoint is as near."""
        if self.evaluate is None or not self.evaluate.due(trainer):
            return
        self.evaluate.pending = trainer.current_epoch + 1
        trainer.save_checkpoint(self.checkpoint)
        trainer.checkpoint_callback.saved_step = -1  # type: ignore[union-attr]  # once it is judged, it is saved with that
        if self._agreed(trainer):
            raise Stopped(f"after epoch {trainer.current_epoch + 1}", self.number)
        self.saved = f"after epoch {trainer.current_epoch + 1}, before it was judged"

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._epochs += 1
        if self._epochs > 1 and self._saved(trainer) and self._agreed(trainer):
            raise Stopped(f"after epoch {trainer.current_epoch}", self.number)
        self.saved, self._mark = "", (time.monotonic(), trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.saved = "when all was trained, before it was judged"
        if self._agreed(trainer):
            raise Stopped(self.saved, self.number)

    def _saved(self, trainer: L.Trainer) -> bool:
        """Whether the epoch before was saved, which not every one is; else the next step is."""
        return getattr(trainer.checkpoint_callback, "saved_step", trainer.global_step) == trainer.global_step

    def _agreed(self, trainer: L.Trainer) -> bool:
        self._due = False
        if trainer.world_size == 1:
            return self.asked
        (since, step), self._mark = self._mark, (time.monotonic(), trainer.global_step)
        pace = (self._mark[0] - since) / max(1, trainer.global_step - step)
        mine = 1 + SIGNALS.index(self.number) if self.asked else 0
        heard, pace = max_over_ranks(torch.tensor([float(mine), pace], device=trainer.strategy.root_device)).tolist()
        self.every_n_steps = next((n for n in (10, 5, 2) if n * pace <= 5.0), 1)
        if heard:
            self.number = SIGNALS[int(heard) - 1]
        return bool(heard)

    @contextmanager
    def listening(self, trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
        """For what follows training: signals are heard as during it."""
        self.on_train_start(trainer, module)
        try:
            yield
        finally:
            self._restore()

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before, self.saved = {}, ""

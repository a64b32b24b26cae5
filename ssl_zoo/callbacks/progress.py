"""One quiet progress bar for the whole run."""

import sys
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class RunProgress(ProgressBar):
    """Loss, kNN, effective rank, images/s, data wait from 1 % on, time left; without a terminal, one line per evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(stderr=False, highlight=False)
        self.bar: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not (self._enabled and trainer.is_global_zero and sys.stdout.isatty()):
            return
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("{task.fields[facts]}"))
        self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
        total = int(trainer.estimated_stepping_batches)
        self.task = self.bar.add_task("starting", total=total, completed=trainer.global_step, facts="")
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if self.bar is not None:
            fresh = trainer._logger_connector.should_update_logs  # metrics are read on the host only on logged steps
            facts = {"facts": self._facts(trainer)} if fresh else {}
            self.bar.update(self.task, completed=trainer.global_step, description=self._epoch(trainer), **facts)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        evaluated = any(getattr(c, "history", None) and c.history[-1]["epoch"] == trainer.current_epoch + 1 for c in trainer.callbacks)
        if self._enabled and trainer.is_global_zero and self.bar is None and evaluated:
            self.console.print(f"{self._epoch(trainer)}  {self._facts(trainer)}")

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    @staticmethod
    def _epoch(trainer: L.Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"

    @staticmethod
    def _facts(trainer: L.Trainer) -> str:
        shown = (
            ("train/loss", "loss {:.3f}"),
            ("eval/knn_top1", "kNN {:.1f} %"),
            ("health/effective_rank", "rank {:.0f}"),
            ("speed/images_per_s", "{:,.0f} images/s"),
        )
        metrics = trainer.callback_metrics
        facts = [form.format(float(metrics[key])) for key, form in shown if key in metrics]
        waited = float(metrics.get("speed/data_wait", 0.0))
        return "  ".join([*facts, *([f"data wait {waited:.0f} %"] if waited >= 1 else [])])

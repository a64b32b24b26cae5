"""Checkpoints: when one is written, how it is kept whole, and what stays beside last.ckpt."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ssl_zoo.callbacks.csv_log import CSVLog
from ssl_zoo.callbacks.evaluate import Evaluate
from ssl_zoo.distributed import max_over_ranks
from ssl_zoo.errors import UserError
from ssl_zoo.files import REFUSED, also, disk_error, whole
from ssl_zoo.metrics import BETTER

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


def onward(run: Path) -> str:
    """How a run that has ended before its time goes on."""
    saved = any((run / "checkpoints" / f).is_file() for f in (LAST, PREVIOUS))
    return f"Continue with: ssl-zoo resume run={run}" if saved else "Nothing was saved yet: start the run again."


def unwritten(error: BaseException, run: Path, writing: bool = False) -> UserError | None:
    """What to say when a file of a run cannot be written; None where the disk is not to blame. writing: any OSError is of the disk."""
    refused = disk_error(error)
    if "PytorchStreamWriter" not in str(error) and (refused is None or not (writing or refused.errno in REFUSED)):
        return None
    reason, name = (refused.strerror, refused.filename) if refused else ("the write failed", None)
    place = str(name or run).removesuffix(".part")
    return UserError(f"{place} cannot be written ({reason}): free space there or make it writable. {onward(run)}")


class WholeFiles(TorchCheckpointIO):
    """Lightning's way of writing a checkpoint, but whole or not at all, and with the one before it kept as previous.ckpt.

    replace: do not keep what is there, which cannot be read. written: called after each checkpoint.
    """

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run, self.replace, self.checked = run, False, False
        self.written: Callable[[Path], None] = lambda file: None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        file = Path(path)
        try:
            with whole(file, None if self.replace or file.name != LAST else file.with_name(PREVIOUS)) as f:
                torch.save(checkpoint, f)
            self._read_back(file)
            self.written(file)
        except Exception as e:  # torch and safetensors raise their own kinds for a full disk
            if isinstance(e, UserError) or (told := unwritten(e, self.run, writing=True)) is None:
                raise
            raise told from e
        self.replace = False

    def _read_back(self, file: Path) -> None:
        """Once in a run: what a method or callback adds to its state must be plain values and tensors, or no resume could read it."""
        if self.checked:
            return
        try:
            torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as e:
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"{file} holds more than plain values and tensors, so it could not be resumed ({reason}).") from e
        self.checked = True


class Checkpoints(Checkpoint):
    """Writes `folder`/last.ckpt every `every_n_epochs` epochs, every `every_n_steps` optimizer steps, for the best epoch, and at the end.

    keep: so many of the newest stay as step-*.ckpt. best: a metric of ssl_zoo.metrics whose best epoch stays as best.ckpt, with its value
    in best.json. Both are links, so they cost no writing. weights: saves the backbone beside each checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        evaluate: Evaluate,
        weights: Callable[[Path], None],
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        keep: int = 0,
        best: str | None = None,
    ) -> None:
        self.folder, self.evaluate, self.weights = folder, evaluate, weights
        self.every_n_epochs, self.every_n_steps, self.keep, self.best = every_n_epochs, every_n_steps, keep, best
        self.saved_step = -1  # of the newest checkpoint, on all ranks
        self._step, self._due, self._improved, self._now = 0, False, False, math.nan
        if best and best.startswith("eval/") and (evaluate.unlabelled or (evaluate.probe is None and "online" in best)):
            why = evaluate.unlabelled or "evaluation.online_probe=false"
            raise UserError(f"checkpoint.best={best} is not measured in this run ({why}): choose health/effective_rank or null.")

    # ------------------------------------------------------------------------------------ when
    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io.written = self._written  # type: ignore[attr-defined]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._step = trainer.global_step
        mine = torch.tensor([self._step, -self._step], device=trainer.strategy.root_device)
        if int(max_over_ranks(mine).sum()):  # the ranks read different files
            raise UserError("The devices do not start from the same step: is the run folder the same disk on all machines?")
        for logger in trainer.loggers:
            if isinstance(logger, CSVLog):
                logger.start = self._step
        if trainer.is_global_zero and self.evaluate.caught_up and self._is_best({}, self.evaluate.caught_up):
            self._keep_best(Path(str(trainer.ckpt_path)), self._step)  # saved before it was judged

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step  # gradients that accumulate are in no checkpoint
        if not stepped or not self.every_n_steps or trainer.global_step % self.every_n_steps:
            return
        if trainer.is_last_batch or trainer.global_step == trainer.max_steps:
            self._due = True  # when the epoch is judged
        else:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        done = trainer.current_epoch + 1
        ends = done == trainer.max_epochs or trainer.global_step == trainer.max_steps or trainer.should_stop
        asked = any(getattr(c, "asked", False) for c in trainer.callbacks)  # to stop
        self._improved = self._is_best(trainer.callback_metrics, done)
        wanted = self._improved or asked or self._due or ends or done % self.every_n_epochs == 0
        if trainer.strategy.reduce_boolean_decision(wanted, all=False):
            self._save(trainer)
        self._due = self._improved = False

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The last epoch is judged only now, when its checkpoint is written."""
        if trainer.is_global_zero and self._is_best({}, trainer.current_epoch):
            self._keep_best(self.folder / LAST, trainer.global_step)

    def _save(self, trainer: L.Trainer) -> None:
        if self.saved_step != trainer.global_step:
            trainer.save_checkpoint(self.folder / LAST)

    # ------------------------------------------------------------------------------------ with it
    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Whoever saves: metrics.csv is complete up to the checkpoint first, as Lightning logs a step only after its checkpoint."""
        self.saved_step = trainer.global_step
        connector = trainer._logger_connector
        within = connector._first_loop_iter is not None
        logged = connector.metrics["log"] if not within or connector.should_update_logs else {}
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - (not within)
        for logger in trainer.loggers:
            if isinstance(logger, CSVLog):
                if logged:
                    logger.log_metrics({"epoch": trainer.current_epoch, **{k: float(v) for k, v in logged.items()}}, step)
                logger.sync()

    @rank_zero_only
    def _written(self, file: Path) -> None:
        if file.name != LAST:
            return
        if self._improved:
            self._keep_best(file, self.saved_step)
        if self.keep:
            also(file, self.folder / f"step-{self.saved_step:08}.ckpt")
            numbered = [f for f in self.folder.iterdir() if re.fullmatch(r"step-\d{8,}\.ckpt", f.name)]
            for old in sorted(numbered, key=lambda f: int(f.stem[5:]))[: -self.keep]:
                old.unlink()
        self.weights(self.folder / "backbone.safetensors")

    # ------------------------------------------------------------------------------------ the best
    def _value(self, metrics: dict[str, Any], epoch: int) -> float:
        """The metric after `epoch` epochs, NaN where it was not measured."""
        judged = self.evaluate.history[-1:]
        found = {**metrics, **(judged[0] if judged and judged[0]["epoch"] == epoch else {})}
        return float(found.get(self.best or "", math.nan))

    def _is_best(self, metrics: dict[str, Any], epoch: int) -> bool:
        self._now = self._value(metrics, epoch)
        if not math.isfinite(self._now):
            return False
        try:
            known = json.loads((self.folder / "best.json").read_text(encoding="utf-8"))
            before = float(known["value"]) if known["metric"] == self.best else math.nan
        except (OSError, ValueError, KeyError, TypeError):
            before = math.nan
        return math.isnan(before) or (self._now > before if BETTER[str(self.best)] == "max" else self._now < before)

    def _keep_best(self, file: Path, step: int) -> None:
        also(file, self.folder / BEST)
        with whole(self.folder / "best.json") as f:
            f.write(json.dumps({"metric": self.best, "value": self._now, "step": step}).encode() + b"\n")

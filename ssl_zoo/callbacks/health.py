"""Watches for collapse while a method trains, and says so once, with the likely cause."""

import logging
import re
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback

from ssl_zoo.collapse.health import diagnose, effective_rank, feature_std

log = logging.getLogger("ssl_zoo")
RETURNED = ("embedding_std", "teacher_entropy", "marginal_entropy", "prototypes_used")  # what a method's step may return
ROWS = 512  # of a batch; singular values of more would take seconds


class Health(Callback):
    """Every `every_n_steps` optimizer steps: train/feature_std and train/effective_rank of the batch's features, train/z_std and
    train/z_rank of its projections, the last of which are kept as `projections`. Any finding `patience` times in a row is a warning, once
    for each kind; `finding` is the last of them, until features are healthy again.
    """

    def __init__(self, every_n_steps: int = 50, patience: int = 2) -> None:
        self.every_n_steps, self.patience = every_n_steps, patience
        self.finding: str | None = None
        self.projections: dict[str, float] = {}
        self.warned: set[str] = set()
        self._seen, self._last = 0, 0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step in (0, self._last) or step % self.every_n_steps:
            return
        self._last = step
        h, z = (outputs[k].detach()[:ROWS] for k in ("features", "z"))
        self.projections = {"z_std": feature_std(z), "z_rank": effective_rank(z)}
        numbers = {"feature_std": feature_std(h), "effective_rank": effective_rank(h), **self.projections}
        for logger in trainer.loggers:  # module.log would repeat them in the rows of later steps
            logger.log_metrics({f"train/{k}": v for k, v in numbers.items()}, step=step - 1)
        numbers |= {k: float(outputs[k]) for k in RETURNED if k in outputs}
        if z.shape[1] < 4:
            del numbers["z_rank"]  # so narrow by design
        found = diagnose(numbers, h.shape[1], len(h))
        kind = re.split(r"[(\d]", found or "")[0]  # without its numbers
        self._seen = self._seen + 1 if found else 0
        self.finding = found if self._seen >= self.patience else None
        if self.finding and trainer.is_global_zero and kind not in self.warned:
            self.warned.add(kind)
            log.warning("step %d: %s", step, self.finding)

    def state_dict(self) -> dict[str, Any]:
        return {
            "seen": self._seen,
            "last": self._last,
            "finding": self.finding,
            "projections": self.projections,
            "warned": sorted(self.warned),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen, self.finding, self.warned = state["seen"], state["finding"], set(state["warned"])
        self._last, self.projections = state.get("last", 0), state.get("projections", {})  # a file of before has neither

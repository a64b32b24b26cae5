"""Notices a loss, gradients or weights that are not finite, and says where they came from."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from ssl_zoo.callbacks.locate import locate
from ssl_zoo.callbacks.nonfinite import NonFinite, advice, record, told, write_record
from ssl_zoo.distributed import max_over_ranks, rank, world_size

log = logging.getLogger("ssl_zoo")
AS_INTEGERS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
NEVER = 1 << 62


@dataclass
class Seen:
    """What is kept of a batch until its step is known to be good; tensors stay on the device."""

    number: int  # of the batches of this run, by which its views are drawn
    step: int
    epoch: int
    lr: float
    index: Tensor | None
    loss: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)
    norms: Tensor | None = None  # largest magnitude of each gradient, in the order of `params`

    def bad(self) -> bool:
        return any(t is not None and not bool(t.isfinite().all()) for t in (self.loss, self.norms))


class Guard(Callback):
    """A loss or gradients that are not finite: with "stop", NonFinite is raised; with "skip", the optimizer step is left out and counted,
    and NonFinite is raised after `most_skipped` of them in a row; with "off", nothing is looked at. Each is written to `run`/nonfinite.

    "stop" reads nothing on the host between logged steps: a flag stays on the device, and once it is set, gradients become zero, so
    the batch can be taken again with sound weights. "skip" has to know before each optimizer step and so waits for the device. No
    checkpoint is written of a step that is not finite, nor of such weights. Gradients of float16 are left to the GradScaler.
    """

    def __init__(self, run: Path, nonfinite: str | bool = "stop", most_skipped: int = 10) -> None:
        self.run, self.mode, self.most_skipped = run, nonfinite or "off", most_skipped  # YAML reads off as false
        self.skipped, self._in_a_row = 0, 0
        self._seen: list[Seen] = []
        self._names: list[tuple[str, Tensor]] = []
        self._params: list[tuple[str, Tensor]] = []  # those with gradients in the last step
        self._before: list[Tensor] | None = None  # buffers as they were before the step, which its forward may spoil
        self._step, self._lr = -1, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped = state["skipped"]

    # ------------------------------------------------------------------------------------ on the device
    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._step, self._bad = trainer.global_step, torch.zeros((), device=module.device)
        self._names = [(n, p) for n, p in module.named_parameters() if p.requires_grad]

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if self.mode == "off":
            return
        self._lr = lr = float(trainer.optimizers[0].param_groups[0]["lr"])
        index = batch.get("index") if isinstance(batch, dict) else None
        self._seen.append(Seen(trainer.fit_loop.total_batch_idx, trainer.global_step + 1, trainer.current_epoch, lr, index))
        if self.mode == "skip" and self._before is None:
            self._before = [b.clone() for b in module.buffers()]

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        if self.mode != "off":
            self._seen[-1].loss = getattr(module, "last_loss", loss.detach())
            self._flag(self._seen[-1].loss)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer) -> None:
        module.left_out = False
        if self.mode == "off":
            return
        self._params = [(n, p) for n, p in self._names if p.grad is not None]
        grads = [g.to_local() if hasattr(g, "to_local") else g for _, p in self._params if (g := p.grad) is not None]
        if grads and getattr(trainer.precision_plugin, "scaler", None) is None:
            self._seen[-1].norms = torch.stack(torch._foreach_norm(grads, float("inf")))
            self._flag(self._seen[-1].norms)
        if self.mode == "stop":
            self._contain(grads)
            return
        if self._found():
            self._leave_out(trainer, module, optimizer)
        else:
            self._in_a_row = 0
            self._seen.clear()
        self._before = None

    def _flag(self, x: Tensor) -> None:
        self._bad = torch.maximum(self._bad, 1 - x.isfinite().all().to(self._bad.dtype))

    def _contain(self, grads: list[Tensor]) -> None:
        """Set gradients to zero where the flag is set, without asking for it: as integers, since NaN x 0 is NaN."""
        for kind in {g.dtype for g in grads} & AS_INTEGERS.keys():
            whole = [g.view(AS_INTEGERS[kind]) for g in grads if g.dtype == kind]
            torch._foreach_mul_(whole, (1 - self._bad).to(AS_INTEGERS[kind]))

    # ------------------------------------------------------------------------------------ on the host
    def _found(self) -> bool:
        return bool(max_over_ranks(self._bad))

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._seen and isinstance(outputs, dict):
            self._seen[-1].parts = {k: v.detach() for k, v in outputs.items() if isinstance(v, Tensor) and v.ndim == 0}
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if self.mode == "stop" and stepped and trainer._logger_connector.should_update_logs:
            self.check(trainer, module)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.mode == "stop":
            self.check(trainer, module)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.mode == "off" or not self._names:
            return
        if self.mode == "stop":
            self.check(trainer, module)
        broken = next((n for n, v in module.state_dict().items() if v.is_floating_point() and bool(v.isnan().any())), None)
        if broken or not torch.stack([p.detach().isfinite().all() for _, p in self._names]).all():
            at = (trainer.global_step, trainer.current_epoch, rank())
            raise NonFinite(told("weights", None, at, broken or "an infinite weight", None) + self._advice(trainer))

    def check(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Raise NonFinite where a step since the last check was not finite on any rank."""
        if not self._found():
            self._seen.clear()
            return
        raise NonFinite(self._report(trainer, module) + self._advice(trainer))

    def _leave_out(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer) -> None:
        found = self._report(trainer, module)
        found = found[0].lower() + found[1:]
        for now, before in zip(module.buffers(), self._before or [], strict=True):
            now.data.copy_(before)
        optimizer.zero_grad(set_to_none=True)
        module.left_out = True
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        self._seen.clear()
        self._bad.zero_()
        if self._in_a_row >= self.most_skipped:
            gives_up = f"guard.nonfinite=skip left out {self._in_a_row} steps in a row and gives up: {found}"
            raise NonFinite(gives_up + self._advice(trainer))
        if trainer.is_global_zero and self.skipped <= 20:
            log.warning("left out a step: %s", found)

    # ------------------------------------------------------------------------------------ the report
    def _report(self, trainer: L.Trainer, module: Any) -> str:
        """Find the first bad batch and what in it was not finite, write it down, and say it in one sentence. All ranks together."""
        mine = next((s.number for s in self._seen if s.bad()), NEVER)
        first = -int(max_over_ranks(torch.tensor(-mine, device=module.device)))
        seen = next((s for s in self._seen if s.number == first), self._seen[-1])
        self._lr = seen.lr
        where, passed, scalars = self._located(trainer, module, seen)
        parts = {k: float(v) for k, v in (seen.parts or scalars).items() if k != "loss"}
        norms = [] if seen.norms is None else seen.norms.isfinite().tolist()
        found = record(seen, rank(), where, passed, parts, [n for (n, _), good in zip(self._params, norms, strict=False) if not good])
        records: list[Any] = [found]
        if world_size() > 1:
            records = [None] * world_size()
            dist.all_gather_object(records, found)
        worst = min(records, key=lambda r: (isinstance(r["loss"], float), r.pop("passed")))  # where it began
        what = "loss" if not isinstance(worst["loss"], float) else "gradients"
        file = write_record(self.run, {"step": seen.step, "epoch": seen.epoch, "what": what, "ranks": records}, trainer.is_global_zero)
        return told(what, worst["loss"], (seen.step, seen.epoch, worst["rank"]), worst["first"], file)

    def _located(self, trainer: L.Trainer, module: Any, seen: Seen) -> tuple[str | None, int, dict[str, Tensor]]:
        loader: Any = trainer.train_dataloader
        if seen.index is None or not hasattr(loader, "again"):
            return None, 0, {}
        try:
            return locate(module, loader.again(seen.index), seen.number)
        except Exception as e:  # out of memory, a file that is gone: what is known is said without it
            log.warning("the batch could not be taken once more (%s)", str(e).partition("\n")[0])
            return None, 0, {}

    def _advice(self, trainer: L.Trainer) -> str:
        return advice(self._lr, trainer.gradient_clip_val is None, str(trainer.precision) != "32-true")

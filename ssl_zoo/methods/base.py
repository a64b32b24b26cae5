"""What every method shares: views on the device, logging, optimizer and schedule."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ssl_zoo.augment.early import Early
from ssl_zoo.distributed import fold_seed, seed_all
from ssl_zoo.nn.batchnorm import synchronise
from ssl_zoo.nn.chunked import in_chunks, limit
from ssl_zoo.optim.build import build_optimizer
from ssl_zoo.optim.schedules import cosine, schedule

FUSED = ("cpu", "cuda")  # devices on which an optimizer is one kernel for all parameters


class Method(L.LightningModule):
    """A self-supervised method. A subclass builds its heads in `__init__` and implements `step`.

    backbone: images [B, 3, H, W] -> features [B, backbone.num_features].
    augment: images uint8 [B, 3, H, W], seed -> list of V float views; None where a batch already holds "views". A batch that holds
    "pixels" [N, 3, H, W] in place of "image" has its views made of the rows "index" of them.
    optimizer: the fields of conf/optimizer. batch_size: images per device and step, for lr = base_lr x global batch / 256.
    sync_bn: batch statistics over all devices. chunk_size: images per forward of the backbone, see `nn/chunked.py`; None for all.
    """

    def __init__(
        self,
        backbone: nn.Module,
        augment: nn.Module | None = None,
        optimizer: dict[str, Any] | None = None,
        batch_size: int = 256,
        seed: int = 0,
        sync_bn: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = limit(backbone, chunk_size)
        self.augment = augment
        self.optimizer_config = optimizer
        self.batch_size, self.seed, self.sync_bn = batch_size, seed, sync_bn
        self.steps_done, self.steps_total = 0, 1  # optimizer steps
        self.batches_total = 1.0  # of this rank
        self.left_out = False  # set by a guard for an optimizer step that is not taken
        self._unseen = False  # whether an optimizer step was taken that before_step has yet to follow

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """views: V tensors [B, 3, h_v, w_v], two global ones first. Returns "loss" [], "features" [B, D] and "z" of the first view,
        and scalars to log.
        """
        raise NotImplementedError

    def before_step(self) -> None:
        """Called once before the first forward of every optimizer step but the first: where MoCo moves its key encoder."""

    def after_step(self) -> None:
        """Called once after every optimizer step that was really taken: where BYOL and DINO move their teacher."""

    # ------------------------------------------------------------------------------------ for subclasses
    @staticmethod
    def encode(views: list[Tensor], *nets: Callable[[Tensor], Tensor], together: bool = False) -> list[Tensor]:
        """Every view through nets in a row: one tensor [V, B, D_i] of the output of each net.

        Views as large as the first have a forward each, or one for all where `together`: this decides over which images batch statistics
        are taken. Local views share one forward for each size. A net with a `chunk_size` takes a forward in chunks.
        """
        groups: list[list[Tensor]] = []
        for v in views:
            joins = groups and groups[-1][0].shape == v.shape and (together or v.shape != views[0].shape)
            groups[-1].append(v) if joins else groups.append([v])
        outs: list[list[Tensor]] = [[] for _ in nets]
        for group in groups:
            x = torch.cat(group) if len(group) > 1 else group[0]
            for net, out in zip(nets, outs, strict=True):
                x = in_chunks(net, x)
                out.append(x.unflatten(0, (len(group), -1)))
        return [torch.cat(out) for out in outs]

    @staticmethod
    def directed_pairs(V: int) -> list[tuple[int, int]]:
        """(target, view): each of the two global views is the target of every other view."""
        return [(t, v) for t in range(2) for v in range(V) if v != t]

    @staticmethod
    def undirected_pairs(V: int) -> list[tuple[int, int]]:
        """Each global view with every later view: the two global ones once, a local one with both."""
        return [(t, v) for t in range(2) for v in range(t + 1, V)]

    def progress(self) -> float:
        """Share of training done before the current optimizer step, 0 to 1."""
        return self.steps_done / max(1, self.steps_total)

    # ------------------------------------------------------------------------------------ one training step
    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        return self.make_views(batch, self.trainer.fit_loop.total_batch_idx)

    def make_views(self, batch: dict[str, Any], number: int) -> dict[str, Any]:
        """Adds the "views" of the batch that follows batch `number` (-1: of the first) of this run on this rank, each time the same."""
        if self.augment is not None and "views" not in batch:
            drawn = fold_seed("augment", self.seed, self.global_rank, number)
            augment = self.augment.at((number + 1) / self.batches_total) if isinstance(self.augment, Early) else self.augment
            views = augment(batch["image"], drawn) if "image" in batch else augment(batch["pixels"], drawn, batch["index"])
            batch["views"] = [v if v.dtype == torch.bfloat16 else v.to(self.dtype) for v in views]
        return batch

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        self.steps_done = self.trainer.global_step
        self.seed_step(self.trainer.fit_loop.total_batch_idx)
        if self._unseen:
            self._unseen = False
            self.before_step()
        out = self.step(batch["views"], batch)
        self.last_loss = out["loss"].detach()  # as it is: what is differentiated may be scaled for float16
        if self.trainer._logger_connector.should_update_logs:
            scalars = {f"train/{k}": v.detach() for k, v in out.items() if v.ndim == 0}
            scalars["train/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log_dict(scalars, batch_size=self.batch_size, sync_dist=self.trainer.world_size > 1)
        return out

    def seed_step(self, number: int) -> None:
        """What a step draws (drop path, shuffled keys) is a function of the number of its batch."""
        seed_all(fold_seed("step", self.seed, self.global_rank, number))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            if group["final_weight_decay"] is not None:
                group["weight_decay"] = cosine(self.progress(), group["first_weight_decay"], group["final_weight_decay"])

    def _step_taken(self, *_: Any) -> None:
        """Hooked to the optimizer: a micro-batch of an accumulation, or a step that a GradScaler skips, does not come here."""
        if self.left_out:
            return
        self._unseen = True
        self.after_step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["unseen_step"] = self._unseen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._unseen = checkpoint["unseen_step"]

    # ------------------------------------------------------------------------------------ set-up
    def setup(self, stage: str) -> None:
        if self.sync_bn and self.trainer.world_size > 1:
            synchronise(self, self.trainer.strategy.root_device.type)

    def on_train_start(self) -> None:
        self.steps_total = int(self.trainer.estimated_stepping_batches)
        self.batches_total = self.steps_total * self.trainer.num_training_batches / self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, whose last may be of fewer batches than the others."""
        return -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)

    def fixed_lr_modules(self) -> tuple[nn.Module, ...]:
        """Modules whose learning rate stays at its peak (SimSiam's predictor)."""
        return ()

    def configure_optimizers(self) -> dict[str, Any]:
        if self.optimizer_config is None:
            raise ValueError("This method was built without an optimizer: pass optimizer=dict(name=..., base_lr=..., ...).")
        c = self.optimizer_config
        total = int(self.trainer.estimated_stepping_batches)
        fused = self.device.type in FUSED and not str(self.trainer.precision).startswith("16")  # a GradScaler comes between
        scale = self.global_batch / 256 if c.get("scale_lr", True) else 1.0
        optimizer = build_optimizer(self, c, scale, self.fixed_lr_modules(), fused)
        optimizer.register_step_post_hook(self._step_taken)
        shape = schedule(c, total, self.steps_per_epoch)
        rules = [(lambda step: 1.0) if g["fixed_lr"] else shape for g in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, rules), "interval": "step"}}

    @property
    def global_batch(self) -> int:
        """Images per optimizer step over all devices, nodes and accumulated micro-batches."""
        return self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    @property
    def evaluated(self) -> nn.Module:
        """The network whose features are judged and saved: the backbone, or a teacher's where the paper evaluates that."""
        return self.backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.evaluated(images)

"""What every method shares: views on the device, logging, optimizer and schedule."""

from typing import Any

import lightning.pytorch as L
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ssl_zoo.distributed import fold_seed
from ssl_zoo.nn.batchnorm import synchronise
from ssl_zoo.optim.build import build_optimizer
from ssl_zoo.optim.schedules import warmup_cosine


class Method(L.LightningModule):
    """A self-supervised method. A subclass builds its heads in `__init__` and implements `step`.

    backbone: images [B, 3, H, W] -> features [B, backbone.num_features].
    augment: images uint8 [B, 3, H, W], seed -> list of V float views; None where a batch already holds "views".
    optimizer: the fields of conf/optimizer. batch_size: images per device and step, for lr = base_lr x global batch / 256.
    sync_bn: batch statistics over all devices.
    """

    def __init__(
        self,
        backbone: nn.Module,
        augment: nn.Module | None = None,
        optimizer: dict[str, Any] | None = None,
        batch_size: int = 256,
        seed: int = 0,
        sync_bn: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.augment = augment
        self.optimizer_config = optimizer
        self.batch_size, self.seed, self.sync_bn = batch_size, seed, sync_bn

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """views: V tensors [B, 3, h_v, w_v]. Returns "loss" [], "features" [B, D] and "z" of the first view, and scalars to log."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called once after every optimizer step: a teacher moves here, only when the student moved."""

    # ------------------------------------------------------------------------------------ one training step
    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        if self.augment is not None and "views" not in batch:
            drawn = fold_seed("augment", self.seed, self.global_rank, self.trainer.fit_loop.total_batch_idx)
            batch["views"] = self.augment(batch["image"], drawn)
        return batch

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        out = self.step(batch["views"], batch)
        if self.trainer._logger_connector.should_update_logs:
            scalars = {f"train/{k}": v.detach() for k, v in out.items() if v.ndim == 0}
            scalars["train/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log_dict(scalars, batch_size=self.batch_size)
        return out

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step != self._steps_seen:
            self._steps_seen = self.trainer.global_step
            self.after_step()

    # ------------------------------------------------------------------------------------ set-up
    def setup(self, stage: str) -> None:
        if self.sync_bn and self.trainer.world_size > 1:
            synchronise(self, self.trainer.strategy.root_device.type)

    def on_train_start(self) -> None:
        self._steps_seen = self.trainer.global_step

    def configure_optimizers(self) -> dict[str, Any]:
        if self.optimizer_config is None:
            raise ValueError("This method was built without an optimizer: pass optimizer=dict(name=..., base_lr=..., ...).")
        c = self.optimizer_config
        total = int(self.trainer.estimated_stepping_batches)
        epochs = max(self.trainer.max_epochs or 1, 1)
        warmup = round(total * (0.1 if c["warmup_epochs"] == "auto" else min(1.0, c["warmup_epochs"] / epochs)))
        optimizer = build_optimizer(self, c, lr=c["base_lr"] * self.global_batch / 256)
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, total, warmup, 1.0, c["final_lr"]))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def global_batch(self) -> int:
        """Images per optimizer step over all devices, nodes and accumulated micro-batches."""
        return self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def progress(self) -> float:
        """Share of training done, 0 to 1, by optimizer steps."""
        return self.trainer.global_step / max(1, int(self.trainer.estimated_stepping_batches))

    @property
    def evaluated(self) -> nn.Module:
        """The network whose features are judged and saved: the backbone, or a teacher's where the paper evaluates that."""
        return self.backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.evaluated(images)

"""Where a run is in its data, in images, so that another number of devices finds the same place."""

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback

from ssl_zoo.data.loader import Loader
from ssl_zoo.errors import UserError


class Place(Callback):
    """Keeps the loader's place in its epoch in the checkpoint. Lightning's own record of it is not read back in a run whose
    `configure_optimizers` asks for the number of steps, as a schedule per step must.

    accumulate: batches of the loader per optimizer step. Lightning counts such batches, so its counters are translated when it differs.
    """

    def __init__(self, loader: Loader, accumulate: int = 1) -> None:
        self.loader, self.accumulate = loader, accumulate

    def state_dict(self) -> dict[str, Any]:
        return {**self.loader.state_dict(), "batch": self.loader.global_batch, "accumulate": self.accumulate, "of": self.loader.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)

    def check(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another number of images per optimizer step or per epoch than `checkpoint` was trained with."""
        was = checkpoint.get("callbacks", {}).get("Place", {})
        if "accumulate" not in was:  # of an older version
            return
        before, now = was["batch"] * was["accumulate"], self.loader.global_batch * self.accumulate
        if before != now:
            fits, rest = divmod(before, self.loader.world_size * self.accumulate)
            hint = f"set batch_size={fits}" if fits > 1 and not rest else "choose devices, batch_size and accumulation to give the same"
            raise UserError(f"The run was trained with {before} images per step, and here it would be {now}: {hint}.")
        if was.get("of", self.loader.total) != self.loader.total:
            raise UserError(f"The run was trained on {was['of']} images, and here are {self.loader.total}: give it those that it had.")
        epochs = [self.loader.total // batch * batch for batch in (was["batch"], self.loader.global_batch)]
        if epochs[0] != epochs[1]:
            raise UserError(
                f"An epoch of this run has {epochs[0]} images, and with trainer.accumulate_grad_batches={self.accumulate} it would "
                f"have {epochs[1]}: keep {was['accumulate']}, and batch_size x devices as it was."
            )

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        was = checkpoint["callbacks"].get("Place", {}).get("accumulate", self.accumulate)
        if was == self.accumulate:
            return
        for counts in checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"].values():
            if isinstance(counts, dict):  # a checkpoint is written at the end of a step, before its last batch counts as completed
                ready = counts["ready"] * self.accumulate // was
                moved = ready - counts["ready"]
                counts.update({k: v + moved for k, v in counts.items()})

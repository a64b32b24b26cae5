"""An online linear probe: a classifier trained beside the method on detached features."""

from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from ssl_zoo.distributed import mean_over_ranks, world_size


class OnlineProbe(Callback):
    """Trains a linear layer on the batch-normalised features of each training step with its own Adam.

    It never touches the method's loss; gradients are averaged over ranks; `scores` judges features of un-augmented images.
    """

    def __init__(self, num_features: int, num_classes: int, lr: float = 1e-3) -> None:
        self.head = nn.Sequential(nn.BatchNorm1d(num_features, affine=False), nn.Linear(num_features, num_classes))
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr=lr, fused=True)  # the other forms read their step on the host

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.head.to(module.device)
        for state in self.optimizer.state.values():
            for k, v in state.items():
                if isinstance(v, Tensor):
                    state[k] = v.to(module.device)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        labels = batch.get("label")
        features = outputs["features"].detach().float()
        if labels is None or len(features) != len(labels):
            return
        with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            sound = features.isfinite().all(1)  # others would stay in the probe for good
            features = torch.where(sound[:, None], features, 0.0)
            losses = F.cross_entropy(self.head.train()(features), labels.clamp_min(0), reduction="none")
            known = ((labels >= 0) & sound).float()
            loss = (losses * known).sum() / known.sum().clamp_min(1)
            self.optimizer.zero_grad()
            loss.backward()
        if world_size() > 1:
            for p in self.head.parameters():
                p.grad = mean_over_ranks(p.grad)
        self.optimizer.step()

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """Logits [N, num_classes] of features [N, D]."""
        return self.head.eval()(features.float())

    def state_dict(self) -> dict[str, Any]:
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])

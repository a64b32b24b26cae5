"""Supervised: cross-entropy on labels, under the views and the budget of the other methods. The upper anchor of a table, not a method
without labels (the supervised baseline of Chen et al. 2020, arXiv:2002.05709).

    for x, y in loader:
        loss = - mean over views t of log softmax(W f(t(x)))_y      # encoder f, a linear classifier W

The classifier is thrown away at the end as the projectors of the other methods are: kNN and probe judge the features.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.distributed import sum_over_ranks, world_size
from ssl_zoo.methods.base import Method
from ssl_zoo.nn.numerics import in_float32


@in_float32
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the labelled images of -log softmax(logits)[label]; logits: [V, B, C] of V views, labels: int64 [B] with -1 for
    unlabelled, returns [], 0 where no image is labelled. Under torch.distributed the mean over ranks is the loss of the global batch.
    """
    known = (labels >= 0).expand(logits.shape[:2])
    every = labels.clamp_min(0).expand(logits.shape[:2])
    losses = F.cross_entropy(logits.flatten(0, 1), every.flatten(), reduction="none")
    count = sum_over_ranks(known.sum().to(losses.dtype)) / world_size()
    return (losses * known.flatten()).sum() / count.clamp_min(1 / world_size())


class Supervised(Method):
    """num_classes: classes of the data set, whose labels are 0 to num_classes - 1."""

    def __init__(self, backbone: nn.Module, num_classes: int, **common: Any) -> None:
        super().__init__(backbone, **common)
        self.classifier = nn.Linear(backbone.num_features, num_classes)

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h, z = self.encode(views, self.backbone, self.classifier)
        return {"loss": cross_entropy(z, batch["label"]), "features": h[0], "z": z[0]}

"""MoCo: Momentum Contrast (He et al. 2019, arXiv:1911.05722), by default as v2 (Chen et al. 2020, arXiv:2003.04297).

    for x in loader:                            # Algorithm 1
        f_k <- m f_k + (1 - m) f_q              # the key encoder follows the query encoder
        q, k = f_q(t(x)), f_k(t'(x))            # k without gradient, its batch shuffled so that BN tells nothing
        loss = CE([q.k, q.queue] / T, 0)        # the query must pick its key out of a queue of past keys
        enqueue(k), dequeue the oldest

Where sources differ: one direction as in the paper (`symmetric` adds the other one, as the official CIFAR notebook does, and takes the
mean); head num_layers=2 is v2, 1 is v1; the queue takes batches of any size. Local views are queries only.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.collapse.queue import Queue
from ssl_zoo.collapse.teacher import Teacher
from ssl_zoo.distributed import fold_seed, gather, rank, world_size
from ssl_zoo.methods.base import Method
from ssl_zoo.nn.batchnorm import group_batchnorm
from ssl_zoo.nn.heads import mlp
from ssl_zoo.nn.numerics import in_float32, unit


@in_float32
def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Eq. (1): q [B, D] queries, k [B, D] their keys (no gradient), queue [K, D] unit rows; mean over B, returns []."""
    q, k = unit(q), unit(k.detach())
    own = (q * k).sum(1, keepdim=True)  # [B, 1]
    logits = torch.cat([own, q @ queue.detach().T], 1) / temperature  # [B, 1 + K]
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


class MoCo(Method):
    def __init__(
        self,
        backbone: nn.Module,
        hidden_dim: int = 2048,
        proj_dim: int = 128,
        num_layers: int = 2,
        queue_size: int = 65536,
        temperature: float = 0.2,
        momentum: float = 0.999,
        symmetric: bool = False,
        bn_groups: int = 1,  # batch statistics over groups of the batch of one device, as if each were a device (8 in the CIFAR notebook)
        sync_bn: bool = False,  # shuffling is of use only while each device has its own statistics
        **common: Any,
    ) -> None:
        super().__init__(group_batchnorm(backbone, bn_groups), sync_bn=sync_bn, **common)
        self.projector = mlp(backbone.num_features, hidden_dim, proj_dim, num_layers, hidden_norm=False, hidden_bias=True, last_bias=True)
        self.teacher = Teacher(self.backbone, self.projector)
        self.queue = Queue(queue_size, proj_dim)
        self.temperature, self.momentum, self.symmetric = temperature, momentum, symmetric

    def before_step(self) -> None:
        self.teacher.update(self.backbone, self.projector, momentum=self.momentum)

    @torch.no_grad()
    def keys(self, x: Tensor, salt: int) -> Tensor:
        """Unit keys [B, D] of images [B, 3, h, w], computed in a random order over all ranks: shuffling BN (section 3.3)."""
        B, N = len(x), len(x) * world_size()
        generator = torch.Generator().manual_seed(fold_seed("shuffle", self.seed, self.steps_done, salt))
        order = torch.randperm(N, generator=generator).to(x.device)  # the same on every rank
        mine = slice(rank() * B, (rank() + 1) * B)
        shuffled = gather(self.teacher(gather(x)[order[mine]]))
        return unit(shuffled[order.argsort()[mine]])

    def step(self, views: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        targets = (0, 1) if self.symmetric else (1,)
        asked = [v for v in range(len(views)) if v != 1 or self.symmetric]
        h, q = self.encode([views[v] for v in asked], self.backbone, self.projector)
        k = {t: self.keys(views[t], t) for t in targets}
        pairs = [(t, i) for t in targets for i, v in enumerate(asked) if v != t]
        queue = self.queue.keys.clone()  # as it is now: the backward pass comes after the keys below are added
        loss = sum(info_nce(q[i], k[t], queue, self.temperature) for t, i in pairs) / len(pairs)
        for new in k.values():
            self.queue.add(new)
        return {"loss": loss, "features": h[0], "z": q[0]}

"""What keeps a teacher's assignments from collapsing: DINO's centering and sharpening, or SwAV's Sinkhorn-Knopp."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.distributed import max_over_ranks, mean_over_ranks, sum_over_ranks, world_size


class Center(nn.Module):
    """A running mean `value` [dim] of the teacher's raw logits over all ranks (DINO, equation 4). Zero at first; saved with the method.

    Batches are `add`ed after their probabilities were taken; `move`, once an optimizer step, goes towards the mean of those added since.
    """

    value: Tensor
    added: Tensor
    batches: Tensor

    def __init__(self, dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(dim))
        self.register_buffer("added", torch.zeros(dim))  # buffers: a step that is left out takes them back, a GradScaler's skip leaves them
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Centred and sharpened probabilities of logits [..., dim]."""
        return F.softmax((logits - self.value) / temperature, -1)

    @torch.no_grad()
    def add(self, logits: Tensor) -> None:
        """Count in a batch of logits [..., dim]."""
        self.added += logits.flatten(0, -2).mean(0)
        self.batches += 1

    @torch.no_grad()
    def move(self) -> None:
        """Go towards the mean of the batches added."""
        mean = mean_over_ranks(self.added / self.batches)
        self.value.lerp_(mean.to(self.value.dtype), 1.0 - self.momentum)
        self.added.zero_()
        self.batches.zero_()


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Assignments [B, K] of scores [B, K] of which every prototype gets an equal share over all ranks; rows sum to 1.

    exp(scores / temperature), then prototypes and samples normalised in turn, samples last. (SwAV, arXiv:2006.09882, section 3.1.)
    """
    exact = torch.float32 if scores.device.type == "mps" else torch.float64
    q = scores.to(exact) / temperature  # logarithms: exp of large scores overflows, of small ones loses a whole row
    samples, prototypes = len(q) * world_size(), q.shape[1]
    for _ in range(iterations):
        top = max_over_ranks(q.amax(0))
        q = q - (top + sum_over_ranks((q - top).exp().sum(0)).log()) - math.log(prototypes)
        q = q.log_softmax(1) - math.log(samples)
    return (q + math.log(samples)).exp().to(scores.dtype)

"""The loss against its formula, written another way."""

import math

import torch
from nnclr import nnclr_loss


def test_the_loss_is_that_of_the_formula():
    z, p, queue = (torch.nn.functional.normalize(torch.randn(n, 5, dtype=torch.float64), dim=1) for n in (4, 4, 9))
    total = 0.0
    for i in range(4):
        n = max(queue, key=lambda row: float(row @ z[i]))
        sims = [float(n @ row) / 0.1 for row in p]
        total += math.log(sum(math.exp(s) for s in sims)) - sims[i]
    torch.testing.assert_close(float(nnclr_loss(z, p, queue, 0.1)), total / 4, rtol=1e-10, atol=0)

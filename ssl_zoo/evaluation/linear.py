"""The linear probe: multinomial logistic regression on frozen features, fitted by L-BFGS."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_zoo.distributed import fold_seed
from ssl_zoo.evaluation.knn import accuracy


@dataclass(frozen=True)
class Probe:
    """logits = (features - mean) / std @ weight + bias. mean, std [D]; weight [D, C]; bias [C]."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return ((features.to(self.mean) - self.mean) / self.std) @ self.weight + self.bias


def fit(features: Tensor, labels: Tensor, num_classes: int, l2: float, max_iter: int = 200, start: Probe | None = None) -> Probe:
    """Minimise mean cross-entropy + l2 / 2 ||weight||^2 over standardised features [N, D] with labels [N]; the bias is free.

    start: a probe to begin from (a neighbouring l2), which saves iterations.
    """
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    x = (features - mean) / std
    weight = torch.zeros(x.shape[1], num_classes, device=x.device, dtype=x.dtype) if start is None else start.weight.clone()
    bias = torch.zeros(num_classes, device=x.device, dtype=x.dtype) if start is None else start.bias.clone()
    params = [weight.requires_grad_(), bias.requires_grad_()]
    solver = torch.optim.LBFGS(
        params, max_iter=max_iter, history_size=10, line_search_fn="strong_wolfe", tolerance_grad=1e-5, tolerance_change=1e-7
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, labels) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        solver.step(closure)
    return Probe(mean, std, weight.detach(), bias.detach())


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    num_classes: int,
    l2: list[float],
    max_iter: int = 100,
    seed: int = 0,
) -> dict[str, float]:
    """Fit on train [N, D], choose `l2` on a tenth held out of *train*, refit on all of it, report on test [M, D] in per cent."""
    best = max(l2)  # where a tenth of train is too few images to choose by
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(fold_seed("probe", seed))).to(train.device)
    cut = len(train) // 10
    if len(l2) > 1 and cut >= num_classes:
        held, kept = order[:cut], order[cut:]
        found: list[tuple[float, float]] = []
        probe = None
        for strength in sorted(l2, reverse=True):  # strong to weak, each starting from the one before
            probe = fit(train[kept], train_labels[kept], num_classes, strength, max_iter, probe)
            found.append((accuracy(probe(train[held]), train_labels[held]), strength))
        best = max(found)[1]
    probe = fit(train, train_labels, num_classes, best, max_iter)
    scores = probe(test)
    return {
        "top1": accuracy(scores, test_labels),
        "top5": accuracy(scores, test_labels, 5),
        "train_top1": accuracy(probe(train), train_labels),
        "l2": best,
    }

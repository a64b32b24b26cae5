"""The linear probe: multinomial logistic regression on frozen features, fitted by L-BFGS."""

import math
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


Moments = tuple[Tensor, Tensor]
Spectrum = tuple[Tensor, Tensor]


def moments_of(features: Tensor) -> Moments:
    """Mean and standard deviation [D] of features [N, D], by which they are standardised."""
    return features.mean(0), features.std(0).clamp_min(1e-6)


def fit(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: float,
    max_iter: int = 200,
    start: Probe | None = None,
    moments: Moments | None = None,
    spectrum: Spectrum | None = None,
) -> Probe:
    """Minimise mean cross-entropy + l2 / 2 ||weight||^2 over standardised features [N, D] with labels [N]; the bias is free.

    start: a probe to begin from (a neighbouring l2), which saves iterations. moments: those of more features than these. spectrum: of the
    standardised features, where it is known from another strength.
    """
    mean, std = moments or moments_of(features)
    x = (features - mean) / std
    # W = (directions * scale) @ v: the same minimum, found in far fewer steps, for the curvature of the loss is about 1 along each while
    # all classes are equally likely; that of cross-entropy is variance / C, that of the penalty l2
    variance, directions = spectrum or spectrum_of(x)
    scale = (variance / num_classes + max(l2, 1e-9)).rsqrt().to(x)
    z, penalty = x @ (directions * scale), l2 / 2 * scale.square()[:, None]
    weight = x.new_zeros(len(scale), num_classes) if start is None else directions.T @ start.weight / scale[:, None]
    bias = x.new_zeros(num_classes) if start is None else start.bias.clone()
    params = [weight.requires_grad_(), bias.requires_grad_()]
    solver = torch.optim.LBFGS(
        params, max_iter=max_iter, history_size=10, line_search_fn="strong_wolfe", tolerance_grad=1e-6, tolerance_change=1e-9
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(z @ weight + bias, labels) + (penalty * weight.square()).sum()
        loss.backward()
        return loss

    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        solver.step(closure)
    return Probe(mean, std, (directions * scale) @ weight.detach(), bias.detach())


def spectrum_of(x: Tensor) -> Spectrum:
    """Variances [r] along the principal directions of standardised features x [N, D], and these directions, the columns [D, r]; r is the
    smaller of N and D: the best weights lie in the span of x.
    """
    if len(x) < x.shape[1]:
        _, singular, rows = torch.linalg.svd(x, full_matrices=False)
        return singular.square() / len(x), rows.T
    variance, directions = torch.linalg.eigh(x.T @ x / len(x))
    return variance.clamp_min(0), directions


def choose_and_fit(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: list[float],
    max_iter: int = 100,
    seed: int = 0,
    moments: Moments | None = None,
) -> tuple[Probe, float]:
    """A probe fitted to all of features [N, D], and its strength of l2: the one that does best on a tenth held out of them."""
    best = max(l2)  # where a tenth is too few images to choose by
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(fold_seed("probe", seed))).to(features.device)
    cut = len(features) // 10
    if len(l2) > 1 and cut >= num_classes:
        held, kept = order[:cut], order[cut:]
        x, y = features[kept], labels[kept]
        mean, std = own = moments or moments_of(x)
        spectrum = spectrum_of((x - mean) / std)
        found: list[tuple[float, float]] = []
        probe = None
        for strength in sorted(l2, reverse=True):  # strong to weak, each starting from the one before
            probe = fit(x, y, num_classes, strength, max_iter, probe, own, spectrum)
            found.append((accuracy(probe(features[held]), labels[held]), strength))
        best = max(found)[1]
    return fit(features, labels, num_classes, best, max_iter, None, moments), best


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
    """Fit on train [N, D], choose `l2` on a tenth held out of *train*, report on test [M, D] in per cent; NaN for features of a run that
    has diverged, which must still end and be saved.
    """
    if not (torch.isfinite(train).all() and torch.isfinite(test).all()):
        return dict.fromkeys(("top1", "top5", "train_top1", "l2"), math.nan)
    probe, best = choose_and_fit(train, train_labels, num_classes, l2, max_iter, seed)
    scores = probe(test)
    return {
        "top1": accuracy(scores, test_labels),
        "top5": accuracy(scores, test_labels, 5),
        "train_top1": accuracy(probe(train), train_labels),
        "l2": best,
    }

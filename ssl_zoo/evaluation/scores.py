"""What scores say about a split: accuracy with its interval, by class, confusion and calibration."""

import math
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.evaluation.knn import accuracy

# 97.5 % quantile of Student's t for 1, 2, ... degrees of freedom; above the last the normal one
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101,
        2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip
Z975 = 1.959964
BINS = 15


def wilson(percent: float, count: int) -> list[float]:
    """The 95 % interval [low, high] in per cent of an accuracy measured on `count` images (Wilson 1927)."""
    p, z2 = percent / 100, Z975**2
    middle, half = p + z2 / (2 * count), Z975 * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    return [max(0.0, 100 * (middle - half) / (1 + z2 / count)), min(100.0, 100 * (middle + half) / (1 + z2 / count))]


def mean_and_interval(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation and the 95 % interval of the mean (Student's t) of repeated measurements; without the last two for
    a single one.
    """
    mean, n = sum(values) / len(values), len(values)
    if n == 1:
        return {"top1": mean, "std": None, "interval": None}
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = (T975[n - 2] if n - 2 < len(T975) else Z975) * std / math.sqrt(n)
    return {"top1": mean, "std": std, "interval": [max(0.0, mean - half), min(100.0, mean + half)]}


def judge(scores: Tensor, labels: Tensor, classes: list[str], probabilities: Tensor | None = None) -> dict[str, Any]:
    """All that is reported of scores [N, C] against labels [N]: top1 and top5 in per cent, the 95 % interval of top1, accuracy per class
    (None for a class without images), the confusion matrix (rows: true class) and, given probabilities [N, C], calibration.
    """
    scores, labels = scores.cpu(), labels.cpu()
    count, c = len(labels), scores.shape[1]
    top1 = accuracy(scores, labels)
    confusion = torch.bincount(labels * c + scores.argmax(1), minlength=c * c).view(c, c)
    of_class = confusion.sum(1)
    found: dict[str, Any] = {"top1": top1, "top1_interval": wilson(top1, count)}
    if c > 5:
        found["top5"] = accuracy(scores, labels, 5)
    found["per_class"] = {
        name: 100 * int(confusion[i, i]) / int(of_class[i]) if of_class[i] else None for i, name in enumerate(unique(classes))
    }
    found["confusion"] = confusion.tolist()
    return found if probabilities is None else found | {"calibration": calibration(probabilities.cpu(), labels)}


def unique(names: list[str]) -> list[str]:
    """The names, with a number where one is there twice, so that they can be keys."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    return [n if seen[n] == 1 else f"{n} ({i})" for i, n in enumerate(names)]


def calibration(probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    """Mean confidence, accuracy (per cent) and count of images in 15 equal bins of confidence, and the expected calibration error: the mean
    gap between the two, in points (Guo et al. 2017, arXiv:1706.04599, eq. 3). probabilities [N, C], labels [N].
    """
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == labels).double()
    place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    count = torch.bincount(place, minlength=BINS)
    share = count.clamp_min(1)
    mean, hit = (100 * torch.bincount(place, v, BINS) / share for v in (confidence, right))
    ece = ((mean - hit).abs() * count / len(labels)).sum()
    return {"ece": float(ece), "confidence": mean.tolist(), "accuracy": hit.tolist(), "count": count.tolist()}

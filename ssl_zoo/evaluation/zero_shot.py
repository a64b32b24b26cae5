"""Zero-shot classification: an image gets the class whose name, put into sentences, lies nearest (Radford et al. 2021, section 3.1)."""

from typing import Any

import torch
from torch import Tensor

from ssl_zoo.evaluation.scores import judge, wilson
from ssl_zoo.nn.numerics import unit


def class_embeddings(prompts: Tensor) -> Tensor:
    """Embeddings [C, T, D] of T sentences about each class, of any length, to one unit embedding [C, D]: each normalised, their mean,
    normalised again (section 3.1.4; the official notebook).
    """
    return unit(unit(prompts).mean(1))


@torch.no_grad()
def zero_shot(
    images: Tensor, prompts: Tensor, labels: Tensor, classes: list[str], scale: float | None = None, chunk: int = 4096
) -> dict[str, Any]:
    """All that is reported of images [N, D] against the sentences [C, T, D] about each class, by cosine similarity; labels [N].

    `judge`'s numbers with all T sentences, and what chance would give; where there are several, also top-1 with the first alone, with each
    alone, and the mean of these. scale: the softmax of scale x cosine is held to be a probability, whose calibration is told. Of classes
    that are equally near, the lower number wins.
    """
    images, count = unit(images), len(classes)
    weights = class_embeddings(prompts)
    cosine = torch.cat([some @ weights.T for some in images.split(chunk)])
    order = cosine.argsort(dim=1, descending=True, stable=True)
    places = torch.empty_like(order).scatter_(1, order, torch.arange(count, device=order.device).expand_as(order))
    found = judge(-places.float(), labels, classes, None if scale is None else (scale * cosine).softmax(1))
    found |= {"chance_top1": 100 / count} | ({"chance_top5": 500 / count} if count > 5 else {})
    if prompts.shape[1] > 1:
        alone = [_top1(images, unit(prompts[:, t]), labels, chunk) for t in range(prompts.shape[1])]
        found |= {"one_template_top1": alone[0], "mean_template_top1": sum(alone) / len(alone), "each_template_top1": alone}
    return found


def _top1(images: Tensor, weights: Tensor, labels: Tensor, chunk: int) -> float:
    predicted = torch.cat([(some @ weights.T).argmax(1) for some in images.split(chunk)])  # the first of equals
    return 100 * int((predicted == labels.to(predicted.device)).sum()) / len(images)


def seen_and_held_out(confusion: list[list[int]], classes: list[str], held_out: list[str]) -> dict[str, Any]:
    """Top-1 on images of the classes that training showed and of those that it held out, all classes being candidates. confusion [C][C]
    (rows: true class). Nothing where no class was held out.
    """
    apart = [c for c in classes if c in set(held_out)]
    found: dict[str, Any] = {}
    for name, those in (("seen", [c not in apart for c in classes]), ("held_out", [c in apart for c in classes])):
        total = sum(sum(row) for row, mine in zip(confusion, those, strict=True) if mine)
        right = sum(row[i] for i, (row, mine) in enumerate(zip(confusion, those, strict=True)) if mine)
        share = 100 * right / total if total else None
        interval = None if share is None else wilson(share, total)
        found |= {f"{name}_top1": share, f"{name}_top1_interval": interval, f"{name}_images": total}
    return {**found, "held_out": apart} if apart else {}

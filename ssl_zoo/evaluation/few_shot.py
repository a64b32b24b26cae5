"""Linear classification from few labels: a share of each class, or so many images of each, over several draws."""

from typing import Any

import torch
from torch import Tensor

from ssl_zoo.distributed import fold_seed
from ssl_zoo.evaluation.amounts import amount
from ssl_zoo.evaluation.linear import choose_and_fit, moments_of
from ssl_zoo.evaluation.scores import judge, mean_and_interval


def draw(labels: Tensor, number: float | int, seed: int) -> Tensor:
    """Indices [n] of a draw that is balanced over classes: a share (float) of each class, at least one image, or `number` (int) of each;
    all of a class that has fewer. labels [N].
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = []
    for c in labels.unique().tolist():
        of_class = order[labels.cpu()[order] == c]
        chosen.append(of_class[: number if isinstance(number, int) else max(1, round(number * len(of_class)))])
    return torch.cat(chosen).sort().values


def few_shot(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classes: list[str],
    amounts: list[int | float | str],
    draws: int,
    l2: list[float],
    max_iter: int,
    seed: int,
) -> list[dict[str, Any]]:
    """For each amount of labels top-1 (and mean top-5) in per cent on test [M, D] of logistic regression on `draws` draws from train
    [N, D]: each draw's, their mean, standard deviation and the 95 % interval of the mean; mean accuracy per class, and the confusion matrix
    summed over draws. The strength of `l2` is chosen within the draw; features are standardised by all of train, which takes no labels.
    """
    moments, results = moments_of(train), []
    for given in amounts:
        name, number = amount(given)
        found, images = [], 0
        for d in range(draws):
            index = draw(train_labels, number, fold_seed("few_shot", seed, name, d)).to(train.device)
            probe, _ = choose_and_fit(train[index], train_labels[index], len(classes), l2, max_iter, seed, moments)
            found.append(judge(probe(test), test_labels, classes))
            images = len(index)
        top1 = [f["top1"] for f in found]
        results.append({"labels": name, "images": images, "per_draw": top1, **mean_and_interval(top1), **over_draws(found)})
    return results


def over_draws(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of what `judge` told of several draws on the same images: means of top5 and of each class's accuracy, the sum of confusions."""
    each = [f["per_class"] for f in found]
    per_class = {name: None if v is None else sum(e[name] for e in each) / len(each) for name, v in each[0].items()}
    top5 = {"top5": sum(f["top5"] for f in found) / len(found)} if "top5" in found[0] else {}
    return {**top5, "per_class": per_class, "confusion": torch.tensor([f["confusion"] for f in found]).sum(0).tolist()}

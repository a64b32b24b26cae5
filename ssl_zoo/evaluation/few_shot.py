"""Linear classification from few labels: a share of each class, or so many images of each, over several draws."""

from typing import Any

import torch
from torch import Tensor

from ssl_zoo.distributed import fold_seed
from ssl_zoo.evaluation.amounts import amount
from ssl_zoo.evaluation.knn import accuracy
from ssl_zoo.evaluation.linear import choose_and_fit, moments_of
from ssl_zoo.evaluation.scores import mean_and_interval


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
    num_classes: int,
    amounts: list[int | float | str],
    draws: int,
    l2: list[float],
    max_iter: int,
    seed: int,
) -> list[dict[str, Any]]:
    """For each amount of labels top-1 (and mean top-5) in per cent on test [M, D] of logistic regression on `draws` draws from train
    [N, D]: each draw's, their mean, standard deviation and the 95 % interval of the mean. The strength of `l2` is chosen within the draw;
    features are standardised by all of train, which takes no labels.
    """
    moments, results = moments_of(train), []
    for given in amounts:
        name, number = amount(given)
        found, top5, counts = [], [], []
        for d in range(draws):
            index = draw(train_labels, number, fold_seed("few_shot", seed, name, d)).to(train.device)
            probe, _ = choose_and_fit(train[index], train_labels[index], num_classes, l2, max_iter, seed, moments)
            scores = probe(test)
            found.append(accuracy(scores, test_labels))
            top5.append(accuracy(scores, test_labels, 5))
            counts.append(len(index))
        results.append({"labels": name, "images": counts[0], "per_draw": found, **mean_and_interval(found), "top5": sum(top5) / draws})
    return results

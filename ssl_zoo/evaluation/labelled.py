"""kNN and the linear probe on a labelled split, with the settings of conf/evaluation: what a run measures by itself."""

from typing import Any

from torch import Tensor

from ssl_zoo.data.images import Images
from ssl_zoo.evaluation.knn import accuracy, knn_classify
from ssl_zoo.evaluation.linear import linear_probe


def labelled_pair(train: Images, test: Images) -> str | None:
    """None when features can be judged by labels, else the reason why not."""
    if train.labels is None or not len(train.labelled):
        return "the images have no labels"
    if len(train.labelled) < 2:
        return "only one training image has a label"
    if test.labels is None or not len(test.labelled):
        return "the test images have no label that train knows"
    if train.num_classes < 2:
        return "there is only one class"
    return None


def knn_top1(bank: Tensor, train: Images, queries: Tensor, test: Images, knn: dict[str, Any]) -> float:
    """kNN top-1 in per cent; bank and queries are features of all of train and test, of which the labelled ones count."""
    a, b = train.labelled.to(bank.device), test.labelled.to(bank.device)
    labels, wanted = train.labels.to(bank.device)[a], test.labels.to(bank.device)[b]  # type: ignore[union-attr]
    scores = knn_classify(bank[a], labels, queries[b], knn["k"], knn["temperature"], train.num_classes)
    return accuracy(scores, wanted)


def linear(bank: Tensor, train: Images, queries: Tensor, test: Images, options: dict[str, Any], seed: int) -> dict[str, float]:
    """The linear probe on features of all of train and test, of which the labelled ones count."""
    a, b = train.labelled.to(bank.device), test.labelled.to(bank.device)
    labels, wanted = train.labels.to(bank.device)[a], test.labels.to(bank.device)[b]  # type: ignore[union-attr]
    return linear_probe(bank[a], labels, queries[b], wanted, train.num_classes, list(options["l2"]), options["max_iter"], seed)

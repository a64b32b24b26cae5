"""A promise that is checked: the backbone is the same, bit for bit, after it was judged."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ssl_zoo.evaluation.feature_cache import weights_hash
from ssl_zoo.evaluation.features import eval_mode


@contextmanager
def frozen(backbone: nn.Module) -> Iterator[str]:
    """Evaluation mode and no gradients inside; gives the hash of the weights.

    Raises RuntimeError at the end if a parameter or buffer has changed: then the numbers are not of the backbone that was to be judged.
    """
    before = weights_hash(backbone)
    trainable = [p for p in backbone.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        with eval_mode(backbone):
            yield before
    finally:
        for p in trainable:
            p.requires_grad_(True)
    if weights_hash(backbone) != before:
        raise RuntimeError("The evaluation has changed the backbone's parameters or buffers, so its numbers are not of these weights.")

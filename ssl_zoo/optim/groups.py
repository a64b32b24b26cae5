"""Which parameters are decayed and trust-scaled (the scope differs between papers)."""

from torch import nn


def param_groups(module: nn.Module, weight_decay: float, decay_norm_and_bias: bool) -> list[dict]:
    """Two groups of the trainable parameters: matrices and kernels, then norms and biases (one dimension or none).

    Unless `decay_norm_and_bias`, the second group has no weight decay and no LARS trust ratio.
    """
    named = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in named if p.ndim > 1]
    vectors = [p for p in named if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "trust": True},
        {"params": vectors, "weight_decay": weight_decay if decay_norm_and_bias else 0.0, "trust": decay_norm_and_bias},
    ]
    return [g for g in groups if g["params"]]

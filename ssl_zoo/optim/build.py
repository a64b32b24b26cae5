"""An optimizer from its config."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ssl_zoo.errors import UserError
from ssl_zoo.optim.groups import param_groups
from ssl_zoo.optim.lars import LARS

OPTIMIZERS: dict[str, tuple[type[Optimizer], tuple[str, ...]]] = {
    "sgd": (torch.optim.SGD, ("momentum",)),
    "lars": (LARS, ("momentum", "trust_coefficient")),
    "adamw": (torch.optim.AdamW, ("betas",)),
}


def build_optimizer(module: nn.Module, config: dict[str, Any], lr: float) -> Optimizer:
    """The optimizer that conf/optimizer describes over the trainable parameters of `module`; null fields keep its own defaults."""
    kind, takes = OPTIMIZERS[config["name"]]
    options = {k: config[k] for k in ("momentum", "betas", "trust_coefficient") if config.get(k) is not None}
    for key in options:
        if key not in takes:
            raise UserError(
                f"optimizer.{key} does not apply to {config['name']}, which takes {' and '.join(takes)}: set optimizer.{key}=null."
            )
    if kind is torch.optim.SGD:
        options.setdefault("momentum", 0.9)
    groups = param_groups(module, config["weight_decay"], config["decay_norm_and_bias"])
    return kind(groups, lr=lr, **options)  # type: ignore[call-arg]

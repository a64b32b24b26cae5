"""An optimizer from its config."""

from collections.abc import Iterable
from typing import Any

import timm.optim
import torch
from torch import nn
from torch.optim import Optimizer

from ssl_zoo.errors import UserError
from ssl_zoo.optim.groups import param_groups
from ssl_zoo.optim.lars import LARS

OPTIMIZERS: dict[str, tuple[type[Optimizer], tuple[str, ...]]] = {
    "sgd": (torch.optim.SGD, ("momentum",)),
    "lars": (LARS, ("momentum", "trust_coefficient")),
    "lars_timm": (timm.optim.Lars, ("momentum", "trust_coefficient")),
    "adamw": (torch.optim.AdamW, ("betas", "eps")),
}


def build_optimizer(
    module: nn.Module, config: dict[str, Any], scale: float = 1.0, fixed_lr: Iterable[nn.Module] = (), fused: bool = False
) -> Optimizer:
    """The optimizer that conf/optimizer describes over the trainable parameters of `module`; null fields keep its own defaults.

    scale: global batch / 256, multiplies base_lr. fixed_lr: modules that form groups of their own. fused: few kernels for all
    parameters instead of some for each, where torch has the choice (sgd, adamw).
    """
    kind, takes = OPTIMIZERS[config["name"]]
    options = {k: config[k] for k in ("momentum", "betas", "eps", "trust_coefficient") if config.get(k) is not None}
    for key in options:
        if key not in takes:
            raise UserError(
                f"optimizer.{key} does not apply to {config['name']}, which takes {' and '.join(takes)}: set optimizer.{key}=null."
            )
    if kind is timm.optim.Lars and "trust_coefficient" in options:
        options["trust_coeff"] = options.pop("trust_coefficient")
    if kind is torch.optim.SGD:
        options.setdefault("momentum", 0.9)
    if kind is torch.optim.AdamW:
        options["fused"] = fused
    elif kind is torch.optim.SGD:  # its fused form fails when a parameter has its first gradient later than others (DINO's last layer)
        options["foreach"] = fused
    return kind(param_groups(module, config, scale, fixed_lr), lr=scale * config["base_lr"], **options)  # type: ignore[call-arg]

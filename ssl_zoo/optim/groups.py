"""Which parameters are decayed and trust-scaled, and at what rate they learn (the scope differs between papers)."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def param_groups(module: nn.Module, config: dict[str, Any], scale: float, fixed_lr: Iterable[nn.Module] = ()) -> list[dict[str, Any]]:
    """The trainable parameters of `module`: matrices and kernels apart from norms and biases (one dimension or none), and the modules of
    `fixed_lr`, whose learning rate is not scheduled, apart from both.

    config: the fields of conf/optimizer. Unless `decay_norm_and_bias`, norms and biases have no weight decay and no LARS trust ratio;
    with `bias_base_lr` they have a learning rate of their own (Barlow Twins). scale: global batch / 256, multiplies both rates.
    """
    fixed = {id(p) for m in fixed_lr for p in m.parameters()}
    kinds: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            kinds.setdefault((p.ndim <= 1, id(p) in fixed), []).append(p)
    groups = []
    for (vector, is_fixed), params in sorted(kinds.items(), key=lambda kind: kind[0]):
        decayed = config["decay_norm_and_bias"] or not vector
        own = config["bias_base_lr"] if vector else None
        groups.append(
            {
                "params": params,
                "lr": scale * (config["base_lr"] if own is None else own),
                "weight_decay": config["weight_decay"] if decayed else 0.0,
                "first_weight_decay": config["weight_decay"] if decayed else 0.0,
                "final_weight_decay": config["final_weight_decay"] if decayed else None,
                "trust": decayed,
                "fixed_lr": is_fixed,
            }
        )
    return groups

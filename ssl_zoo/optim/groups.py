"""Which parameters are decayed and trust-scaled, and at what rate they learn (the scope differs between papers)."""

from collections.abc import Iterable
from typing import Any

from torch import nn

POSITIONS = ("pos_embed", "cls_token", "reg_token", "positional_embedding")  # as timm and open_clip name them


def param_groups(module: nn.Module, config: dict[str, Any], scale: float, fixed_lr: Iterable[nn.Module] = ()) -> list[dict[str, Any]]:
    """The trainable parameters of `module`: matrices and kernels apart from norms and biases (one dimension or none), and the modules of
    `fixed_lr`, whose learning rate is not scheduled, apart from both.

    config: the fields of conf/optimizer. Unless `decay_norm_and_bias`, norms and biases have no weight decay and no LARS trust ratio;
    with `bias_base_lr` they have a learning rate of their own (Barlow Twins). Unless `decay_positions`, positions and class tokens of
    transformers have neither (CLIP, SigLIP). scale: global batch / 256, multiplies both rates.
    """
    fixed = {id(p) for m in fixed_lr for p in m.parameters()}
    kinds: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            vector, position = p.ndim <= 1, name.rpartition(".")[2] in POSITIONS
            bare = (vector and not config["decay_norm_and_bias"]) or (position and not config.get("decay_positions", True))
            kinds.setdefault((vector, bare, id(p) in fixed), []).append(p)
    groups = []
    for (vector, bare, is_fixed), params in sorted(kinds.items(), key=lambda kind: kind[0]):
        own = config["bias_base_lr"] if vector else None
        groups.append(
            {
                "params": params,
                "lr": scale * (config["base_lr"] if own is None else own),
                "weight_decay": 0.0 if bare else config["weight_decay"],
                "first_weight_decay": 0.0 if bare else config["weight_decay"],
                "final_weight_decay": None if bare else config["final_weight_decay"],
                "trust": not bare,
                "fixed_lr": is_fixed,
            }
        )
    return groups

"""Which parameters are decayed and trust-scaled, and at what rate they learn (the scope differs between papers)."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn


def param_groups(module: nn.Module, config: dict[str, Any], scale: float, fixed_lr: Iterable[nn.Module] = ()) -> list[dict[str, Any]]:
    """The trainable parameters of `module`: matrices and kernels apart from norms and biases (one dimension or none), and the modules of
    `fixed_lr`, whose learning rate is not scheduled, apart from both.

    config: the fields of conf/optimizer. Unless `decay_norm_and_bias`, norms and biases have no weight decay and no LARS trust ratio;
    with `bias_base_lr` they have a learning rate of their own (Barlow Twins). Unless `decay_positions`, what networks
    list in `no_weight_decay` has neither: positions and class tokens (CLIP, SigLIP). scale: global batch / 256, multiplies both rates.
    """
    fixed = {id(p) for m in fixed_lr for p in m.parameters()}
    spared = set() if config.get("decay_positions", True) else set(_listed(module))
    kinds: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            vector = p.ndim <= 1
            bare = (vector and not config["decay_norm_and_bias"]) or name in spared
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


def _listed(module: nn.Module) -> Iterator[str]:
    """Names of the parameters that timm's and open_clip's networks in `module` want without weight decay."""
    for prefix, part in module.named_modules():
        listed = getattr(part, "no_weight_decay", None)
        yield from (f"{prefix}.{name}".lstrip(".") for name in (listed() if callable(listed) else ()))

"""Projectors, predictors and prototypes."""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(
    in_dim: int,
    hidden_dim: int,
    out_dim: int,
    num_layers: int = 2,
    hidden_norm: bool = True,
    hidden_bias: bool = False,
    last_norm: str = "none",
    last_bias: bool = False,
    activation: type[nn.Module] = nn.ReLU,
    init_std: float | None = None,
) -> nn.Sequential:
    """Hidden blocks Linear-BN-activation and a last Linear: [B, in_dim] -> [B, out_dim].

    hidden_norm: whether hidden blocks have the BN. hidden_bias, last_bias: whether the Linear layers have a bias.
    last_norm: what follows the last Linear: none | scale (BN whose shift stays at zero, SimCLR) | plain (BN without parameters).
    init_std: standard deviation of the Linear weights, drawn from a truncated normal, biases zero; None keeps PyTorch's defaults.
    """
    layers: list[nn.Module] = []
    dims = [in_dim] + [hidden_dim] * (num_layers - 1)
    for a, b in itertools.pairwise(dims):
        layers += [nn.Linear(a, b, bias=hidden_bias), *([nn.BatchNorm1d(b)] if hidden_norm else []), activation()]
    layers.append(nn.Linear(dims[-1], out_dim, bias=last_bias))
    if last_norm != "none":
        norm = nn.BatchNorm1d(out_dim, affine=last_norm == "scale")
        if norm.bias is not None:
            norm.bias.requires_grad_(False)
        layers.append(norm)
    if init_std is not None:
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=init_std)
                if layer.bias is not None:  # PyTorch's would drown such small weights: every image the same projection
                    nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class Prototypes(nn.Module):
    """DINO's last layer: unit rows of x against K weight-normed prototypes, [B, D] -> [B, K].

    weight_g [K, 1] is the length of each prototype (1 and fixed where `fixed_length`), weight_v [K, D] its direction. A state dict with
    the names of torch's newer parametrization (original0, original1) loads as well.
    """

    def __init__(self, in_dim: int, out_dim: int, fixed_length: bool = True) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=not fixed_length)
        self.weight_v = nn.Parameter(nn.Linear(in_dim, out_dim, bias=False).weight.detach())  # drawn as the official code does

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), self.weight_g * F.normalize(self.weight_v, dim=-1))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
            if f"{prefix}parametrizations.weight.{new}" in state_dict:
                state_dict[prefix + old] = state_dict.pop(f"{prefix}parametrizations.weight.{new}")
        super()._load_from_state_dict(state_dict, prefix, *args)

"""Projectors and predictors."""

import itertools

from torch import nn


def mlp(
    in_dim: int, hidden_dim: int, out_dim: int, num_layers: int = 2, last_norm: str = "none", init_std: float | None = None
) -> nn.Sequential:
    """Linear-BN-ReLU blocks and a last Linear: [B, in_dim] -> [B, out_dim]. No Linear before a BN has a bias.

    last_norm: what follows the last Linear: none | scale (BN whose shift stays at zero, SimCLR) | plain (BN without parameters).
    init_std: standard deviation of the Linear weights; None keeps PyTorch's default.
    """
    layers: list[nn.Module] = []
    dims = [in_dim] + [hidden_dim] * (num_layers - 1)
    for a, b in itertools.pairwise(dims):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(dims[-1], out_dim, bias=last_norm == "none"))
    if last_norm != "none":
        norm = nn.BatchNorm1d(out_dim, affine=last_norm == "scale")
        if norm.bias is not None:
            norm.bias.requires_grad_(False)
        layers.append(norm)
    if init_std is not None:
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=init_std)
    return nn.Sequential(*layers)

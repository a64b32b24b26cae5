"""What MoCo v3 changes in a vision transformer (Chen et al. 2021, arXiv:2104.02057, section 4)."""

import math
from typing import Any

import torch
from timm.layers import build_sincos2d_pos_embed
from torch import nn

from ssl_zoo.errors import UserError


def is_vit(backbone: nn.Module) -> bool:
    """Whether a backbone is a plain vision transformer: patches, one class token, learned positions."""
    return all(hasattr(backbone, name) for name in ("patch_embed", "pos_embed", "cls_token", "blocks"))


def fix_positions_and_patches(backbone: nn.Module) -> nn.Module:
    """Fixed sine-cosine positions, and a patch projection that stays at its random initial values; changes `backbone` and returns it."""
    if not is_vit(backbone):
        raise UserError("method.vit=true needs a plain vision transformer with patches, a class token and positions: set method.vit=auto.")
    net: Any = backbone
    height, width = net.patch_embed.grid_size
    dim = net.pos_embed.shape[-1]
    tokens = net.pos_embed.shape[1] - height * width  # the class token, where it has a position
    if dim % 4:
        raise UserError(f"Sine-cosine positions need a width that is a multiple of 4, not {dim}: set method.vit=false.")
    positions = build_sincos2d_pos_embed([height, width], dim)
    net.pos_embed = nn.Parameter(torch.cat([torch.zeros(tokens, dim), positions])[None], requires_grad=False)
    projection = net.patch_embed.proj
    bound = math.sqrt(6 / (projection.weight[0].numel() + dim))
    nn.init.uniform_(projection.weight, -bound, bound)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    nn.init.normal_(net.cls_token, std=1e-6)
    projection.requires_grad_(False)
    return backbone

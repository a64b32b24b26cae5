"""What MoCo v3 changes in a vision transformer (Chen et al. 2021, arXiv:2104.02057, section 4)."""

import math
from typing import Any

import torch
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from ssl_zoo.errors import UserError


def is_vit(backbone: nn.Module) -> bool:
    """Whether a backbone is a plain vision transformer: patches of the image, one class token, learned positions."""
    patches = getattr(backbone, "patch_embed", None)
    tokens = [getattr(backbone, name, None) for name in ("pos_embed", "cls_token")]
    plain = hasattr(patches, "grid_size") and not hasattr(patches, "backbone")  # a hybrid has a convolutional network before them
    return plain and hasattr(backbone, "blocks") and all(isinstance(t, Tensor) for t in tokens)


def moco_v3_vit(backbone: nn.Module) -> nn.Module:
    """MoCo v3's transformer: fixed sine-cosine positions, a patch projection that stays at its random initial values, Xavier-uniform
    weights of which q, k and v each count as a matrix of their own. Draws anew what `backbone` had, and returns it.
    """
    if not is_vit(backbone):
        raise UserError("method.vit=true needs a plain vision transformer with patches, a class token and positions: set method.vit=auto.")
    if getattr(backbone, "pretrained", False):
        raise UserError("MoCo v3 draws a transformer's weights anew, which would lose the pretrained ones: set method.vit=false.")
    net: Any = backbone
    height, width = net.patch_embed.grid_size
    dim = net.pos_embed.shape[-1]
    tokens = net.pos_embed.shape[1] - height * width  # the class token, where it has a position
    if dim % 4:
        raise UserError(f"Sine-cosine positions need a width that is a multiple of 4, not {dim}: set method.vit=false.")
    positions = build_sincos2d_pos_embed([height, width], dim)
    for name, m in net.named_modules():
        if isinstance(m, nn.Linear):
            out = len(m.weight) // 3 if name.endswith("qkv") else len(m.weight)
            bound = math.sqrt(6 / (out + m.in_features))
            nn.init.uniform_(m.weight, -bound, bound)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    net.pos_embed = nn.Parameter(torch.cat([torch.zeros(tokens, dim), positions])[None], requires_grad=False)
    projection = net.patch_embed.proj
    bound = math.sqrt(6 / (projection.weight[0].numel() + dim))
    nn.init.uniform_(projection.weight, -bound, bound)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    nn.init.normal_(net.cls_token, std=1e-6)
    projection.requires_grad_(False)
    return backbone

"""A timm backbone as torchvision has it: which call makes the same network there, and its weights under torchvision's names."""

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ssl_zoo.nn.named_weights import SAME_NAMES
from ssl_zoo.nn.vit import is_vit

CONVNEXTS = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")
CONVNEXT = [
    (r"stem\.", "features.0."),
    (r"head\.norm\.", "classifier.0."),
    (r"stages\.(\d)\.downsample\.(\d)\.", lambda m: f"features.{2 * int(m[1])}.{m[2]}."),
    (r"stages\.(\d)\.blocks\.(\d+)\.", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}.block."),
    (r"(features\.\d\.\d+)\.block\.gamma", r"\1.layer_scale"),
    (r"(.*\.block)\.conv_dw\.", r"\1.0."),
    (r"(.*\.block)\.norm\.", r"\1.2."),
    (r"(.*\.block)\.mlp\.fc1\.", r"\1.3."),
    (r"(.*\.block)\.mlp\.fc2\.", r"\1.5."),
]
VIT = [
    (r"cls_token$", "class_token"),
    (r"patch_embed\.proj\.", "conv_proj."),
    (r"pos_embed$", "encoder.pos_embedding"),
    (r"norm\.", "encoder.ln."),
    (r"blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"(encoder\.layers\.\w+)\.norm([12])\.", r"\1.ln_\2."),
    (r"(encoder\.layers\.\w+)\.attn\.qkv\.", r"\1.self_attention.in_proj_"),
    (r"(encoder\.layers\.\w+)\.attn\.proj\.", r"\1.self_attention.out_proj."),
    (r"(encoder\.layers\.\w+)\.mlp\.fc1\.", r"\1.mlp.0."),
    (r"(encoder\.layers\.\w+)\.mlp\.fc2\.", r"\1.mlp.3."),
]


@dataclass(frozen=True)
class Twin:
    """make, options: the function of torchvision.models that makes the network, and its arguments. head: its classifier, which a backbone
    does without. state: its weights. renamed: timm's names of modules that are replaced where they are called otherwise there.
    """

    make: str
    options: dict[str, int]
    head: str
    state: dict[str, Tensor]
    renamed: dict[str, str]


def torchvision_twin(backbone: nn.Module, name: str, image_size: int) -> Twin | None:
    """torchvision's network of the same shape as a timm model called `name`; None where it has none. That both compute the same is for
    the caller to see: options of timm's may change what the weights do not tell.
    """
    state = dict(backbone.state_dict())
    if is_vit(backbone):
        try:
            return Twin("VisionTransformer", _shape(backbone, image_size), "heads", _renamed(state, VIT), {})
        except AttributeError:  # of a block that is built otherwise
            return None
    if name in CONVNEXTS:
        scales = {k: v[:, None, None] if k.endswith(".gamma") else v for k, v in state.items()}
        return Twin(name, {}, "classifier.2", _renamed(scales, CONVNEXT), {"stem.0": "features.0.0"})
    if name.startswith(SAME_NAMES) and _has(name):
        return Twin(name, {}, "classifier" if name.startswith("densenet") else "fc", state, {})
    return None


def _has(name: str) -> bool:
    from torchvision import models

    return name in models.list_models(module=models)


def _shape(vit: Any, image_size: int) -> dict[str, int]:
    first, (width, _, patch, _) = vit.blocks[0], vit.patch_embed.proj.weight.shape
    return {
        "image_size": image_size,
        "patch_size": patch,
        "num_layers": len(vit.blocks),
        "num_heads": first.attn.num_heads,
        "hidden_dim": width,
        "mlp_dim": len(first.mlp.fc1.weight),
    }


def _renamed(state: dict[str, Tensor], rules: list) -> dict[str, Tensor]:
    out = {}
    for name, tensor in state.items():
        for pattern, new in rules:
            name = re.sub(rf"^{pattern}", new, name)
        out[name] = tensor
    return out

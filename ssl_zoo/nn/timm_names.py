"""Names of other libraries' networks, as timm calls them."""

import re

from torch import Tensor

from ssl_zoo.errors import UserError
from ssl_zoo.nn.open_clip_vit import to_timm_vit

TORCHVISION_VIT = [
    (r"class_token$", "cls_token"),
    (r"conv_proj\.", "patch_embed.proj."),
    (r"encoder\.pos_embedding$", "pos_embed"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"encoder\.ln\.", "norm."),
    (r"(blocks\.\d+)\.ln_([12])\.", r"\1.norm\2."),
    (r"(blocks\.\d+)\.self_attention\.in_proj_", r"\1.attn.qkv."),
    (r"(blocks\.\d+)\.self_attention\.out_proj\.", r"\1.attn.proj."),
    (r"(blocks\.\d+)\.mlp\.(0|linear_1)\.", r"\1.mlp.fc1."),
    (r"(blocks\.\d+)\.mlp\.(3|linear_2)\.", r"\1.mlp.fc2."),
]
SHORTCUT = (r"(layer\d\.\d+)\.shortcut\.", r"\1.downsample.")


def to_timm(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The same tensors under timm's names, and in words whose names they had; names that are not known stay as they are."""
    if "class_token" in state and "conv_proj.weight" in state:
        return _renamed(state, TORCHVISION_VIT), "torchvision's VisionTransformer"
    if "class_embedding" in state and "conv1.weight" in state:
        return to_timm_vit(state), "CLIP's VisionTransformer"
    if "attnpool.positional_embedding" in state:
        raise UserError(
            "The file holds OpenAI's ModifiedResNet, whose three stem convolutions and attention pooling no ResNet here has: "
            "take a checkpoint with a vision transformer or a timm model."
        )
    first = next((i for i in (2, 4) if f"{i}.0.conv1.weight" in state), None)
    if "0.weight" in state and first is not None:  # the children of a ResNet in a row
        rules = [(r"0\.", "conv1."), (r"1\.", "bn1."), *((rf"{first + i}\.(?=\d)", f"layer{i + 1}.") for i in range(4))]
        return _renamed(_renamed(state, rules), [SHORTCUT]), "a row of a ResNet's children"
    if any(re.match(SHORTCUT[0], name) for name in state):
        return _renamed(state, [SHORTCUT]), "a ResNet with shortcuts"
    return dict(state), "timm's names"


def _renamed(state: dict[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    out = {}
    for name, tensor in state.items():
        for pattern, new in rules:
            name = re.sub(rf"^{pattern}", new, name)
        if name in out:
            raise UserError(f"The file holds {name} twice, under timm's name and another: save the state_dict() of one network.")
        out[name] = tensor
    return out

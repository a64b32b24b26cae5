"""Vision transformers under the names of OpenAI's CLIP, which open_clip's own has too, and under timm's."""

from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer, _convert_openai_clip
from torch import Tensor, nn

State = dict[str, Tensor]


def to_timm_vit(state: State) -> State:
    """Weights under the names of CLIP's image tower, without `visual.`, under timm's; its projection becomes `head.weight`."""
    named: Any = {f"visual.{name.replace('.ls_', '.ls')}": tensor for name, tensor in state.items()}
    out = _convert_openai_clip(named, None)  # type: ignore[arg-type]
    out.pop("head.bias", None)  # which it invents
    return out


def to_open_clip_vit(net: nn.Module, image_size: int, weight: Tensor, bias: Tensor | None) -> tuple[dict[str, Any], State] | None:
    """The `vision_cfg` and weights of open_clip's transformer that maps images to weight @ net(images) + bias; None where it has none.

    weight: [E, D], bias: [E]. The bias of timm's patches goes into the positions. open_clip projects without a bias, so that of the
    projection goes through the last norm, whose output before its own scale sums to zero: a constant can be added along that direction.
    """
    last = _last_norm(net, image_size)
    if last is None:
        return None
    vit: Any = net
    blocks, width = list(vit.blocks), vit.embed_dim
    state: State = {"conv1.weight": vit.patch_embed.proj.weight, "class_embedding": vit.cls_token[0, 0]}
    positions = vit.pos_embed[0].detach().clone()
    if vit.patch_embed.proj.bias is not None:
        positions[1:] += vit.patch_embed.proj.bias
    state["positional_embedding"] = positions
    pre = isinstance(vit.norm_pre, nn.LayerNorm)
    if pre:
        state |= _of(vit.norm_pre, "ln_pre")
    for i, block in enumerate(blocks):
        state |= _block(block, f"transformer.resblocks.{i}")
    state |= _folded(last, weight, bias)
    scaled = not isinstance(blocks[0].ls1, nn.Identity)
    config = {
        "image_size": image_size,
        "patch_size": vit.patch_embed.patch_size[0],
        "width": width,
        "layers": len(blocks),
        "head_width": width // blocks[0].attn.num_heads,
        "mlp_ratio": blocks[0].mlp.fc1.out_features / width,
        "no_ln_pre": not pre,
        "pool_type": "tok" if vit.global_pool == "token" else "avg",
        "final_ln_after_pool": last is vit.fc_norm,
        "norm_kwargs": {"eps": last.eps},
        **({"ls_init_value": 1e-5} if scaled else {}),  # which the weights replace
    }
    return config, {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _last_norm(net: nn.Module, image_size: int) -> nn.LayerNorm | None:
    """The norm before the projection of a transformer that open_clip has too; None for others."""
    if not isinstance(net, VisionTransformer) or net.pos_embed is None or net.cls_token is None or net.attn_pool is not None:
        return None
    vit: Any = net
    side = image_size // vit.patch_embed.patch_size[0]
    plain = vit.num_prefix_tokens == 1 and not vit.no_embed_class and vit.pos_embed.shape[1] == side**2 + 1
    blocks = all(type(b) is Block and isinstance(b.attn.q_norm, nn.Identity) for b in vit.blocks)
    last = [norm for norm in (vit.norm, vit.fc_norm) if isinstance(norm, nn.LayerNorm)]
    known = plain and blocks and len(last) == 1 and last[0].bias is not None and vit.global_pool in ("token", "avg")
    return last[0] if known else None


def _block(block: Any, prefix: str) -> State:
    qkv = block.attn.qkv
    state = {"attn.in_proj_weight": qkv.weight, "attn.in_proj_bias": torch.zeros(len(qkv.weight)) if qkv.bias is None else qkv.bias}
    parts = {
        "ln_1": block.norm1,
        "ln_2": block.norm2,
        "attn.out_proj": block.attn.proj,
        "mlp.c_fc": block.mlp.fc1,
        "mlp.c_proj": block.mlp.fc2,
    }
    for name, part in parts.items():
        state |= _of(part, name)
    for n, scale in ((1, block.ls1), (2, block.ls2)):
        if not isinstance(scale, nn.Identity):
            state[f"ls_{n}.gamma"] = scale.gamma
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def _of(part: Any, name: str) -> State:
    return {f"{name}.weight": part.weight, f"{name}.bias": part.bias}


def _folded(norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> State:
    """`ln_post` and `proj` [D, E] with x -> weight @ norm(x) + bias."""
    if bias is None:
        return {**_of(norm, "ln_post"), "proj": weight.T}
    w, scale, shift = weight.double(), norm.weight.double(), norm.bias.double()
    body, constant = w * scale, w @ shift + bias.double()  # body @ x' + constant, where x' sums to zero
    along = (constant - body.sum(1)) / len(scale)
    ones = torch.ones_like(norm.weight)
    return {"ln_post.weight": ones, "ln_post.bias": ones, "proj": (body + along[:, None]).T.to(weight.dtype)}

"""Where a backbone looks: attention of a transformer's last block, and the features of single patches."""

from typing import Any

import torch
from torch import Tensor, nn

from ssl_zoo.evaluation.features import eval_mode

SMALLEST = 4  # cells a side: a map of fewer shows no parts of an image


@torch.no_grad()
def attention_maps(backbone: nn.Module, x: Tensor) -> Tensor | None:
    """What the last block of a timm transformer attends to in images x [B, 3, S, S]: [B, heads, h, w] over its patches, after the softmax.

    Of the class token or, where there is none, the mean of what the patches attend to; the share that goes to class and register tokens is
    left out, so a map sums to at most 1. None for a backbone without such attention. (Caron et al. 2021, section 4.2.2.)
    """
    blocks, embed = getattr(backbone, "blocks", None), getattr(backbone, "patch_embed", None)
    attention: Any = getattr(blocks[-1], "attn", None) if isinstance(blocks, (nn.Sequential, nn.ModuleList)) and len(blocks) else None
    if not hasattr(attention, "fused_attn") or not hasattr(attention, "attn_drop") or not hasattr(embed, "dynamic_feat_size"):
        return None
    seen: list[Tensor] = []
    hook = attention.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fused, attention.fused_attn = attention.fused_attn, False  # which never has the matrix; rotary positions and biases come along
    try:
        with eval_mode(backbone):
            backbone(x)
    finally:
        hook.remove()
        attention.fused_attn = fused
    height, width = embed.dynamic_feat_size(x.shape[-2:])  # type: ignore[union-attr]
    prefix = int(getattr(backbone, "num_prefix_tokens", 0))
    tokens = prefix + height * width
    if not seen or seen[0].dim() != 4 or seen[0].shape[2:] != (tokens, tokens):  # attention over channels or within windows
        return None
    found = seen[0].float()
    of_query = found[:, :, 0] if isinstance(getattr(backbone, "cls_token", None), Tensor) else found[:, :, prefix:].mean(2)
    return of_query[:, :, prefix:].unflatten(-1, (height, width))


@torch.no_grad()
def patch_features(backbone: nn.Module, x: Tensor) -> Tensor | None:
    """Features of the parts of images x [B, 3, S, S]: [B, D, h, w], of a transformer its patches after the final norm, of other networks
    the last map of at least 4 x 4 cells. None for a backbone that is not timm's or has no such map.
    """
    inner = getattr(backbone, "forward_intermediates", None)
    if inner is None:
        return None
    with eval_mode(backbone):
        maps = inner(x, indices=1, norm=True, intermediates_only=True)
        if min(maps[-1].shape[2:]) < SMALLEST:
            maps = inner(x, intermediates_only=True)
    large = [m for m in maps if m.dim() == 4 and min(m.shape[2:]) >= SMALLEST]
    return large[-1].float() if large else None


def principal_components(rows: Tensor, count: int) -> Tensor:
    """The first `count` principal components of rows [N, D], as coordinates [N, count]; fewer where there are no more. A component has the
    sign that makes its largest weight positive, so that equal rows give equal pictures.
    """
    centred = rows - rows.mean(0)
    _, _, v = torch.linalg.svd(centred, full_matrices=False)
    v = v[:count]
    largest = v.abs().argmax(1, keepdim=True)
    return centred @ (v * v.gather(1, largest).sign()).T


def patch_colours(maps: Tensor) -> Tensor:
    """Maps [B, D, h, w] as pictures uint8 [B, 3, h, w]: red, green and blue are the first three principal components over all patches of
    all images, each from its 1st to its 99th percentile. (As Oquab et al. 2023 show DINOv2, but the background stays.)
    """
    batch, _, height, width = maps.shape
    found = principal_components(maps.float().permute(0, 2, 3, 1).flatten(0, 2).nan_to_num(0, 0, 0), 3)
    low, high = found.quantile(found.new_tensor([0.01, 0.99]), dim=0)
    shown = ((found - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    shown = torch.nn.functional.pad(shown, (0, 3 - shown.shape[1]))
    return (shown * 255).round().byte().view(batch, height, width, 3).permute(0, 3, 1, 2)

"""Whether a state dict fits a backbone, what must be changed for it to fit, and what no state dict tells."""

from typing import Any

import torch
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed
from torch import Tensor, nn

from ssl_zoo.errors import UserError
from ssl_zoo.nn.architecture import architecture

State = dict[str, Tensor]
CHOOSE = "choose the backbone and the backbone.kwargs that the file was made with"


def check_architecture(state: State, own: State) -> None:
    """Refuse another family, size, stem or patch size, and say how to ask for that of the file."""
    theirs, ours = architecture(state), architecture(own)
    if theirs and (ours is None or (theirs.family, theirs.body) != (ours.family, ours.body)):
        raise UserError(f"The file holds a {theirs} but the backbone is a {ours or 'network of another family'}: {theirs.remedy}.")
    if theirs and ours and theirs.first != ours.first:
        resnet = theirs.family == "ResNet"
        name = "conv1.weight" if resnet else "patch_embed.proj.weight"
        remedy = f"backbone.stem={'small' if theirs.first == 3 else 'model'}" if resnet else f"backbone.patch_size={theirs.first}"
        raise UserError(f"{name} is {_shape(state[name])} in the file and {_shape(own[name])} here: set {remedy}.")


def fit_positions(backbone: nn.Module, state: State, own: State) -> list[str]:
    """Resample the positions of a transformer's patches in `state` to the backbone's grid; a note where that changed them."""
    if "pos_embed" not in state or "pos_embed" not in own or state["pos_embed"].shape == own["pos_embed"].shape:
        return []
    theirs, ours, grid = state["pos_embed"], own["pos_embed"], getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    if grid is None or theirs.dim() != 3 or theirs.shape[2] != ours.shape[2]:
        return []
    tokens = ours.shape[1] - grid[0] * grid[1]  # those that are no patches
    side = round(max(theirs.shape[1] - tokens, 0) ** 0.5)
    if side == 0 or side * side + tokens != theirs.shape[1]:
        raise UserError(
            f"pos_embed has {theirs.shape[1]} positions in the file, which are no square of patches and {tokens} further tokens, "
            f"as the backbone has them: {CHOOSE}."
        )
    state["pos_embed"] = resample_abs_pos_embed(theirs, list(grid), [side, side], num_prefix_tokens=tokens)
    return [f"positions resampled from {side}x{side} to {grid[0]}x{grid[1]} patches"]


def fit_patches(state: State, own: State, project: str) -> list[str]:
    """open_clip's patches have no bias, of which the positions can say as much."""
    name = "patch_embed.proj.bias"
    if project != "open_clip" or name not in own or name in state or "patch_embed.proj.weight" not in state:
        return []
    state[name] = torch.zeros_like(own[name])
    return ["patches have no bias in the file: 0 here"]


def check_names(state: State, own: State) -> None:
    """Refuse what is missing, has no place, or is of another shape or kind."""
    lacking = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in own]
    if lacking or unknown:
        parts = [f"lacks {some(lacking)}"] * bool(lacking) + [f"has {some(unknown)}, for which the backbone has no place"] * bool(unknown)
        raise UserError(f"The file does not fit the backbone: it {' and '.join(parts)}: {_remedy(lacking, unknown)}.")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"{name} is {_shape(tensor)} in the file and {_shape(own[name])} here: {CHOOSE}.")
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise UserError(f"{name} is {tensor.dtype} in the file and {own[name].dtype} here: save the weights as floating point.")
        if not tensor.isfinite().all():
            raise UserError(f"{name} holds numbers that are not finite: the training that gave this file diverged, take an earlier one.")


def _remedy(lacking: list[str], unknown: list[str]) -> str:
    prefix = unknown[0].removesuffix(lacking[0]) if lacking and unknown else ""
    if prefix.endswith(".") and {prefix + n for n in lacking} <= set(unknown):
        return f"the names begin with {prefix}, which is not known here, save them without it"
    if any(n.startswith("features.") for n in unknown):
        return "these are torchvision's names, which are known of ResNets, DenseNets and VisionTransformers only; take timm's weights"
    if any(n.startswith("norm_pre.") for n in unknown):
        return "CLIP's transformers begin with a norm, choose backbone=timm backbone.name=vit_base_patch16_clip_224 or one like it"
    if "fc_norm.weight" in lacking and "norm.weight" in unknown:
        return "set backbone.kwargs={global_pool:token}"
    if "norm.weight" in lacking and "fc_norm.weight" in unknown:
        return "set backbone.kwargs={global_pool:avg}"
    return CHOOSE


def casts(state: State, own: State) -> list[str]:
    """A note for numbers stored in another precision, and for batch counters that the file has not."""
    kinds = sorted({str(t.dtype).removeprefix("torch.") for n, t in state.items() if t.is_floating_point() and t.dtype != own[n].dtype})
    notes = [f"stored as {' and '.join(kinds)}, converted"] if kinds else []
    if any(n.endswith("num_batches_tracked") and n not in state for n in own):
        notes.append("the file does not count batches (num_batches_tracked); only a cumulative average of statistics would need it")
    return notes


def set_unstated(backbone: nn.Module, project: str, positions: Tensor | None) -> list[str]:
    """Set what names and shapes do not tell but the project is known for, and note what stays a matter of trust.

    positions: a transformer's, as the file has them.
    """
    net: Any = backbone
    built = architecture(backbone.state_dict())
    if built is None:
        return []
    if built.family == "ResNet":
        return _set_padding(net.conv1, net.maxpool, project) if built.first == 3 and isinstance(net.conv1, nn.Conv2d) else []
    notes = _set_heads([b.attn for b in net.blocks], project, built.body[0], positions is not None and _sincos(positions))
    if project == "open_clip":
        act, eps = type(net.blocks[0].mlp.act).__name__, getattr(net.blocks[0].norm1, "eps", None)
        notes.append(f"{act} and norms with epsilon {eps} here; no state dict tells these (OpenAI's: backbone.name=vit_*_clip_quickgelu_*)")
    return notes


def _set_padding(conv: nn.Conv2d, pool: nn.Module, project: str) -> list[str]:
    if project == "solo-learn" and conv.padding != (2, 2):
        conv.padding = (2, 2)
        return ["conv1.padding set to 2, as solo-learn has it for CIFAR; no state dict tells it"]
    about = f"stride {conv.stride[0]}, padding {conv.padding[0]} and {'no' if isinstance(pool, nn.Identity) else 'a'} max-pool"
    return [f"conv1 is 3x3 with {about} here; no state dict tells these (solo-learn's CIFAR networks pad by 2)"]


def _set_heads(attention: list[Any], project: str, width: int, sincos: bool) -> list[str]:
    """MoCo v3's small and base transformers have 12 heads; in solo-learn the tiny one too, and those of MAE."""
    heads = attention[0].num_heads
    if project not in ("MoCo v3", "solo-learn") or (project == "solo-learn" and not sincos):
        fixed = sincos and project != "ssl_zoo" and width in (192, 384) and heads != 12
        hint = "; its positions are fixed, and 12 is usual with those: backbone.kwargs={num_heads:12}" if fixed else ""
        return [f"attention has {heads} heads here; no state dict tells how many{hint}"]
    if width not in (192, 384, 768) or heads == 12:
        return [f"attention has {heads} heads here, as {project} has it; no state dict tells how many"]
    for a in attention:
        a.num_heads, a.head_dim, a.scale = 12, width // 12, (width // 12) ** -0.5
    return [f"attention set from {heads} to 12 heads, as {project} has it; no state dict tells how many"]


def _sincos(positions: Tensor) -> bool:
    """Whether the last positions [1, tokens + side * side, D] are the fixed ones of MoCo v3, or of MAE, which turns the image."""
    dim = positions.shape[-1]
    side = int(positions.shape[1] ** 0.5)
    if dim % 4 or side * side > positions.shape[1]:
        return False
    fixed = build_sincos2d_pos_embed([side, side], dim)
    turned = fixed.view(side, side, dim).transpose(0, 1).reshape(-1, dim)
    own = positions.detach()[0, -side * side :].cpu().float()
    return any(torch.allclose(own, p, atol=1e-3) for p in (fixed, turned))


def some(names: list[str] | tuple[str, ...]) -> str:
    """The first few of them, and how many there are."""
    return ", ".join(names[:3]) + (f", ... ({len(names)} in all)" if len(names) > 3 else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"

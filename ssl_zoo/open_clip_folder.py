"""A method with words as open_clip has it: a config and weights that it loads without network."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ssl_zoo.errors import UserError
from ssl_zoo.files import whole
from ssl_zoo.methods.two_towers import TwoTowers
from ssl_zoo.nn.backbones import SMALL_STEM
from ssl_zoo.nn.open_clip_vit import to_open_clip_vit
from ssl_zoo.nn.text import open_clip, tokenize

State = dict[str, Tensor]
MOST = 1e-5  # between unit embeddings of both libraries


@dataclass(frozen=True)
class Found:
    """config and state: what open_clip loads. tower: whose image tower it is there. difference: the largest between unit embeddings."""

    config: dict[str, Any]
    state: State
    tower: str
    difference: float


def as_open_clip(method: TwoTowers, backbone: dict[str, Any], about: dict[str, Any]) -> Found:
    """A trained method (in evaluation mode) for open_clip, held against it. backbone: its config. about: image_size, mean and std.

    Raises UserError where open_clip has no image tower that gives the same embeddings.
    """
    size = int(about["image_size"])
    if backbone.get("_target_") != "ssl_zoo.nn.backbones.create":
        raise UserError("open_clip builds image towers that timm has, and this backbone is none of them: train with backbone=vit_t, "
                        "resnet18 or another of timm's.")  # fmt: skip
    if getattr(method.backbone, "stem_used", None) == SMALL_STEM:
        raise UserError(
            f"open_clip builds {backbone['name']} with timm's stem, and this run's is {SMALL_STEM}: train with backbone.stem=model."
        )
    text, words = _text(method)
    images = {"size": size, "mode": "RGB", "mean": list(about["mean"]), "std": list(about["std"]), "interpolation": "bicubic",
              "resize_mode": "shortest"}  # fmt: skip
    scale = {"logit_scale": method.log_scale, **({"logit_bias": method.bias} if hasattr(method, "bias") else {})}
    for tower, vision, weights in _image_towers(method, str(backbone["name"]), size):
        model = {"embed_dim": method.project.out_features, "vision_cfg": vision, "text_cfg": text}
        if hasattr(method, "bias"):
            model["init_logit_bias"] = method.bias.item()
        if method.text.quick_gelu:  # of both towers, where the image tower is open_clip's own
            model["quick_gelu"] = True
        state = {k: v.detach().cpu().contiguous().clone() for k, v in {**weights, **words, **scale}.items()}
        difference = _difference(method, model, state, size)
        if difference <= MOST:
            return Found({"model_cfg": {**model, "custom_text": True}, "preprocess_cfg": images}, state, tower, difference)
    quick = ", and with method.text.quick_gelu=false, which goes for both towers there" if method.text.quick_gelu else ""
    raise UserError(
        f"open_clip has no image tower that computes what this {backbone['name']} does (image_size={size}, backbone.kwargs="
        f"{backbone.get('kwargs') or {}}): train with timm's own image size and without backbone.kwargs, or with vit_t, vit_s or "
        f"vit_b{quick}."
    )


def write(found: Found, out: Path, about: dict[str, Any]) -> None:
    """Both files, each whole or not at all, the config last: a folder with it is complete. about: for the header of the weights."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The folder out={out} cannot be made ({e.strerror}): choose another.") from e
    with whole(out / "open_clip_model.safetensors") as f:
        f.write(save(found.state, metadata={"format": "pt", "ssl_zoo": json.dumps(about)}))
    with whole(out / "open_clip_config.json") as f:
        f.write((json.dumps(found.config, indent=2) + "\n").encode())


def _text(method: TwoTowers) -> tuple[dict[str, Any], State]:
    net: Any = method.text.net
    config = {
        "context_length": net.context_length,
        "vocab_size": net.vocab_size,
        "width": net.width,
        "heads": net.heads,
        "layers": len(net.transformer.resblocks),
        "no_causal_mask": net.attn_mask is None,
        "pool_type": net.pool_type,
        "proj_bias": isinstance(net.text_projection, nn.Linear) and net.text_projection.bias is not None,
    }
    return config, {f"text.{name}": tensor for name, tensor in net.state_dict().items()}


def _image_towers(method: TwoTowers, name: str, size: int) -> Iterator[tuple[str, dict[str, Any], State]]:
    """Towers of open_clip that may be this one: what they are called, their `vision_cfg` and weights."""
    project, own = method.project, method.backbone.state_dict()
    biased = project.bias is not None
    if _shapes_in_open_clip(name, project.out_features, size) == {k: v.shape for k, v in own.items()}:
        vision = {"timm_model_name": name, "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear",
                  "timm_proj_bias": biased, "image_size": size}  # fmt: skip
        head = {f"visual.head.proj.{k}": v for k, v in project.state_dict().items()}
        yield f"timm's {name}", vision, {**{f"visual.trunk.{k}": v for k, v in own.items()}, **head}
    found = to_open_clip_vit(method.backbone, size, project.weight, project.bias)
    if found is not None:
        yield "open_clip's VisionTransformer", found[0], {f"visual.{k}": v for k, v in found[1].items()}


def _shapes_in_open_clip(name: str, embed_dim: int, size: int) -> dict[str, torch.Size] | None:
    """Those of the tensors of a timm model within open_clip; None where it cannot build it."""
    for device in ("meta", "cpu"):  # on which some networks cannot be made
        try:
            with torch.device(device):
                made = open_clip().timm_model.TimmModel(name, embed_dim, size, pool="")
            return {k: v.shape for k, v in made.trunk.state_dict().items()}
        except (RuntimeError, AssertionError, TypeError, ValueError, AttributeError, NotImplementedError):
            continue
    return None


@torch.no_grad()
def _difference(method: TwoTowers, model: dict[str, Any], state: State, size: int) -> float:
    """The largest difference between unit embeddings here and in open_clip, of random images and some sentences."""
    theirs = open_clip().model.CustomTextCLIP(**model).eval()
    theirs.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    tokens, _ = tokenize(["a red circle", "", "two small blue squares above a long green triangle"], method.text.context)
    ours = method.project(method.backbone(images)), method.text(tokens)
    pairs = zip(ours, (theirs.encode_image(images), theirs.encode_text(tokens)), strict=True)
    unit = nn.functional.normalize
    differences = [float((unit(a, dim=-1) - unit(b, dim=-1)).abs().max()) for a, b in pairs]
    return max(differences) if all(d == d for d in differences) else float("inf")

"""Weights of a run as a file of its own."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from ssl_zoo.errors import UserError
from ssl_zoo.files import whole

LARGEST = 1 << 14  # pixels along the side of an image


def save_backbone(backbone: nn.Module, file: Path, about: dict[str, Any]) -> None:
    """The backbone's state dict under timm's names; `about` goes into the header as JSON. Written whole or not at all."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in backbone.state_dict().items()}
    with whole(file) as f:
        f.write(save(state, metadata={"format": "pt", "ssl_zoo": json.dumps(about)}))


def load_backbone(backbone: nn.Module, file: Path, device: torch.device | str = "cpu") -> nn.Module:
    """Fill `backbone` from a file that `save_backbone` wrote; every name must match."""
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as e:
        raise UserError(f"The weights {file} cannot be read ({str(e).splitlines()[0]}): has the run finished?") from e
    if "log_scale" in state and not hasattr(backbone, "log_scale"):  # the towers of a method with words
        state = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    try:
        backbone.load_state_dict(state, strict=True)
    except RuntimeError as e:
        raise UserError(f"The weights {file} do not belong to this backbone: {' '.join(str(e).split())[:300]}.") from e
    return backbone.to(device)


def header(file: Path) -> dict[str, Any]:
    """What the header of a file of ssl_zoo's says; nothing for other files. Its "mean" and "std", if any, are three numbers each,
    "backbone" a table with a target, and "image_size" a size that an image can have.
    """
    try:
        with safe_open(file, "pt") as f:
            about = json.loads((f.metadata() or {}).get("ssl_zoo", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) and _sound(about) else {}


def _sound(about: dict[str, Any]) -> bool:
    """Whether what a header says can be so: anyone may have written it."""
    mean, std = about.get("mean"), about.get("std")
    size, backbone = about.get("image_size", 8), about.get("backbone", {"_target_": ""})
    images = mean is std is None or (_three(mean) and _three(std) and all(v > 0 for v in std or ()))
    named = isinstance(backbone, dict) and isinstance(backbone.get("_target_"), str)
    return images and named and isinstance(size, int) and 8 <= size <= LARGEST


def _three(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)

"""Weights of a run as a file of its own."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from ssl_zoo.errors import UserError
from ssl_zoo.files import whole


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
    """What the header of a file of ssl_zoo's says; nothing for other files. Its "mean" and "std", if any, are three numbers each."""
    try:
        with safe_open(file, "pt") as f:
            about = json.loads((f.metadata() or {}).get("ssl_zoo", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError):
        return {}
    images = [about.get(key) for key in ("mean", "std")] if isinstance(about, dict) else []
    known = all(isinstance(v, list) and len(v) == 3 and all(isinstance(x, (int, float)) for x in v) for v in images if v is not None)
    return about if images and known and (images[0] is None) == (images[1] is None) else {}

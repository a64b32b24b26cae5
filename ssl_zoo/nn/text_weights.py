"""Weights of a text tower, and of what brings it together with an image tower, from open_clip's checkpoints and our own."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ssl_zoo.errors import UserError
from ssl_zoo.nn.fitting import some
from ssl_zoo.nn.text import VOCABULARY, TextTower

State = dict[str, Tensor]
NAMES = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
LAYOUTS = {"text.net.": "ssl_zoo", "text.": "open_clip, CustomTextCLIP", "": "open_clip, CLIP"}  # by what the names begin with
IMAGE_PROJECTIONS = ("project.weight", "visual.head.proj.weight", "visual.proj")


def load_text(tower: TextTower, content: Any) -> list[str]:
    """Fill `tower` with the text tower of what `read_checkpoint` gave of a file. Returns lines that say what was loaded.

    Raises UserError where the file holds none, or another than the tower is: its sentence names the keys to set.
    """
    flat = named(content)
    prefix = next((p for p in LAYOUTS if f"{p}token_embedding.weight" in flat), None)
    if prefix is None:
        raise UserError("method.text_weights holds no text tower that is known (token_embedding.weight of open_clip's or our own).")
    theirs = {n.removeprefix(prefix): t for n, t in flat.items() if n.startswith(prefix) and n.removeprefix(prefix).startswith(NAMES)}
    own = tower.net.state_dict()
    notes = _project(theirs, own)
    _check_size(theirs, own)
    lacking, unknown = [n for n in own if n not in theirs], [n for n in theirs if n not in own]
    if lacking or unknown:
        parts = [f"lacks {some(lacking)}"] * bool(lacking) + [f"has {some(unknown)} beyond it"] * bool(unknown)
        raise UserError(f"method.text_weights is not of open_clip's plain text transformer: it {' and '.join(parts)}.")
    _fill(tower.net, theirs)
    kind = "QuickGELU" if tower.quick_gelu else "GELU (OpenAI's: method.text.quick_gelu=true)"
    heads = f"attention has {tower.net.heads} heads, {'is' if tower.causal else 'is not'} causal, {kind} here; no state dict tells these"
    return [f"text     {LAYOUTS[prefix]}", f"loaded   {len(theirs):4d} tensors", *(f"note     {n}" for n in (*notes, heads))]


def load_meeting(method: Any, content: Any) -> list[str]:
    """Fill the projection of images, scale and bias of a method with both towers of one file. Returns lines that say what was loaded."""
    flat = named(content)
    name = next((n for n in IMAGE_PROJECTIONS if n in flat), None)
    if name is None:
        return ["note     the file has no linear projection of images: it begins anew"]
    weight, bias = flat[name].T if name == "visual.proj" else flat[name], flat.get(name.replace("weight", "bias"))
    if bias is not None and name != "visual.proj" and method.project.bias is None:
        raise UserError("The file projects images with a bias, as SigLIP's do: use method=siglip, or give image_weights another file.")
    state = {"project.weight": weight}
    if method.project.bias is not None:
        state["project.bias"] = torch.zeros(weight.shape[:1]) if bias is None or name == "visual.proj" else bias
    for ours, theirs in (("log_scale", ("log_scale", "logit_scale")), ("bias", ("bias", "logit_bias"))):
        found = next((flat[n] for n in theirs if n in flat), None)
        if found is not None and hasattr(method, ours):
            if found.numel() != 1:
                raise UserError(f"{ours} of the file is {_shape(found)} and should be one number: it is no checkpoint of CLIP or SigLIP.")
            state[ours] = found.reshape(())
    if weight.shape != method.project.weight.shape:
        shapes = f"{_shape(weight)} in the file and {_shape(method.project.weight)} here"
        advice = f"set method.embed_dim={len(weight)} and the backbone of the file" if weight.dim() else "it is of no known layout"
        raise UserError(f"The projection of images is {shapes}: {advice}.")
    _fill(method, state)
    return [f"meeting  {', '.join(state)}"]


def named(content: Any) -> State:
    """The tensors of a file by name, without wrappers."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise UserError("method.text_weights holds one object and not tensors by name: save the state_dict() of its model.")
    return {re.sub(r"^((module|_orig_mod)\.)+", "", str(n)): t.detach() for n, t in content.items() if isinstance(t, Tensor)}


def _project(theirs: State, own: State) -> list[str]:
    """Bring the projection into the form of ours: a matrix [width, E], or a linear layer with bias."""
    matrix, weight = theirs.get("text_projection"), theirs.get("text_projection.weight")
    if matrix is not None and "text_projection" not in own:
        theirs |= {"text_projection.weight": theirs.pop("text_projection").T, "text_projection.bias": torch.zeros(matrix.shape[-1])}
        return ["the projection has no bias in the file, as CLIP's: 0 here"]
    if weight is not None and "text_projection" in own:
        if (bias := theirs.get("text_projection.bias")) is not None and bias.any():
            raise UserError("method.text_weights projects with a bias, as SigLIP's does: use method=siglip.")
        theirs.pop("text_projection.bias", None)
        theirs["text_projection"] = theirs.pop("text_projection.weight").T
    return []


def _check_size(theirs: State, own: State) -> None:
    """Refuse another size, and name the keys that ask for that of the file."""
    words = theirs["token_embedding.weight"]
    if words.dim() == 2 and len(words) != VOCABULARY:
        raise UserError(f"method.text_weights knows {len(words):,} tokens, and here are the {VOCABULARY:,} of CLIP's byte-pair encoding.")
    wrong = {key: want for (key, want), have in zip(_sizes(theirs).items(), _sizes(own).values(), strict=True) if want not in (None, have)}
    if wrong:
        hint = " (and method.text.heads, which no file tells: width / 64 as a rule)" if "method.text.width" in wrong else ""
        raise UserError(f"method.text_weights is of another size: set {' '.join(f'{k}={v}' for k, v in wrong.items())}{hint}.")


def _sizes(state: State) -> dict[str, int | None]:
    def size(name: str, axis: int) -> int | None:
        return state[name].shape[axis] if name in state and state[name].dim() == 2 else None

    blocks = [int(m[1]) for name in state if (m := re.match(r"transformer\.resblocks\.(\d+)\.", name))]
    return {
        "method.text.width": size("token_embedding.weight", 1),
        "method.text.layers": max(blocks, default=-1) + 1,
        "method.text.context": size("positional_embedding", 0),
        "method.embed_dim": size("text_projection", 1) or size("text_projection.weight", 0),
    }


def _fill(net: nn.Module, state: State) -> None:
    """All tensors or none: their shapes are those of `net`, and they are finite numbers."""
    own = net.state_dict()
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"{name} is {_shape(tensor)} in the file and {_shape(own[name])} here: it is of another text transformer.")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise UserError(f"{name} holds what are no finite numbers: the training that gave this file diverged, take an earlier one.")
    net.load_state_dict({**own, **state}, strict=True)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"

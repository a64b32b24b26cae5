"""Backbones: any timm model as a map from images [B, 3, H, W] to features [B, num_features]."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_zoo.errors import UserError, one_line

SMALL_IMAGE = 64
SMALL_STEM = "3x3 stride 1, no max-pool"


def create(
    name: str,
    image_size: int = 224,
    stem: str = "auto",
    patch_size: int | str | None = "auto",
    pretrained: bool = False,
    grad_checkpointing: bool = False,
    kwargs: dict | None = None,
) -> nn.Module:
    """A timm model without classifier. Sets `num_features` to the width of its output and `stem_used` to a description;
    on transformers, `pretrained` to whether weights were loaded; `made_with` to what timm.create_model was given beside the name, and
    `replaced` to the names of modules that then took the place of its own.

    stem: "small" replaces the first convolution by 3x3, stride 1, padding 1 and drops the stem's max-pool (convolutional networks);
    "model" leaves it; "auto" is small for images of 64 px or less. patch_size: for transformers with patches; "auto" gives 8 x 8
    patches or more on small images. grad_checkpointing: activations inside blocks are computed again in the backward pass instead of
    kept: less memory, more time. kwargs: passed to timm.create_model.
    Raises UserError for an unknown name, a size that the model cannot take, or weights that cannot be had.
    """
    if odd := [k for k in kwargs or {} if not (isinstance(k, str) and k.isidentifier())]:
        raise UserError(f"backbone.kwargs={{{one_line(odd[0])[:60]}: ...}} is no name of an argument of timm's: remove it.")
    if not isinstance(name, str) or not timm.is_model(name):
        name = str(name)
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise UserError(f"timm has no model '{name}'" + (f"; did you mean '{close[0]}'?" if close else "; see `ssl-zoo list backbones`."))
    if "checkpoint_path" in (kwargs or {}) and not _reads_safely(timm.models.load_state_dict):
        raise UserError("This version of timm could run code that lies in backbone.kwargs.checkpoint_path: pip install -U timm.")
    first_conv = (timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).first_conv or ""
    first_conv = first_conv if isinstance(first_conv, str) else first_conv[0]
    if first_conv.endswith("patch_embed.proj"):
        model: Any = _with_patches(name, image_size, patch_size, pretrained, kwargs or {})
        model.pretrained = pretrained or "checkpoint_path" in (kwargs or {})
    else:
        model = _timm(name, pretrained, kwargs or {})
        model.replaced = []
        small = stem == "small" or (stem == "auto" and image_size <= SMALL_IMAGE)
        model.stem_used = _use_small_stem(model, first_conv) if small else "the model's own"
        if small and stem == "auto":
            try:
                _checked(model, name, image_size)
            except UserError:  # a stem of parallel branches, say: the model's own may do
                model = _timm(name, pretrained, kwargs or {})
                model.stem_used, model.replaced = "the model's own", []
    if grad_checkpointing:
        _checkpoint(model, name)
    return _checked(model, name, image_size)


def _reads_safely(load: Callable[..., Any]) -> bool:
    """Whether timm reads files of weights as tensors alone, unless told otherwise."""
    known = inspect.signature(load).parameters.get("weights_only")
    return known is not None and known.default is True


def tiny(image_size: int = 32, stem: str = "auto") -> nn.Module:
    """A residual network for CPUs, 0.8 M parameters, 256 features: timm's ResNet with one block per stage.

    stem: a 3x3 convolution of stride 2 without max-pool ("auto"), or of stride 1 ("small"; finer, at a third of the speed).
    """
    # timm fixes its plain stem at 64 channels; the deep stem is only asked for to get a narrow one, and then replaced
    model: Any = ResNet(BasicBlock, layers=(1, 1, 1, 1), channels=(16, 32, 64, 256), num_classes=0, stem_type="deep", stem_width=8)  # type: ignore[arg-type]
    stride = 1 if stem == "small" else 2
    model.conv1 = nn.Conv2d(3, 16, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    model.stem_used = f"3x3 stride {stride}, no max-pool"
    return _checked(model, "tiny", image_size)


def _timm(name: str, pretrained: bool, kwargs: dict) -> Any:
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
        model.made_with = _portable(kwargs)
        return model
    except TypeError as e:
        raise UserError(f"timm's {name} refuses backbone.kwargs: {e}.") from e
    except (OSError, RuntimeError) as e:
        why = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"The pretrained weights of {name} cannot be had ({why}): use backbone.pretrained=false.") from e


def _portable(options: dict) -> dict:
    """Options of timm's without those that name a file of this machine, or nothing."""
    return {k: v for k, v in options.items() if k not in ("checkpoint_path", "cache_dir") and v is not None}


def _with_patches(name: str, image_size: int, patch_size: int | str | None, pretrained: bool, kwargs: dict) -> Any:
    size: dict = {"img_size": image_size}
    if patch_size == "auto":
        patch_size = 4 if image_size <= 48 else 8 if image_size <= 128 else None
    if patch_size is not None:
        size["patch_size"] = patch_size
    for option in ({**size, "dynamic_img_size": True}, size, {"img_size": image_size}, {}):
        try:
            model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **{**option, **kwargs})
            model.made_with = _portable({**option, **kwargs})
            break
        except (OSError, RuntimeError):  # told below
            model = _timm(name, pretrained, {**option, **kwargs})
            break
        except (TypeError, AssertionError, ZeroDivisionError, ValueError):
            continue
    else:
        model = _timm(name, pretrained, kwargs)
    embed = model.patch_embed
    patch: Any = getattr(embed, "patch_size", None) or getattr(getattr(embed, "proj", None), "stride", 1)
    patch = patch[0] if isinstance(patch, (tuple, list)) else patch
    if image_size % patch:
        raise UserError(
            f"{name} cuts images into {patch} px patches, and {image_size} px is no multiple of that: "
            f"set dataset.image_size={max(patch, round(image_size / patch) * patch)} or another backbone.patch_size."
        )
    model.stem_used, model.replaced = f"patches of {patch} px", []
    return model


def _checkpoint(model: Any, name: str) -> None:
    if any(isinstance(m, _BatchNorm) for m in model.modules()):  # each pass would move its running statistics
        raise UserError(f"{name} has batch normalisation, which cannot be computed twice a step: set backbone.grad_checkpointing=false.")
    try:
        model.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as e:
        raise UserError(f"timm cannot recompute activations of {name}: set backbone.grad_checkpointing=false.") from e


def _use_small_stem(model: Any, first_conv: str) -> str:
    """Full resolution for small images; timm names the first convolution in its config."""
    try:
        old = model.get_submodule(first_conv)
    except AttributeError:
        return "the model's own"
    if not isinstance(old, nn.Conv2d):
        return "the model's own"
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=1, padding=1, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    model.set_submodule(first_conv, new)
    model.replaced = [first_conv]
    for pool in ("maxpool", "stem.pool", "features.pool0"):
        try:
            model.get_submodule(pool)
        except AttributeError:
            continue
        model.set_submodule(pool, nn.Identity())
        model.replaced.append(pool)
    return SMALL_STEM


def _checked(model: nn.Module, name: str, image_size: int) -> nn.Module:
    """Refuse here a size that the model cannot take, and learn the width of its output."""
    out = try_size(model, name, image_size, "set dataset.image_size")
    if out.dim() != 2:
        raise UserError(f"{name} gives features of shape {list(out.shape)} instead of one vector per image: choose another backbone.")
    model.num_features = out.shape[1]  # type: ignore[assignment]
    return model


@torch.no_grad()
def try_size(model: nn.Module, name: str, size: int, remedy: str) -> torch.Tensor:
    """The output of `model` for one empty image of `size` pixels; UserError where it cannot take that. Modes stay as they were."""
    modes = {m: m.training for m in model.modules()}
    try:
        return model.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError) as e:
        wanted = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        hint = f" (it was made for {wanted[-1]} px)" if wanted else ""
        raise UserError(f"{name} cannot take images of {size} px ({str(e).splitlines()[0][:160]}): {remedy}{hint}.") from e
    finally:
        for m, training in modes.items():
            m.training = training

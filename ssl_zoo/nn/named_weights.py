"""Published weights by name, from timm and torchvision."""

import difflib
from typing import Any

import timm
import torchvision
from timm.data import resolve_model_data_config
from torch import Tensor

from ssl_zoo.errors import UserError

SAME_NAMES = ("resnet", "resnext", "wide_resnet", "densenet")  # torchvision's models whose tensors timm calls the same
TRANSFORMERS = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
}


def named_weights(name: str) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """The state dict of published weights, timm's name of the backbone that takes it, and how its images were prepared:
    {"weights": full name, "mean": [3], "std": [3], "image_size": px}, mean and std of images in 0 to 1.

    name: timm/<model>, timm/<model>.<tag>, torchvision/<model> or torchvision/<Model>_Weights.<TAG>. Downloads once, into the library's
    own cache. Raises UserError for an unknown name and where the weights cannot be had.
    """
    library, _, rest = name.partition("/")
    if library not in ("timm", "torchvision") or not rest:
        raise UserError(f"Weights by name are timm/<model> or torchvision/<model>, not {name}.")
    return _timm(rest) if library == "timm" else _torchvision(rest)


def _timm(name: str) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        raise _unknown("timm", "model", model, timm.list_models())
    tagged = timm.list_models(f"{model}.*", pretrained=True)
    if not tagged:
        raise UserError(f"timm has no weights of {model}: choose a model of timm.list_models(pretrained=True).")
    if tag and name not in tagged:
        raise _unknown("timm", "weights", name, tagged)
    try:
        net: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as e:
        raise _not_had(f"timm/{name}", e) from e
    data = resolve_model_data_config(net)
    full = ".".join(filter(None, (model, net.pretrained_cfg.get("tag"))))
    return net.state_dict(), model, _about(f"timm/{full}", data["mean"], data["std"], data["input_size"][-1])


def _torchvision(name: str) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    models = torchvision.models
    model = name.partition(".")[0].removesuffix("_Weights").lower()
    classification = models.list_models(module=models)
    if model not in classification:
        raise _unknown("torchvision", "model", model, classification)
    timm_name = model if model.startswith(SAME_NAMES) and timm.is_model(model) else TRANSFORMERS.get(model)
    if timm_name is None:
        raise UserError(f"torchvision's {model} has other names than timm's: take weights of timm, as in timm/<model>.")
    kinds = models.get_model_weights(model)
    tag = name.partition(".")[2] or "DEFAULT"
    if tag not in kinds.__members__:
        raise _unknown("torchvision", "weights", name, [f"{kinds.__name__}.{t}" for t in kinds.__members__])
    weights = kinds[tag]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, ValueError) as e:
        raise _not_had(f"torchvision/{weights}", e) from e
    images = weights.transforms()
    return dict(state), timm_name, _about(f"torchvision/{weights}", images.mean, images.std, images.crop_size[0])


def _about(weights: str, mean: Any, std: Any, size: int) -> dict[str, Any]:
    return {"weights": weights, "mean": list(mean), "std": list(std), "image_size": size}


def _unknown(library: str, what: str, name: str, known: list[str]) -> UserError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
    return UserError(f"{library} has no {what} '{name}'; near are {', '.join(near)}.")


def _not_had(name: str, error: Exception) -> UserError:
    why = (str(error).splitlines() or [type(error).__name__])[0][:160]
    return UserError(f"The weights {name} cannot be had ({why}): check the network, or give a file of weights.")

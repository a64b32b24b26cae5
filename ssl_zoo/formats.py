"""A trained backbone in the formats of other libraries, each with the lines of Python that load it there."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_zoo.errors import UserError, one_line
from ssl_zoo.export import save_backbone
from ssl_zoo.files import whole
from ssl_zoo.nn.torchvision_names import torchvision_twin

Net = Callable[[Tensor], Tensor]
Lines = Callable[[str], list[str]]  # of a folder: Python that makes `net`, which maps images [B, 3, S, S] to features [B, D]
LARGEST_ONNX = 1_900_000_000  # bytes of weights; above, ONNX keeps them in a file beside the graph


def safetensors(backbone: nn.Module, about: dict[str, Any], out: Path) -> Lines:
    """backbone.safetensors, as a run folder has it."""
    save_backbone(backbone, out / "backbone.safetensors", about)
    return lambda folder: ["import ssl_zoo", f"net = ssl_zoo.load({_path(folder, 'backbone.safetensors')}{_trust(about)})"]


def timm(backbone: nn.Module, about: dict[str, Any], out: Path) -> Lines:
    """model.safetensors under timm's names."""
    call = _timm_call(backbone, about)
    save_backbone(backbone, out / "model.safetensors", about)
    replaced = _replaced(backbone, {})
    if not replaced:
        return lambda folder: ["import timm", f"net = {call}, checkpoint_path={_path(folder, 'model.safetensors')}).eval()"]
    return lambda folder: [
        "import timm, torch",
        "from safetensors.torch import load_file",
        f"net = {call})",
        *replaced,
        f"net.load_state_dict(load_file({_path(folder, 'model.safetensors')}))",
        "net.eval()",
    ]


def torchvision(backbone: nn.Module, about: dict[str, Any], out: Path) -> Lines:
    """model.pth, a state dict under torchvision's names."""
    name = about["backbone"]["name"]
    twin = torchvision_twin(backbone, name, about["image_size"])
    if twin is None:
        raise UserError(f"torchvision has no network like timm's {name}: export format=timm, onnx or torch_export instead.")
    with whole(out / "model.pth") as f:
        torch.save({k: v.detach().cpu().contiguous().clone() for k, v in twin.state.items()}, f)
    replaced = _replaced(backbone, twin.renamed)
    return lambda folder: [
        "import torch, torchvision",
        f"net = {twin.call}",
        f"net.set_submodule({twin.head!r}, torch.nn.Identity())",
        *replaced,
        f"net.load_state_dict(torch.load({_path(folder, 'model.pth')}, weights_only=True), strict=True)",
        "net.eval()",
    ]


def onnx(backbone: nn.Module, about: dict[str, Any], out: Path) -> Lines:
    """model.onnx with a dynamic batch: input "images", output "features"."""
    example, batch = _example(about), {0: torch.export.Dim("batch")}
    size = sum(v.numel() * v.element_size() for v in backbone.state_dict().values())
    with _quiet(), _told("ONNX", about):
        torch.onnx.export(
            backbone,
            (example,),
            str(out / "model.onnx"),
            input_names=["images"],
            output_names=["features"],
            dynamo=True,
            dynamic_shapes=(batch,),
            external_data=size > LARGEST_ONNX,
            verbose=False,
        )
    return lambda folder: [
        "import onnxruntime, torch",
        f"session = onnxruntime.InferenceSession({_path(folder, 'model.onnx')}, providers=['CPUExecutionProvider'])",
        "net = lambda images: torch.from_numpy(session.run(['features'], {'images': images.numpy()})[0])",
    ]


def torch_export(backbone: nn.Module, about: dict[str, Any], out: Path) -> Lines:
    """model.pt2, the graph of torch.export with a dynamic batch."""
    with _quiet(), _told("torch.export", about):
        program = torch.export.export(backbone, (_example(about),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, out / "model.pt2")
    return lambda folder: ["import torch", f"net = torch.export.load({_path(folder, 'model.pt2')}).module()"]


def huggingface(backbone: Any, about: dict[str, Any], out: Path) -> Lines:
    """model.safetensors and a config.json, from which timm makes the network itself where it can; else ssl_zoo."""
    save_backbone(backbone, out / "model.safetensors", about)
    size, canvas = about["image_size"], about["canvas"]
    own = about["backbone"].get("_target_") == "ssl_zoo.nn.backbones.create" and not backbone.replaced
    config: dict[str, Any] = {
        "num_classes": 0,
        "num_features": about["num_features"],
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "interpolation": "bicubic",
            "crop_pct": size / canvas,
            "crop_mode": "center",
            "mean": about["mean"],
            "std": about["std"],
            "num_classes": 0,
            "custom_load": False,
        },
    }
    if own:
        config = {"architecture": about["backbone"]["name"], **config, "model_args": backbone.made_with}
    with whole(out / "config.json") as f:
        f.write((json.dumps(config, indent=2) + "\n").encode())
    if own:
        return lambda folder: ["import timm", f"net = timm.create_model({f'local-dir:{folder}'!r}, pretrained=True).eval()"]
    return lambda folder: ["import ssl_zoo", f"net = ssl_zoo.load({folder!r}{_trust(about)})"]


FORMATS: dict[str, Callable[[nn.Module, dict[str, Any], Path], Lines]] = {
    f.__name__: f for f in (safetensors, timm, torchvision, onnx, torch_export, huggingface)
}


def load_again(lines: list[str]) -> Net:
    """The network that these lines of Python make, which one of the functions above wrote: what is shown to people is what is tried."""
    names: dict[str, Any] = {}
    with _quiet():
        exec("\n".join(lines), names)
    return names["net"]


@torch.no_grad()
def difference(ours: nn.Module, theirs: Net, images: Tensor) -> tuple[float, float]:
    """The largest difference of features that two networks make of images [N, 3, S, S], given at once and one by one, and the largest
    feature. Not finite where features are not.
    """
    wanted = ours(images)
    found = [theirs(images), torch.cat([theirs(one) for one in images[:2].split(1)])]
    if any(f.shape[1:] != wanted.shape[1:] for f in found):
        raise UserError(f"The exported network gives features of shape {tuple(found[0].shape)} for {tuple(wanted.shape)}.")
    return max(float((f - wanted[: len(f)]).abs().max()) for f in found), float(wanted.abs().max())


def _timm_call(backbone: Any, about: dict[str, Any]) -> str:
    """The call of timm that makes this network, still open at its end."""
    options = "".join(f", {k}={v!r}" for k, v in backbone.made_with.items())
    return f"timm.create_model({about['backbone']['name']!r}, num_classes=0{options}"


def _replaced(backbone: Any, renamed: dict[str, str]) -> list[str]:
    """Lines that put the stem for small images in place of the model's own."""
    modules = {renamed.get(name, name): backbone.get_submodule(name) for name in getattr(backbone, "replaced", [])}
    return [f"net.set_submodule({name!r}, torch.nn.{module!r})" for name, module in modules.items()]


def _trust(about: dict[str, Any]) -> str:
    """The packages that a backbone of one's own comes from."""
    return f", trust={about['trust']!r}" if about["trust"] else ""


def _path(folder: str, file: str) -> str:
    return repr(str(Path(folder) / file))


def _example(about: dict[str, Any]) -> Tensor:
    """Two images: a batch of one would be taken for a constant."""
    return torch.zeros(2, 3, about["image_size"], about["image_size"])


@contextmanager
def _told(what: str, about: dict[str, Any]) -> Iterator[None]:
    """What a compiler says of a network that it cannot take, in one sentence."""
    try:
        yield
    except Exception as e:  # of many kinds, and no fault of ours
        if isinstance(e, OSError):
            raise
        reason = one_line(str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__)[:200]
        raise UserError(f"{what} cannot take this backbone ({reason}): export format=safetensors or timm instead.") from e


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters and timm log every step."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)

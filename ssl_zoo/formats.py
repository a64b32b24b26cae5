"""A trained backbone in the formats of other libraries, each with the lines of Python that load it there."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_zoo.errors import UserError, one_line
from ssl_zoo.export import save_backbone
from ssl_zoo.files import whole
from ssl_zoo.nn.torchvision_names import torchvision_twin

Net = Callable[[Tensor], Tensor]
LARGEST_ONNX = 1_900_000_000  # bytes of weights; above, ONNX keeps them in a file beside the graph


@dataclass(frozen=True)
class Written:
    """lines: of a folder, Python for people that makes `net`, which maps images [B, 3, S, S] to features [B, D]. load: of a folder, what
    these lines make; None where ssl_zoo itself loads it.
    """

    lines: Callable[[str], list[str]]
    load: Callable[[Path], Net] | None = None


def safetensors(backbone: nn.Module, about: dict[str, Any], out: Path) -> Written:
    """backbone.safetensors, as a run folder has it."""
    save_backbone(backbone, out / "backbone.safetensors", about)
    return Written(lambda folder: ["import ssl_zoo", f"net = ssl_zoo.load({_path(folder, 'backbone.safetensors')}{_trust(about)})"])


def timm(backbone: Any, about: dict[str, Any], out: Path) -> Written:
    """model.safetensors under timm's names."""
    from safetensors.torch import load_file
    from timm import create_model

    name, options, file = about["backbone"]["name"], {"num_classes": 0, **backbone.made_with}, "model.safetensors"
    save_backbone(backbone, out / file, about)
    call = f"net = timm.create_model({name!r}{_arguments(options)}"
    if not backbone.replaced:
        return Written(
            lambda folder: ["import timm", f"{call}, checkpoint_path={_path(folder, file)}).eval()"],
            lambda folder: create_model(name, checkpoint_path=str(folder / file), **options).eval(),
        )
    stem = _replaced(backbone, {})
    return Written(
        lambda folder: [
            "import timm, torch",
            "from safetensors.torch import load_file",
            f"{call})",
            *_lines_of(stem),
            f"net.load_state_dict(load_file({_path(folder, file)}))",
            "net.eval()",
        ],
        lambda folder: _filled(create_model(name, **options), stem, load_file(folder / file)),
    )


def torchvision(backbone: nn.Module, about: dict[str, Any], out: Path) -> Written:
    """model.pth, a state dict under torchvision's names."""
    from torchvision import models

    name, file = about["backbone"]["name"], "model.pth"
    twin = torchvision_twin(backbone, name, about["image_size"])
    if twin is None:
        raise UserError(f"torchvision has no network like timm's {name}: export format=timm, onnx or torch_export instead.")
    with whole(out / file) as f:
        torch.save({k: v.detach().cpu().contiguous().clone() for k, v in twin.state.items()}, f)
    stem = {twin.head: nn.Identity(), **_replaced(backbone, twin.renamed)}
    return Written(
        lambda folder: [
            "import torch, torchvision",
            f"net = torchvision.models.{twin.make}({_arguments(twin.options)[2:]})",
            *_lines_of(stem),
            f"net.load_state_dict(torch.load({_path(folder, file)}, weights_only=True), strict=True)",
            "net.eval()",
        ],
        lambda folder: _filled(getattr(models, twin.make)(**twin.options), stem, torch.load(folder / file, weights_only=True)),
    )


def onnx(backbone: nn.Module, about: dict[str, Any], out: Path) -> Written:
    """model.onnx with a dynamic batch: input "images", output "features"."""
    batch, file = {0: torch.export.Dim("batch")}, "model.onnx"
    size = sum(v.numel() * v.element_size() for v in backbone.state_dict().values())
    with quiet(), _told("ONNX"):
        torch.onnx.export(
            backbone,
            (_example(about),),
            str(out / file),
            input_names=["images"],
            output_names=["features"],
            dynamo=True,
            dynamic_shapes=(batch,),
            external_data=size > LARGEST_ONNX,
            verbose=False,
        )
    return Written(
        lambda folder: [
            "import onnxruntime, torch",
            f"session = onnxruntime.InferenceSession({_path(folder, file)}, providers=['CPUExecutionProvider'])",
            "net = lambda images: torch.from_numpy(session.run(['features'], {'images': images.numpy()})[0])",
        ],
        lambda folder: _session(folder / file),
    )


def torch_export(backbone: nn.Module, about: dict[str, Any], out: Path) -> Written:
    """model.pt2, the graph of torch.export with a dynamic batch."""
    file = "model.pt2"
    with quiet(), _told("torch.export"):
        program = torch.export.export(backbone, (_example(about),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, out / file)
    return Written(
        lambda folder: ["import torch", f"net = torch.export.load({_path(folder, file)}).module()"],
        lambda folder: torch.export.load(folder / file).module(),
    )


def huggingface(backbone: Any, about: dict[str, Any], out: Path) -> Written:
    """model.safetensors and a config.json, from which timm makes the network itself where it can; else ssl_zoo."""
    from timm import create_model

    save_backbone(backbone, out / "model.safetensors", about)
    size = about["image_size"]
    config: dict[str, Any] = {
        "num_classes": 0,
        "num_features": about["num_features"],
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "interpolation": "bicubic",
            "crop_pct": size / about["canvas"],
            "crop_mode": "center",
            "mean": about["mean"],
            "std": about["std"],
            "num_classes": 0,
            "custom_load": False,
        },
    }
    of_timm = about["backbone"].get("_target_") == "ssl_zoo.nn.backbones.create" and not backbone.replaced
    if of_timm:
        config = {"architecture": about["backbone"]["name"], **config, "model_args": backbone.made_with}
    with whole(out / "config.json") as f:
        f.write((json.dumps(config, indent=2) + "\n").encode())
    if not of_timm:
        return Written(lambda folder: ["import ssl_zoo", f"net = ssl_zoo.load({folder!r}{_trust(about)})"])
    return Written(
        lambda folder: ["import timm", f"net = timm.create_model({f'local-dir:{folder}'!r}, pretrained=True).eval()"],
        lambda folder: create_model(f"local-dir:{folder}", pretrained=True).eval(),
    )


def from_hub(written: Written, repo: str) -> list[str]:
    """The lines that load what was pushed to `repo` of the Hugging Face Hub."""
    folder = repo.rpartition("/")[2]
    lines = written.lines(folder)
    if lines[0] == "import timm":
        return [line.replace(f"local-dir:{folder}", f"hf-hub:{repo}") for line in lines]
    return [f"# hf download {repo} --local-dir {folder}", *lines]


FORMATS: dict[str, Callable[[nn.Module, dict[str, Any], Path], Written]] = {
    f.__name__: f for f in (safetensors, timm, torchvision, onnx, torch_export, huggingface)
}


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


def _arguments(options: dict[str, Any]) -> str:
    """Options as further arguments of a call."""
    return "".join(f", {k}={v!r}" for k, v in options.items())


def _replaced(backbone: nn.Module, renamed: dict[str, str]) -> dict[str, nn.Module]:
    """The stem for small images that took the place of the model's own, by the names that its modules have elsewhere."""
    names: list[str] = getattr(backbone, "replaced", [])  # type: ignore[assignment]
    return {renamed.get(name, name): backbone.get_submodule(name) for name in names}


def _lines_of(modules: dict[str, nn.Module]) -> list[str]:
    return [f"net.set_submodule({name!r}, torch.nn.{module!r})" for name, module in modules.items()]


def _filled(net: nn.Module, modules: dict[str, nn.Module], state: dict[str, Tensor]) -> nn.Module:
    """A network with some modules replaced, and weights."""
    for name, module in modules.items():
        net.set_submodule(name, copy.deepcopy(module))
    net.load_state_dict(state, strict=True)
    return net.eval()


def _session(file: Path) -> Net:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])


def _trust(about: dict[str, Any]) -> str:
    """The packages that a backbone of one's own comes from."""
    return f", trust={about['trust']!r}" if about["trust"] else ""


def _path(folder: str, file: str) -> str:
    return repr(str(Path(folder) / file))


def _example(about: dict[str, Any]) -> Tensor:
    """Two images: a batch of one would be taken for a constant."""
    return torch.zeros(2, 3, about["image_size"], about["image_size"])


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What a compiler says of a network that it cannot take, in one sentence."""
    try:
        yield
    except Exception as e:  # of many kinds, and no fault of ours
        if isinstance(e, OSError):
            raise
        reason = one_line(str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__)[:200]
        raise UserError(f"{what} cannot take this backbone ({reason}): export format=safetensors or timm instead.") from e


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters and timm log every step."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)

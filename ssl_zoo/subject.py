"""Which backbone is judged: that of a run folder, or weights from elsewhere."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from ssl_zoo.build import Data
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.features import Subject
from ssl_zoo.export import header, load_backbone
from ssl_zoo.instance import build
from ssl_zoo.loading import backbone_of
from ssl_zoo.nn.backbones import create, try_size
from ssl_zoo.nn.named_weights import named_weights
from ssl_zoo.nn.weights import load_weights

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Judged(Subject):
    """about: what a result says of where the weights come from. notes: how they were loaded, for the terminal."""

    about: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def of_run(run: Path, trained: DictConfig, data: Data, net: str, image_size: int | None, device: torch.device) -> Judged:
    """The backbone of a finished run; the student or the teacher of its last checkpoint where `net` says so."""
    known = header(run / "backbone.safetensors")
    size = known.get("image_size") or data.train.image_size
    if trained.backbone.get("pretrained"):
        trained.backbone.pretrained = False  # nothing is downloaded for weights that are replaced at once
    backbone = build(trained, "backbone", image_size=size)  # whose stem and patches are for the size that it was trained with
    notes: tuple[str, ...] = ()
    epochs = known.get("epochs", trained.epochs)  # a run that goes on has weights of fewer epochs than its config says
    if net == "auto":
        load_backbone(backbone, run / "backbone.safetensors")
    else:
        file = run / "checkpoints" / "last.ckpt"
        notes, epochs = tuple(load_weights(backbone, file, net).lines()), epochs_of(file)
    mean, std = tuple(known.get("mean") or data.mean), tuple(known.get("std") or data.std)
    if image_size:
        size = image_size
        try_size(backbone, "This run's backbone", size, "choose another image_size")
    return Judged(backbone.to(device), size, mean, std, {"source": str(run), "net": net, "epochs": epochs}, notes)


def epochs_of(checkpoint: Path) -> int:
    """Whole epochs that a checkpoint of ssl_zoo has behind it."""
    loops = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["loops"]
    return int(loops["fit_loop"]["epoch_progress"]["current"]["processed"])


def of_weights(config: DictConfig, data: Data, device: torch.device, like: Subject | None = None) -> Judged:
    """Weights from elsewhere: timm/<model>, torchvision/<model>, a backbone.safetensors of ssl_zoo, or a file of another project. Images
    are normalised as the weights say, else as for `like`, else by ImageNet's mean and deviation (CLIP's for
    checkpoints of open_clip).
    """
    named = config.weights.startswith(("timm/", "torchvision/"))
    state: Any = Path(config.weights)
    known = {} if named else header(state)
    whole = bool(known)
    if not known and not named and state.parent.name == "checkpoints":  # what the run says of its other weights
        known = header(state.with_name("backbone.safetensors")) or header(state.parent.parent / "backbone.safetensors")
    name, (mean, std), size = None, (like.mean, like.std) if like else IMAGENET, None
    if named:
        state, name, about = named_weights(config.weights)
        mean, std, size = about["mean"], about["std"], about["image_size"]
    mean, std = tuple(known.get("mean") or mean), tuple(known.get("std") or std)
    size = config.image_size or known.get("image_size") or size or data.train.image_size
    if whole and config.net != "auto":
        raise UserError(f"weights={config.weights} hold one network, so there is no net={config.net} to choose: leave net=auto.")
    if "backbone" in config:
        backbone = build(config, "backbone", image_size=size)
    elif whole and known.get("backbone"):  # our own file, which says what it is of
        backbone = backbone_of(state, known, known.get("image_size") or size, config.trust).to(device)
        try_size(backbone, "This backbone", size, "choose another image_size")
        return Judged(backbone, size, mean, std, {"source": config.weights, "net": config.net, "epochs": known.get("epochs")})
    elif name:
        backbone = create(name, image_size=size, stem="model", patch_size=None)
    else:
        raise UserError(f"weights={config.weights} do not say what they are of: add backbone=... (ssl-zoo list backbones).")
    report = load_weights(backbone, state, config.net)
    if report.layout.startswith("open_clip") and "mean" not in known and like is None:
        mean, std = CLIP  # open_clip's own, unless a model says otherwise
    told = (*report.lines(), f"images   {size} px, normalised by mean {_three(mean)} and deviation {_three(std)}")
    return Judged(backbone.to(device), size, mean, std, {"source": config.weights, "net": config.net, "epochs": None}, told)


def _three(values: tuple[float, ...]) -> str:
    return ", ".join(f"{v:.3f}" for v in values)

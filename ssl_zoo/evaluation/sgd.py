"""The papers' linear classification: a linear layer trained by SGD on augmented images through the frozen backbone."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_zoo.augment.fused_engine import FusedEngine
from ssl_zoo.augment.spec import View
from ssl_zoo.data.images import Images
from ssl_zoo.data.loader import Loader
from ssl_zoo.distributed import fold_seed
from ssl_zoo.evaluation.features import dtype_of, extract
from ssl_zoo.evaluation.knn import accuracy
from ssl_zoo.nn.taps import Tap, pick, tokens
from ssl_zoo.optim.lars import LARS
from ssl_zoo.optim.schedules import cosine


@dataclass(frozen=True)
class Subject:
    """What is judged, and how its images are prepared: size in pixels that it takes, mean and std on [0, 1]."""

    backbone: nn.Module
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass
class Trained:
    """scores [M, C] of the test images after the last epoch, top-1 on them in per cent after each, and what was chosen."""

    scores: Tensor
    history: list[float]
    chosen: dict[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """Final and best epoch, both named: the best is chosen on the test images, and so optimistic."""
        best = max(range(len(self.history)), key=lambda e: self.history[e])
        final = {"epoch": len(self.history), "top1": self.history[-1]}
        return {"final": final, "best": {"epoch": best + 1, "top1": self.history[best]}, **self.chosen}


def crop_and_flip(size: int, interpolation: str = "bilinear") -> View:
    """Random resized crop of 8 to 100 % of the image and flip: the augmentation of every linear protocol here."""
    off: dict[str, Any] = dict.fromkeys(("jitter_p", "brightness", "contrast", "saturation", "hue", "gray", "blur_p", "solarize_p"), 0.0)
    crop: dict[str, Any] = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "interpolation": interpolation, "antialias": True, "flip": 0.5}
    return View(size=size, **crop, **off, blur_kernel=3, blur_sigma=(0.1, 2.0), solarize_threshold=0.5)


def rate(options: dict[str, Any], step: int, per_epoch: int) -> float:
    """The factor of the learning rate at a step: "cosine" falls at every step, "cosine_epoch" at every epoch, "steps" by ten at each of
    `milestones` (shares of training).
    """
    total = options["epochs"] * per_epoch
    if options["schedule"] == "cosine":
        return cosine(step / total, 1.0, 0.0)
    epoch = step // per_epoch
    if options["schedule"] == "cosine_epoch":
        return cosine(epoch / options["epochs"], 1.0, 0.0)
    return 0.1 ** sum(epoch >= m * options["epochs"] for m in options["milestones"])


def linear_sgd(
    subject: Subject, taps: list[Tap], train: Images, test: Images, options: dict[str, Any], seed: int, device: torch.device
) -> Trained:
    """Train a linear layer for every tap and learning rate of conf/protocol/linear_*, all at once on the same views.

    train, test: labelled images. Where there is more than one layer, a tenth of train is held out of training and the layer that does
    best on it after the last epoch is the one that is reported; what would be best on test is named so.
    """
    rates = options["base_lr"] if isinstance(options["base_lr"], list) else [options["base_lr"]]
    grid = [(tap, lr) for tap in taps for lr in rates]
    held = None
    if len(grid) > 1:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(fold_seed("held", seed)))
        cut = max(1, len(train) // 10)
        train, held = train.take(order[cut:].sort().values), train.take(order[:cut].sort().values)
    batch = min(options["batch_size"], len(train))
    scale = batch / 256 if options["scale_lr"] else 1.0
    judged = {tap: _features(subject, tap, test, device) for tap in taps}
    heads = _heads(grid, {tap: f.shape[1] for tap, f in judged.items()}, train.num_classes, seed, device)
    optimizer = _optimizer(heads, [scale * lr for _, lr in grid], options)
    labels = test.labels.to(device)  # type: ignore[union-attr]
    loader = Loader(train, batch, seed, device)
    augment = FusedEngine([crop_and_flip(subject.image_size)], subject.mean, subject.std)
    histories: list[list[float]] = []
    for epoch in range(options["epochs"]):
        loader.set_epoch(epoch)
        for b, images in enumerate(loader):
            step = epoch * len(loader) + b
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(options, step, len(loader))
            (x,) = augment(images["image"], fold_seed("linear", seed, step))
            seen = _seen(taps, x, device)
            losses = [F.cross_entropy(head(seen[tap]), images["label"]) for head, (tap, _) in zip(heads, grid, strict=True)]
            optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()
            optimizer.step()
        histories.append([_top1(head, judged[tap], labels) for head, (tap, _) in zip(heads, grid, strict=True)])
    final = histories[-1]
    if held is None:
        best, on_held = 0, None
    else:
        known = {tap: _features(subject, tap, held, device) for tap in taps}
        found = [_top1(head, known[tap], held.labels.to(device)) for head, (tap, _) in zip(heads, grid, strict=True)]  # type: ignore[union-attr]
        best = max(range(len(grid)), key=lambda i: found[i])
        on_held = found[best]
    tap, lr = grid[best]
    chosen = {"lr": scale * lr, "batch": batch}
    if held is not None:
        chosen |= {"blocks": tap.blocks, "pool": tap.pool, "held_out_top1": on_held, "best_of_grid_on_test": max(final)}
    with torch.no_grad():
        scores = heads[best](judged[tap])
    return Trained(scores.cpu(), [h[best] for h in histories], chosen)


def _features(subject: Subject, tap: Tap, images: Images, device: torch.device) -> Tensor:
    return extract(tap, images.pixels, images.image_size, subject.mean, subject.std, device, resize=subject.image_size)


@torch.no_grad()
def _seen(taps: list[Tap], x: Tensor, device: torch.device) -> dict[Tap, Tensor]:
    """Features of a batch of views for every tap; on a GPU in bf16."""
    dtype = dtype_of(taps[0])
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        if len(taps) > 1 and all(tap.of_tokens for tap in taps):  # one forward for all
            found = tokens(taps[0].backbone, x.to(dtype), max(tap.blocks for tap in taps))
            return {tap: pick(found, tap.blocks, tap.pool).float() for tap in taps}
        return {tap: tap(x.to(dtype)).float() for tap in taps}


def _heads(grid: list[tuple[Tap, float]], dims: dict[Tap, int], classes: int, seed: int, device: torch.device) -> list[nn.Linear]:
    """Weights from N(0, 0.01), biases 0."""
    generator = torch.Generator().manual_seed(fold_seed("head", seed))
    heads = []
    for tap, _ in grid:
        head = nn.Linear(dims[tap], classes)
        nn.init.normal_(head.weight, std=0.01, generator=generator)
        nn.init.zeros_(head.bias)
        heads.append(head.to(device))
    return heads


def _optimizer(heads: list[nn.Linear], rates: list[float], options: dict[str, Any]) -> torch.optim.Optimizer:
    groups = [{"params": list(head.parameters()), "lr": lr, "peak": lr} for head, lr in zip(heads, rates, strict=True)]
    decay = {"momentum": options["momentum"], "weight_decay": options["weight_decay"]}
    if options["optimizer"] == "lars":
        return LARS(groups, lr=0.0, **decay)
    return torch.optim.SGD(groups, lr=0.0, nesterov=options["nesterov"], **decay)


@torch.no_grad()
def _top1(head: nn.Module, features: Tensor, labels: Tensor) -> float:
    return accuracy(head(features), labels)

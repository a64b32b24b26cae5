"""The papers' linear classification: a linear layer trained by SGD on augmented images through the frozen backbone."""

from collections.abc import Callable
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
from ssl_zoo.evaluation.features import Subject, dtype_of, features_of
from ssl_zoo.evaluation.knn import accuracy
from ssl_zoo.nn.taps import Tap, pick, tokens
from ssl_zoo.optim.lars import LARS
from ssl_zoo.optim.schedules import cosine


@dataclass
class Trained:
    """scores [M, C] of the test images that can be read after the last epoch, their labels [M], top-1 on them in per cent after each
    epoch, and what was chosen.
    """

    scores: Tensor
    labels: Tensor
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
    subject: Subject,
    taps: list[Tap],
    train: Images,
    test: Images,
    options: dict[str, Any],
    seed: int,
    device: torch.device,
    chunk: int = 512,
    said: Callable[[int, int, float], None] = lambda epoch, epochs, top1: None,
) -> Trained:
    """Train a linear layer for every tap and learning rate of conf/protocol/linear_*, all at once on the same views.

    train, test: labelled images. Where there is more than one layer, a tenth of train is held out of training and the layer that does
    best on it after the last epoch is the one that is reported; what would be best on test is named so. chunk: images per forward.
    said: is told the epoch, of how many, and top-1 after it.
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
    judged, labels = _judged(subject, taps, test, device, chunk)
    heads = _heads(grid, {tap: f.shape[1] for tap, f in judged.items()}, train.num_classes, seed, device)
    optimizer = _optimizer(heads, [scale * lr for _, lr in grid], options)
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
            seen = _seen(taps, x, device, chunk)
            losses = [F.cross_entropy(head(seen[tap]), images["label"]) for head, (tap, _) in zip(heads, grid, strict=True)]
            optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()
            optimizer.step()
        histories.append([_top1(head, judged[tap], labels) for head, (tap, _) in zip(heads, grid, strict=True)])
        said(epoch + 1, options["epochs"], max(histories[-1]))
    final = histories[-1]
    if held is None:
        best, on_held = 0, None
    else:
        known, held_labels = _judged(subject, taps, held, device, chunk)
        found = [_top1(head, known[tap], held_labels) for head, (tap, _) in zip(heads, grid, strict=True)]
        best = max(range(len(grid)), key=lambda i: found[i])
        on_held = found[best]
    tap, lr = grid[best]
    chosen = {"lr": scale * lr, "batch": batch, "tap": {"layer": tap.layer, "blocks": tap.blocks, "pool": tap.pool}}
    if held is not None:
        chosen |= {"held_out_top1": on_held, "best_of_grid_on_test": max(final)}
    with torch.no_grad():
        scores = heads[best](judged[tap])
    return Trained(scores.cpu(), labels.cpu(), [h[best] for h in histories], chosen)


def _judged(subject: Subject, taps: list[Tap], images: Images, device: torch.device, chunk: int) -> tuple[dict[Tap, Tensor], Tensor]:
    """Features of un-augmented images for every tap, and their labels; without images that turned out to be unreadable."""
    found = {tap: features_of(subject, tap, images, device, chunk) for tap in taps}
    rows = images.labelled.to(device)
    return {tap: x[rows] for tap, x in found.items()}, images.labels.to(device)[rows]  # type: ignore[union-attr]


@torch.no_grad()
def _seen(taps: list[Tap], x: Tensor, device: torch.device, chunk: int) -> dict[Tap, Tensor]:
    """Features of a batch of views for every tap, `chunk` at a time; on a GPU in bf16."""
    if len(x) > chunk:
        parts = [_seen(taps, part, device, chunk) for part in x.split(chunk)]
        return {tap: torch.cat([p[tap] for p in parts]) for tap in taps}
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

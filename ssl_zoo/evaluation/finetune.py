"""Training all of the backbone with labels, from the weights that pretraining gave."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from ssl_zoo.augment.fused_engine import FusedEngine
from ssl_zoo.data.images import Images
from ssl_zoo.data.loader import Loader
from ssl_zoo.distributed import fold_seed
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.amounts import amount
from ssl_zoo.evaluation.features import Subject, extract
from ssl_zoo.evaluation.few_shot import draw
from ssl_zoo.evaluation.knn import accuracy
from ssl_zoo.evaluation.sgd import Trained, crop_and_flip
from ssl_zoo.nn.vit import is_vit
from ssl_zoo.optim.schedules import warmup_cosine


class Classifier(nn.Module):
    """images [B, 3, H, W] -> logits [B, C]: a backbone and a linear layer whose weights start at N(0, 0.01)."""

    def __init__(self, backbone: nn.Module, width: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(width, classes)
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def finetune(
    subject: Subject,
    train: Images,
    test: Images,
    options: dict[str, Any],
    seed: int,
    device: torch.device,
    chunk: int = 512,
    said: Callable[[int, int, float], None] = lambda epoch, epochs, top1: None,
) -> Trained:
    """Train a copy of the backbone and a linear layer on the labelled images, by AdamW with a cosine schedule; conf/protocol/finetune.yaml.

    Learning rates fall by `layer_decay` from layer to layer towards the input (Clark et al. 2020; BEiT); mixup and cutmix are timm's.
    `labels` takes so many per class or a share of each class, as in few_shot. Warm-up takes half of training at most. The given backbone
    is left as it was. chunk: test images per forward. said: is told the epoch, of how many, and top-1 after it.
    """
    if options["labels"] is not None:
        train = train.take(draw(train.labels, amount(options["labels"])[1], fold_seed("finetune", seed)))  # type: ignore[arg-type]
    backbone = copy.deepcopy(subject.backbone).requires_grad_(True)
    if len(train) < 2:
        raise UserError("finetune mixes pairs of images, but there is 1 with a label: give protocol.labels more.")
    batch = min(options["batch_size"], len(train)) // 2 * 2  # timm mixes pairs
    generator = torch.Generator().manual_seed(fold_seed("head", seed))
    net = Classifier(backbone, int(backbone.num_features), train.num_classes, generator).to(device)  # type: ignore[arg-type]
    lr = options["base_lr"] * batch / 256
    optimizer = torch.optim.AdamW(_groups(net, lr, options), lr=lr, betas=(0.9, 0.999))
    mixup = _mixup(options, train.num_classes, seed)
    loss_of = SoftTargetCrossEntropy() if mixup else nn.CrossEntropyLoss(label_smoothing=options["label_smoothing"])
    loader = Loader(train, batch, seed, device)
    total = options["epochs"] * len(loader)
    warmup = min(round(options["warmup_epochs"] * len(loader)), total // 2)
    augment = FusedEngine([crop_and_flip(subject.image_size, "bicubic")], subject.mean, subject.std)
    history, scores, labels = [], torch.empty(0), torch.empty(0)
    for epoch in range(options["epochs"]):
        loader.set_epoch(epoch)
        net.train()
        for b, images in enumerate(loader):
            step = epoch * len(loader) + b
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"] * warmup_cosine(step, total, warmup)
            torch.manual_seed(fold_seed("finetune", seed, step))  # of drop path, if any
            (x,), y = augment(images["image"], fold_seed("finetune views", seed, step)), images["label"]
            if mixup:
                x, y = mixup(x.contiguous(), y)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = net(x)
            loss = loss_of(logits.float(), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        scores = extract(net, test.pixels, test.image_size, subject.mean, subject.std, device, chunk, subject.image_size)
        rows = test.labelled  # without images that turned out to be unreadable
        scores, labels = scores[rows.to(device)].cpu(), test.labels[rows]  # type: ignore[index]
        history.append(accuracy(scores, labels))
        said(epoch + 1, options["epochs"], history[-1])
    return Trained(scores, labels, history, {"lr": lr, "batch": batch, "train_images": len(train)})


def _groups(net: Classifier, lr: float, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Parameter groups with `lr_scale`: layer decay for the backbone (in transformers unless a number is given), 1 for the head."""
    decay = options["layer_decay"]
    decay = (0.75 if is_vit(net.backbone) else 1.0) if decay == "auto" else decay
    listed = getattr(net.backbone, "no_weight_decay", set)
    spared = tuple(listed()) if callable(listed) else ()
    groups = param_groups_layer_decay(net.backbone, options["weight_decay"], spared, layer_decay=decay)
    for group in groups:
        group["lr_scale"] = group.get("lr_scale", 1.0) * options["backbone_lr"]
    return [
        *groups,
        {"params": [net.head.weight], "weight_decay": options["weight_decay"], "lr_scale": 1.0},
        {"params": [net.head.bias], "weight_decay": 0.0, "lr_scale": 1.0},
    ]


class _mixup:
    """timm's mixup and cutmix with random numbers of its own; false where neither is asked for."""

    def __init__(self, options: dict[str, Any], classes: int, seed: int) -> None:
        self.wanted = bool(options["mixup"] or options["cutmix"])
        self.mix = Mixup(options["mixup"], options["cutmix"], label_smoothing=options["label_smoothing"], num_classes=classes)
        self.state = np.random.RandomState(fold_seed("mixup", seed) % 2**32).get_state()

    def __bool__(self) -> bool:
        return self.wanted

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outside = np.random.get_state()  # timm draws from numpy's global generator
        np.random.set_state(self.state)
        try:
            return self.mix(x, y)
        finally:
            self.state = np.random.get_state()
            np.random.set_state(outside)

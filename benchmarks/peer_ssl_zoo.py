"""The contestant ssl_zoo: `ssl-zoo method=simclr dataset=cifar10 ...` itself, halted between steps. Started by peers.py."""

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from peer_line import BASE_LR, MOMENTUM, PROJ_DIM, TEMPERATURE, WARMUP, WEIGHT_DECAY, Line, parameters
from torch import Tensor, nn

import ssl_zoo.train
from ssl_zoo.build import build_trainer
from ssl_zoo.config import compose

WIDTHS = {"resnet18": 512, "tiny": 256}


class AtHand(nn.Module):
    """In place of the augmentation: the same views at every step."""

    def __init__(self, views: list[Tensor]) -> None:
        super().__init__()
        self.views = views

    def forward(self, *_: Any) -> list[Tensor]:
        return self.views


class Gate(Callback):
    """Waits for the next line after the last step of a round; a step is timed from here to here, with everything between."""

    def __init__(self, line: Line) -> None:
        self.line, self.rounds, self.left, self.start = line, line.rounds(), WARMUP, 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.augment = module.augment

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.left -= 1
        if self.left:
            return
        if self.start:
            self.line.answer(self.line.now() - self.start)
        else:
            self.at_hand = AtHand(batch["views"])
            self.line.ready(["ssl-zoo", "lightning"], backbone=parameters(module.backbone), head=parameters(module.projector))
        found = next(self.rounds, None)
        if found is None:
            raise SystemExit
        kind, self.left = found
        module.augment = self.at_hand if kind == "still" else self.augment
        self.start = self.line.now()


def main() -> None:
    line = Line()
    s = line.settings
    words = [
        f"backbone={s.backbone}",
        "dataset=cifar10",
        "recipe=none",
        f"dataset.path={s.data}",
        f"data.cache={s.out}/cache",
        f"trainer={'auto' if s.device == 'cuda' else 'cpu'}",
        f"batch_size={s.batch}",
        f"method.hidden_dim={WIDTHS[s.backbone]}",
        f"method.proj_dim={PROJ_DIM}",
        f"method.temperature={TEMPERATURE}",
        "optimizer=sgd",
        f"optimizer.base_lr={BASE_LR}",
        f"optimizer.weight_decay={WEIGHT_DECAY}",
        f"optimizer.momentum={MOMENTUM}",
        "evaluation.baselines=false",
        "evaluation.every_n_epochs=1000",
        f"out={s.out}/runs",
    ]
    gate = Gate(line)
    ssl_zoo.train.build_trainer = lambda config, run, callbacks: build_trainer(config, run, [*callbacks, gate])
    ssl_zoo.train.pretrain(compose("train", words), "peers", words)


if __name__ == "__main__":
    main()

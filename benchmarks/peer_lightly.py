"""The contestant lightly: its transform, head and loss in a plain loop over torch's DataLoader. Started by peers.py."""

from collections.abc import Iterator

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from peer_line import BASE_LR, MOMENTUM, PROJ_DIM, TEMPERATURE, WARMUP, WEIGHT_DECAY, Line, parameters
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from ssl_zoo.nn.backbones import create, tiny  # the backbone alone, so that it is the same


class Views(Dataset):
    """Two views of each image of uint8 [N, H, W, 3], which lie in memory as Pillow's."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.images = [Image.fromarray(p) for p in pixels]
        self.transform = SimCLRTransform(input_size=pixels.shape[1], cj_strength=0.5, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[Tensor]:
        return self.transform(self.images[i])


class Batches(Sampler[list[int]]):
    """`count` batches of image numbers, shuffled: an epoch as long as the next round."""

    def __init__(self, total: int, batch: int) -> None:
        self.total, self.batch, self.count = total, batch, WARMUP

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.total // self.batch
        for number in range(self.count):
            place = number % per_epoch
            if not place:
                order = torch.randperm(self.total)
            yield order[place * self.batch : (place + 1) * self.batch].tolist()


class Training:
    def __init__(self, line: Line) -> None:
        s = line.settings
        self.device, dataset = torch.device(s.device), Views(np.load(s.images))
        self.batches = Batches(len(dataset), s.batch)
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.batches,
            num_workers=s.workers,
            persistent_workers=s.workers > 0,
            pin_memory=s.device == "cuda",
        )
        self.backbone = tiny() if s.backbone == "tiny" else create(s.backbone, image_size=dataset.images[0].width)
        width = self.backbone.num_features
        self.head = SimCLRProjectionHead(width, width, PROJ_DIM)
        self.model = nn.Sequential(self.backbone, self.head).to(self.device)
        self.criterion = NTXentLoss(temperature=TEMPERATURE)
        rate = BASE_LR * s.batch / 256
        self.optimizer = torch.optim.SGD(self.model.parameters(), rate, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)

    def step(self, views: list[Tensor]) -> None:
        first, second = (v.to(self.device, non_blocking=True) for v in views)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.criterion(self.model(first), self.model(second))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def epoch(self, steps: int) -> None:
        self.batches.count = steps
        for views in self.loader:
            self.step(views)


def main() -> None:
    line = Line()
    training = Training(line)
    training.epoch(WARMUP)
    training.batches.count = 1
    at_hand = [v.to(training.device) for v in next(iter(training.loader))]
    line.ready(["lightly"], backbone=parameters(training.backbone), head=parameters(training.head), workers=line.settings.workers)
    for kind, steps in line.rounds():
        start = line.now()
        if kind == "still":
            for _ in range(steps):
                training.step(at_hand)
        else:
            training.epoch(steps)
        line.answer(line.now() - start)


if __name__ == "__main__":
    main()

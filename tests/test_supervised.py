"""The upper anchor: cross-entropy on labels, and what it says of data without them."""

from dataclasses import replace

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_zoo.build import build_data, build_method
from ssl_zoo.config import compose
from ssl_zoo.data.shapes import Shapes
from ssl_zoo.errors import UserError
from ssl_zoo.methods.supervised import Supervised, cross_entropy

SMALL = ["method=supervised", "dataset.train_size=40", "dataset.test_size=8", "batch_size=8", "trainer.accelerator=cpu"]


def test_supervised_loss_is_the_mean_over_labelled_images():
    logits = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([2, -1, 0, 1, -1])
    loss = cross_entropy(logits, labels)
    (grad,) = torch.autograd.grad(loss, logits)
    by_hand = -sum(float(logits[v, i].log_softmax(0)[labels[i]]) for v in range(2) for i in (0, 2, 3)) / 6
    assert float(loss) == pytest.approx(by_hand, abs=1e-12)
    assert not grad[:, [1, 4]].any()
    other = F.cross_entropy(logits.flatten(0, 1), labels.repeat(2), ignore_index=-1)
    assert torch.allclose(grad, torch.autograd.grad(other, logits)[0], atol=1e-12)


def test_supervised_loss_of_a_batch_without_labels_is_zero():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((3,), -1))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_features_learn_what_the_labels_say():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    backbone.num_features = 4
    method = Supervised(backbone, num_classes=2)
    batch = {"label": torch.arange(64) % 2}
    views = [2.0 * batch["label"].view(-1, 1, 1, 1) - 1 + 0.5 * torch.randn(64, 3, 4, 4) for _ in range(2)]
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        out = method.step(views, batch)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(float(out["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert (out["features"].shape, out["z"].shape) == ((64, 4), (64, 2))


def test_the_number_of_classes_is_that_of_the_data():
    config = compose("train", SMALL)
    data = build_data(config)
    assert build_method(config, data).classifier.out_features == 10
    config.method.num_classes = 12
    assert build_method(config, data).classifier.out_features == 12
    config.method.num_classes = 9
    with pytest.raises(UserError, match=r"method.num_classes=9 is less than the 10 classes"):
        build_method(config, data)


def test_data_without_labels_are_refused():
    config = compose("train", SMALL)
    data = build_data(config)
    for labels, answer in ((None, "have none"), (torch.zeros(40, dtype=torch.long), "have 1 class")):
        few = replace(data.train, labels=labels, classes=None)
        with pytest.raises(UserError, match=f"This method learns from labels .*{answer}"):
            build_method(config, replace(data, train=few))


def test_only_labelled_images_are_trained_on(monkeypatch):
    """A subset is one of these."""
    load = Shapes.load

    def quarter(self, split):
        images = load(self, split)
        return replace(images, labels=torch.where(torch.arange(len(images)) % 4 == 0, images.labels, -1))

    monkeypatch.setattr(Shapes, "load", quarter)
    others = [w for w in SMALL if "method" not in w]
    for words, count in ((SMALL, 10), ([*SMALL, "data.subset=6"], 6), (others, 40), ([*others, "data.subset=6"], 6)):
        train = build_data(compose("train", words)).train
        assert len(train) == count
        assert bool((train.labels >= 0).all()) is (words[: len(SMALL)] == SMALL)


def test_it_starts_from_the_backbone_that_the_others_start_from():
    """So that one untrained baseline is that of every method of a seed."""

    def drawn(method):
        config = compose("train", [*SMALL, f"method={method}", "recipe=none"])
        L.seed_everything(1, verbose=False)
        return build_method(config, build_data(config)).evaluated.state_dict()

    first = drawn("supervised")
    for method in ("simclr", "moco", "moco_v3", "byol", "simsiam", "dino", "barlow_twins", "vicreg"):
        for key, value in drawn(method).items():
            assert torch.equal(value, first[key]), (method, key)

"""Both engines against torchvision on PIL images: same meaning, same statistics."""

from dataclasses import replace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torchvision.transforms import v2

from ssl_zoo.augment.fused_engine import FusedEngine
from ssl_zoo.augment.kornia_engine import KorniaEngine
from ssl_zoo.augment.spec import pick, resolve, resolve_all, resolve_early
from ssl_zoo.build import build_augment, build_data, build_method
from ssl_zoo.config import compose, conf_dir, plain
from ssl_zoo.data.loader import Loader
from ssl_zoo.data.shapes import Shapes
from ssl_zoo.errors import UserError

VIEW = yaml.safe_load((conf_dir() / "augment/view/simclr.yaml").read_text())
PLAIN = ((0.0,) * 3, (1.0,) * 3)


def view(size=32, **changes):
    """SimCLR's view with everything random off but `changes`."""
    off = {
        "flip": 0.0,
        "gray": 0.0,
        "jitter_p": 0.0,
        "blur_p": 0.0,
        "solarize_p": 0.0,
        "scale": (1.0, 1.0),
        "ratio": (1.0, 1.0),
        "interpolation": "bilinear",
    }
    spec = resolve(VIEW, size)
    return type(spec)(**{**vars(spec), **off, **changes})


@pytest.fixture(scope="module")
def images():
    return Shapes(train_size=400, test_size=1).load("train").pixels


def theirs(images, transform, repeat=2):
    torch.manual_seed(0)
    done = [transform(Image.fromarray(x.permute(1, 2, 0).numpy())) for _ in range(repeat) for x in images]
    return torch.stack([torch.from_numpy(np.asarray(d).copy()).permute(2, 0, 1) for d in done]).float() / 255


ENGINES = {"fused": FusedEngine, "kornia": KorniaEngine}
both = pytest.mark.parametrize("kind", ENGINES)


def ours(kind, images, spec, repeat=2):
    engine = ENGINES[kind]([spec], *PLAIN)
    return torch.cat([engine(images, seed)[0] for seed in range(repeat)])


def summary(x):
    """Mean and spread of pixels, spread of image means and edge strength: what an operation changes."""
    edges = (x[..., 1:] - x[..., :-1]).abs().mean()
    return torch.stack([x.mean(), x.std(), x.mean((1, 2, 3)).std(), edges, (x < 0.002).float().mean(), (x > 0.998).float().mean()])


CASES = {
    "crop": ({"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}, v2.RandomResizedCrop(32)),
    "jitter": ({"jitter_p": 1.0}, v2.ColorJitter(0.4, 0.4, 0.4, 0.1)),
    "gray": ({"gray": 1.0}, v2.RandomGrayscale(1.0)),
    "solarize": ({"solarize_p": 1.0}, v2.RandomSolarize(128, 1.0)),
    "blur": ({"blur_p": 1.0, "blur_kernel": 5}, v2.GaussianBlur(5, (0.1, 2.0))),
    "flip": ({"flip": 0.5}, v2.RandomHorizontalFlip(0.5)),
}


@both
@pytest.mark.parametrize("name", CASES)
def test_statistics_agree_with_torchvision(images, kind, name):
    changes, transform = CASES[name]
    a, b = summary(ours(kind, images, view(**changes))), summary(theirs(images, transform))
    tolerance = torch.tensor([0.012, 0.012, 0.02, 0.004, 0.03, 0.03])
    assert ((a - b).abs() < tolerance).all(), f"{a} against {b}"


@both
def test_exact_operations(images, kind):
    x = images[:20].float() / 255
    torch.testing.assert_close(ours(kind, images[:20], view(), 1), x)
    torch.testing.assert_close(ours(kind, images[:20], view(flip=1.0), 1), x.flip(-1))
    gray = (x * torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(x)
    torch.testing.assert_close(ours(kind, images[:20], view(gray=1.0), 1), gray, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(kind, images[:20], view(solarize_p=1.0), 1), torch.where(x >= 0.5, 1 - x, x), atol=1e-6, rtol=0)


@both
def test_probabilities(images, kind):
    x = images.float() / 255
    for field, wanted in (("gray", 0.2), ("jitter_p", 0.8), ("blur_p", 0.5), ("flip", 0.5)):
        y = ours(kind, images, view(**{field: wanted}), 4)
        changed = (y - x.repeat(4, 1, 1, 1)).abs().amax((1, 2, 3)) > 1e-4
        assert float(changed.float().mean()) == pytest.approx(wanted, abs=0.06), field


@both
def test_views_are_reproducible_and_differ(images, kind):
    engine = ENGINES[kind](resolve_all({"view1": VIEW, "view2": VIEW}, 32), (0.5,) * 3, (0.2,) * 3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = engine(images[:16], seed=1), engine(images[:16], seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, y) for x, y in zip(a, engine(images[:16], seed=1), strict=True))
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a[0], b[0])
    assert not torch.allclose(a[0][0], a[0][1])
    same = engine(images[:1].expand(16, -1, -1, -1), seed=3)[0]
    assert len(same.flatten(1).unique(dim=0)) == 16


@pytest.mark.parametrize(
    ("size", "blur", "strength", "interpolation"), [(32, 0.0, 0.4, "bilinear"), (64, 0.5, 0.4, "bilinear"), (224, 0.5, 0.8, "bicubic")]
)
@both
def test_simclr_views_at_three_sizes(kind, size, blur, strength, interpolation):
    v = resolve(VIEW, size)
    assert (v.size, v.blur_p, v.brightness, v.interpolation) == (size, blur, strength, interpolation)
    assert v.blur_kernel % 2 == 1
    canvas = torch.randint(0, 256, (4, 3, size + size // 7, size + size // 7), dtype=torch.uint8)
    out = ENGINES[kind]([v], *PLAIN)(canvas, 0)[0]
    assert out.shape == (4, 3, size, size)
    assert out.min() >= 0
    assert out.max() <= 1


def test_the_paper_blurs_a_tenth_of_224_pixels():
    assert resolve(VIEW, 224).blur_kernel == 23


def test_tables_by_view_size():
    table = {32: "a", 64: "b"}
    assert [pick(table, s) for s in (16, 32, 63, 64, 500)] == ["a", "a", "a", "b", "b"]
    assert pick(0.3, 32) == 0.3


# ---------------------------------------------------------------------------------------------- smaller at first
def test_early_views_are_smaller_and_local_ones_are_not(tmp_path):
    augment = plain(compose("train", ["augment.local_crops=2"]).augment)
    assert resolve_early(augment, 32) is None
    small = resolve_early(augment | {"early_size": 24}, 32)
    assert [v.size for v in small] == [24, 24, 16, 16]
    assert replace(small[0], size=32) == resolve_all(augment, 32)[0]
    photo = resolve_early(augment | {"early_size": 112}, 224)[0]  # with the blur of its full size, and a kernel of its share
    assert (photo.blur_p, photo.interpolation, photo.blur_kernel) == (0.5, "bicubic", 11)
    for size, answer in ((32, "not below the 32 px of the views"), (40, "not below"), (16, "not above the 16 px of local views")):
        with pytest.raises(UserError, match=f"early_size={size} is {answer}"):
            resolve_early(augment | {"early_size": size}, 32)
    with pytest.raises(UserError, match="early_size=32 is not below the 32 px"):
        compose("train", ["augment.early_size=32"])
    words = ["method=dino", "augment.local_crops=2", "augment.early_size=24"]
    unknown = compose("train", [*words, "dataset=folder", f"dataset.path={tmp_path}"])
    assert unknown.dataset.image_size is None  # whose local views may be smaller


class Sizes(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(batch["views"][0].shape[-1])


@pytest.mark.parametrize(
    ("share", "options", "small", "batches"),
    [
        (0.5, {"max_epochs": 2}, 10, 20),
        (0.0, {"max_epochs": 2}, 0, 20),
        (1.0, {"max_epochs": 2}, 20, 20),
        (0.6, {"max_epochs": 2, "accumulate_grad_batches": 20}, 12, 20),  # one step an epoch
        (0.9, {"max_epochs": 2, "accumulate_grad_batches": 4}, 18, 20),  # three, the last of two batches
        (0.5, {"max_epochs": 9, "max_steps": 8}, 4, 8),
    ],
)
def test_views_grow_when_their_share_of_training_is_done(share, options, small, batches):
    config = compose("train", ["augment.early_size=16", f"augment.early_share={share}", "dataset.train_size=80", "dataset.test_size=8",
                               "batch_size=8", "trainer.accelerator=cpu", "recipe=none", "method.hidden_dim=16"])  # fmt: skip
    data = build_data(config)
    method, sizes = build_method(config, data), Sizes()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                        enable_model_summary=False, callbacks=[sizes], **options)  # fmt: skip
    trainer.fit(method, Loader(data.train, 8, 0))
    assert sizes.seen == [16] * small + [32] * (batches - small)
    assert [v.shape[-1] for v in method.augment(data.train.pixels[:8], 0)] == [32, 32]  # what is judged and pictured
    assert isinstance(build_augment(config, 32, data), FusedEngine)  # of preview


def test_a_backbone_that_takes_no_smaller_views_is_told_at_once():
    config = compose("train", ["augment.early_size=25", "backbone=vit_t", "dataset.train_size=8", "dataset.test_size=8"])
    with pytest.raises(UserError, match=r"set another augment\.early_size"):
        build_method(config, build_data(config))

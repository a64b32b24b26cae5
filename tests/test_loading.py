"""`ssl_zoo.load`: what comes back is the network of the run, and pictures are prepared as test images are."""

import re

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image
from safetensors.torch import save_file

import ssl_zoo
from ssl_zoo.build import build_data, build_method
from ssl_zoo.config import compose, plain
from ssl_zoo.data.pixels import canvas_for, decode_row
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.features import normalised
from ssl_zoo.export import save_backbone

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["experiment=smoke", "dataset.train_size=32", "dataset.test_size=16"]


def saved(run, *words):
    """The folder of a run as training leaves it, with weights as they were drawn, and its method."""
    config = compose("train", [*SMALL, *words])
    data = build_data(config)
    method = build_method(config, data).eval()
    run.mkdir()
    about = {"name": "x", "image_size": data.train.image_size, "mean": data.mean, "std": data.std, "backbone": plain(config.backbone)}
    save_backbone(method.evaluated, run / "backbone.safetensors", about | {"epochs": 2})
    return method, data


@pytest.mark.parametrize(
    "words", [["method=simclr"], ["method=dino", "backbone=vit_t"], ["method=simclr", "backbone=resnet18", "dataset.image_size=160"]]
)
@torch.no_grad()
def test_a_run_comes_back_as_it_was(tmp_path, words):
    method, data = saved(tmp_path / "run", *words)
    for place in (tmp_path / "run", str(tmp_path / "run" / "backbone.safetensors")):
        net = ssl_zoo.load(place)
        assert not any(m.training for m in net.modules())
        x = normalised(data.test.pixels[:4], data.test.image_size, data.mean, data.std)
        features = net(x)
        torch.testing.assert_close(features, method.evaluated(x), rtol=0, atol=1e-6)  # which lies in memory in another order
        assert features.shape == (4, net.num_features)
        assert (net.image_size, net.about["epochs"]) == (data.test.image_size, 2)


class Folder:
    """One encoded image, as a data set holds it."""

    def __init__(self, data):
        self.read = lambda row: data


@pytest.mark.parametrize("size", [32, 160])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_pictures_are_prepared_as_test_images(tmp_path, size, mode):
    _, data = saved(tmp_path / "run", "method=simclr", f"dataset.image_size={size}")
    net = ssl_zoo.load(tmp_path / "run")
    whole = Image.effect_noise((300, 200), 80).convert("RGB")
    whole.putalpha(Image.linear_gradient("L").resize(whole.size))
    (file := tmp_path / "a.png").write_bytes(b"")
    whole.convert(mode).save(file)
    pixels = torch.from_numpy(decode_row(Folder(file.read_bytes()), 0, canvas_for(size)).copy())
    wanted = normalised(pixels[None], size, data.mean, data.std)[0]
    for given in (file, str(file), Image.open(file), np.asarray(Image.open(file))):
        got = net.transform(given)
        assert got.shape == (3, size, size)
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_what_cannot_be_loaded_or_read_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.txt").write_text("no picture")
    for place, said in (
        ("empty", r"has no backbone\.safetensors: give the folder of a run that has finished\.$"),
        ("nowhere", r"does not say what it is of"),
        ("other.safetensors", r"does not say what it is of"),
        ("text.txt", r"does not say what it is of"),
    ):
        with pytest.raises(UserError, match=said):
            ssl_zoo.load(tmp_path / place)
    saved(tmp_path / "run", "method=simclr")
    net = ssl_zoo.load(tmp_path / "run")
    (tmp_path / "cut.png").write_bytes(picture()[:60])
    for bad in (
        tmp_path / "text.txt",
        tmp_path / "none.png",
        tmp_path / "cut.png",
        np.zeros((2, 2, 7), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(UserError, match=re.compile(r"^(The picture|.*\.(txt|png)) is no picture that can be read \(.+\)\.$")):
            net.transform(bad)


def test_a_foreign_backbone_needs_trust(tmp_path):
    method, data = saved(tmp_path / "run", "method=simclr")
    about = {"image_size": 32, "mean": data.mean, "std": data.std, "backbone": {"_target_": "os.getcwd"}}
    save_backbone(method.evaluated, tmp_path / "run" / "backbone.safetensors", about)
    with pytest.raises(UserError, match="trust"):
        ssl_zoo.load(tmp_path / "run")


def test_the_package_says_what_it_has():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ssl_zoo.nothing  # noqa: B018

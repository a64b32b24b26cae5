"""What a training step costs the host: nothing is read between logged steps, and nothing is logged."""

import logging

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from ssl_zoo.augment.fused_engine import FusedEngine
from ssl_zoo.augment.kornia_engine import KorniaEngine
from ssl_zoo.build import build_augment, build_data, build_method, build_tokens, compiles, precision
from ssl_zoo.callbacks.guard import Guard
from ssl_zoo.callbacks.probe import OnlineProbe
from ssl_zoo.config import compose
from ssl_zoo.data.loader import Loader
from tests.test_fused import NoHostReads

SMALL = ["dataset.train_size=64", "dataset.test_size=8", "batch_size=8", "trainer.accelerator=cpu", "recipe=none"]
METHODS = {  # with widths that take no time
    "simclr": "hidden_dim proj_dim",
    "moco": "hidden_dim proj_dim queue_size",
    "moco_v3": "hidden_dim proj_dim",
    "byol": "hidden_dim proj_dim",
    "simsiam": "proj_dim pred_dim",
    "dino": "hidden_dim bottleneck_dim out_dim",
    "barlow_twins": "hidden_dim proj_dim",
    "vicreg": "hidden_dim proj_dim",
    "supervised": "",
    "clip": "embed_dim",
    "siglip": "embed_dim",
}


class Watch(Callback):
    """Forbids host reads from the moment a batch is there until the callbacks before this one have seen its step."""

    def __init__(self, logged):
        self.mode, self.logged, self.watched = NoHostReads(), logged, 0

    def on_train_batch_start(self, trainer, *args):
        self.on = trainer._logger_connector.should_update_logs == self.logged and trainer.global_step > 0
        if self.on:
            self.mode.__enter__()

    def on_train_batch_end(self, *args):
        if self.on:
            self.mode.__exit__(None, None, None)
            self.watched += 1


@pytest.mark.parametrize(("method", "optimizer"), [*((m, "sgd") for m in METHODS), ("simclr", "adamw"), ("dino", "lars")])
def test_nothing_is_read_on_the_host_between_logged_steps(method, optimizer, tmp_path):
    narrow = [f"method.{key}=64" for key in METHODS[method].split()]
    of_words = ["method.text={width: 16, heads: 2, layers: 1, context: 16}"] if method in ("clip", "siglip") else ["augment.local_crops=1"]
    config = compose("train", [f"method={method}", f"optimizer={optimizer}", *of_words, *narrow, *SMALL])
    data = build_data(config)
    module, watch = build_method(config, data), Watch(logged=False)
    probe = OnlineProbe(module.backbone.num_features, data.train.num_classes)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=6, log_every_n_steps=4, callbacks=[Guard(tmp_path), probe, watch], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, Loader(data.train, 8, 0, tokens=build_tokens(module, data.train)))
    assert watch.watched >= 4


def test_views_come_from_rows_of_resident_pixels():
    config = compose("train", SMALL)
    data = build_data(config)
    method = build_method(config, data)
    method.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    index = torch.tensor([5, 2, 2, 40])
    whole = method.on_after_batch_transfer({"pixels": data.train.pixels, "index": index}, 0)["views"]
    alone = method.on_after_batch_transfer({"image": data.train.pixels[index], "index": index}, 0)["views"]
    assert all(torch.equal(a, b) for a, b in zip(whole, alone, strict=True))


def test_the_engine_that_the_config_names(caplog):
    erasing = "augment.view1.extra=[{_target_: kornia.augmentation.RandomErasing, p: 1.0, scale: [0.3, 0.3]}]"
    cases = {"fused": ([], FusedEngine), "kornia": (["augment.engine=kornia"], KorniaEngine), "extra": ([erasing], KorniaEngine)}
    x = torch.full((4, 3, 32, 32), 200, dtype=torch.uint8)
    for name, (words, kind) in cases.items():
        with caplog.at_level(logging.WARNING, logger="ssl_zoo"):
            engine = build_augment(compose("train", [*words, *SMALL]), 32, training=True)
        assert type(engine) is kind
        assert ("kornia engine" in caplog.text) == (name == "extra")
        if name == "extra":
            first, second = engine(x, 0)
            assert (first == (0 - 0.5) / 0.25).any(), "nothing was erased"
            assert not (second == (0 - 0.5) / 0.25).any()


def test_what_is_compiled_and_in_which_precision():
    def config(*words):
        return compose("train", [*words, "trainer.accelerator=cpu"])

    views = build_augment(config(), 32).groups[0][0]
    assert not compiles(config("augment.compile=false"), [views] * 2, 10**9)
    assert compiles(config("augment.compile=true"), [views] * 2, 1)
    assert compiles(config(), [views] * 2, 50_000)
    assert not compiles(config("trainer.max_steps=20"), [views] * 2, 50_000)
    assert precision(config()) == "32-true"
    assert build_augment(config("trainer.precision=bf16-mixed"), 32, training=True).dtype == torch.bfloat16
    assert build_augment(config("trainer.precision=bf16-mixed"), 32).dtype == torch.float32


def test_views_are_compiled_for_one_number_of_images(monkeypatch):
    engine = build_augment(compose("train", ["augment.compile=true", "batch_size=4", "trainer.accelerator=cpu"]), 32, training=True)
    calls = []
    monkeypatch.setattr(engine, "compiled", lambda *a: calls.append(len(a[0])) or engine.make(*a))
    x = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8)
    for images, rows in ((x, torch.arange(4)), (x[:4], None), (x, torch.arange(3)), (x, torch.arange(4))):
        engine(images, 0, rows)
    assert calls == [9, 9]


@pytest.mark.parametrize("full", [False, True])
def test_views_without_a_working_compiler(monkeypatch, caplog, full):
    engine = build_augment(compose("train", ["augment.compile=true", "batch_size=4", "trainer.accelerator=cpu"]), 32, training=True)
    assert engine.compile_for == 4

    def broken(*args):
        raise OSError("no room for compiled code") if full else torch._dynamo.exc.BackendCompilerFailed(None, RuntimeError("no g++"), None)

    monkeypatch.setattr(engine, "compiled", broken)
    x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    views = engine(x, 0)
    assert "augment.compile" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(views, engine(x, 0), strict=True))

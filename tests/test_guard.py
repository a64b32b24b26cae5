"""A loss, gradients or weights that are not finite: noticed at no cost, located, and kept out of checkpoints."""

import json
import os
import subprocess
import sys

import lightning.pytorch as L
import pytest
import torch
from conftest import ROOT
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from ssl_zoo.build import build_data, build_method
from ssl_zoo.callbacks.guard import Guard
from ssl_zoo.callbacks.nonfinite import NonFinite
from ssl_zoo.callbacks.probe import OnlineProbe
from ssl_zoo.cli import main
from ssl_zoo.config import compose, plain
from ssl_zoo.data.loader import Loader
from tests.test_step import METHODS, SMALL

pytestmark = pytest.mark.usefixtures("one_thread")


class NaNBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.nan


POISON = {
    "output": lambda x: x * torch.nan,
    "gradient": NaNBackward.apply,
    "infinite": lambda x: x + torch.inf,
}


def poisoned(module, name, kind, numbers):
    """The module `name` inside spoils what it returns (or its gradient) in the batches `numbers`, whenever they are taken."""
    before = module.seed_step

    def seed_step(number):
        module.number = number
        before(number)

    module.seed_step = seed_step
    hook = lambda m, args, out: POISON[kind](out) if module.number in numbers else out  # noqa: E731
    module.get_submodule(name).register_forward_hook(hook)
    return module


def method_of(words=(), method="simclr"):
    narrow = [f"method.{key}=64" for key in METHODS[method].split()]
    config = compose("train", [f"method={method}", *narrow, *SMALL, *words])
    data = build_data(config)
    torch.manual_seed(0)
    return build_method(config, data), data.train


def fit(module, images, guard, *callbacks, steps=12, **options):
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[guard, *callbacks], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **{"log_every_n_steps": 4} | options,
    )  # fmt: skip
    trainer.fit(module, Loader(images, 8, 0))
    return trainer


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def told(folder):
    (file,) = (folder / "nonfinite").iterdir()
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("name", "kind", "what", "first"),
    [
        ("backbone.layer1.0.bn1", "output", "loss", "the output of backbone.layer1.0.bn1 (BatchNorm2d)"),
        ("projector", "infinite", "loss", "the output of projector"),
        ("backbone.layer2.0.conv1", "gradient", "gradients", "the gradient with respect to the output of backbone.layer1.0"),
    ],
)
def test_the_first_module_is_named(tmp_path, name, kind, what, first):
    module, images = method_of()
    order = [b["index"].tolist() for b in Loader(images, 8, 0)]
    with pytest.raises(NonFinite) as e:
        fit(poisoned(module, name, kind, [5]), images, Guard(tmp_path))
    found = told(tmp_path)
    (mine,) = found["ranks"]
    assert (found["step"], found["epoch"], found["what"]) == (6, 0, what)
    assert mine["first"].startswith(first)
    assert mine["indices"] == order[5]
    assert (mine["batch"], mine["rank"], mine["step"]) == (5, 0, 6)
    assert mine["loss"] in ("nan", "inf") if what == "loss" else mine["loss"] > 0
    assert mine["gradients_count"] > 0
    text = str(e.value)
    assert text.count(". ") == 0  # one sentence
    for part in ("at step 6 (epoch 0, rank 0)", first, "step-6.json", "optimizer.base_lr", "gradient_clip_val=1"):
        assert part in text
    assert "32-true" not in text
    assert module.trainer.global_step == 8  # noticed at the next logged step
    assert all(v.isfinite().all() for v in module.parameters())


def test_chunks_of_a_batch_are_watched_too(tmp_path):
    module, images = method_of(["chunk_size=3"])
    with pytest.raises(NonFinite, match=r"at step 6 .*first in the gradient with respect to the output of backbone\.layer1\.0"):
        fit(poisoned(module, "backbone.layer2.0.conv1", "gradient", [5]), images, Guard(tmp_path))


def test_the_loss_itself_and_a_view_can_be_the_first(tmp_path):
    for n, (what, first) in enumerate((("loss", "the loss itself, of outputs that are finite"), ("views", "a view of the images"))):
        module, images = method_of()
        step = module.step

        def spoilt(views, batch, step=step, what=what):
            out = step(views, batch)
            return out | {"loss": out["loss"] * torch.nan} if what == "loss" else out

        module.step = spoilt
        if what == "views":
            make = module.augment.forward
            module.augment.forward = lambda *a, make=make: [v * torch.nan for v in make(*a)]
        with pytest.raises(NonFinite, match=f"first in {first}"):
            fit(module, images, Guard(tmp_path / str(n)))


def test_a_batch_that_is_sound_when_it_is_taken_again_is_told_as_that(tmp_path):
    module, images = method_of()
    hook = module.projector.register_forward_hook(lambda m, a, out: out * torch.nan)

    class Recovers(Callback):
        def on_train_batch_end(self, *args):
            hook.remove()

    with pytest.raises(NonFinite, match=r"became nan at step 1 \(epoch 0, rank 0\) \("):
        fit(module, images, Guard(tmp_path), Recovers())
    assert told(tmp_path)["ranks"][0]["first"] is None


def test_micro_batches_of_an_accumulation(tmp_path):
    module, images = method_of()
    with pytest.raises(NonFinite, match="at step 3 "):
        fit(poisoned(module, "projector", "output", [7]), images, Guard(tmp_path), accumulate_grad_batches=3)
    assert told(tmp_path)["ranks"][0]["batch"] == 7


def test_no_checkpoint_is_written_of_a_bad_step_or_of_bad_weights(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    module, images = method_of()
    with pytest.raises(NonFinite, match="at step 6 "):
        fit(poisoned(module, "projector", "output", [5]), images, Guard(tmp_path), Save(), log_every_n_steps=100)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 5
    assert all(v.isfinite().all() for v in kept["state_dict"].values())

    class Break(Save):
        def on_train_batch_end(self, trainer, module, *args):
            if trainer.global_step == 3:
                module.backbone.conv1.weight.data[0, 0, 0, 0] = torch.nan
            super().on_train_batch_end(trainer, module)

    module, images = method_of()
    with pytest.raises(NonFinite, match=r"The weights became NaN or infinite at step 3 .*backbone\.conv1\.weight"):
        fit(module, images, Guard(tmp_path), Break(), log_every_n_steps=100)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


class Look(Callback):
    """The state before and after each optimizer step, beside the number of its first batch."""

    def __init__(self):
        self.states = []

    def on_train_batch_start(self, trainer, module, *args):
        self.states.append(state(module))

    on_train_end = on_train_batch_start


@pytest.mark.parametrize(("method", "place"), [("byol", "projector.0"), ("moco", "backbone.bn1"), ("dino", "teacher.network.0.bn1")])
def test_a_step_that_is_left_out_changes_nothing(tmp_path, method, place, caplog):
    """Neither weights nor a teacher, queue, center or running statistics; the optimizer goes on, and the next step is sound."""
    module, images = method_of(method=method, words=["method.queue_size=32"] if method == "moco" else [])
    look, guard, probe = Look(), Guard(tmp_path, "skip"), OnlineProbe(module.backbone.num_features, 10)
    fit(poisoned(module, place, "output", [3]), images, guard, look, probe, steps=6)
    assert guard.skipped == 1
    before, after = look.states[3], look.states[4]
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    # MoCo's key encoder follows the step before, which was taken
    assert {k.split(".")[0] for k in moved} <= ({"teacher"} if method == "moco" else set()), moved
    assert any(not torch.equal(after[k], look.states[5][k]) for k in after)
    assert all(v.isfinite().all() for v in look.states[-1].values())
    assert all(v.isfinite().all() for v in probe.head.state_dict().values())
    assert "left out a step: the loss became nan at step 4" in caplog.text
    assert told(tmp_path)["ranks"][0]["batch"] == 3
    assert guard.state_dict() == {"skipped": 1}


def test_off_is_false_in_yaml(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nguard: {nonfinite: off}\n")
    config = compose("train", ["experiment=mine"], [str(tmp_path)])
    assert Guard(tmp_path, **plain(config.guard)).mode == "off"


def test_too_many_steps_in_a_row_end_the_run(tmp_path):
    module, images = method_of()
    guard = Guard(tmp_path, "skip", most_skipped=3)
    with pytest.raises(NonFinite, match=r"left out 3 steps in a row and gives up: the loss became nan at step 8 "):
        fit(poisoned(module, "projector", "output", [2, 5, 6, 7]), images, guard)
    assert guard.skipped == 4
    assert sorted(f.name for f in (tmp_path / "nonfinite").iterdir()) == [f"step-{n}.json" for n in (3, 6, 7, 8)]


def test_gradients_of_float16_are_left_to_the_grad_scaler(tmp_path):
    module, images = method_of()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    plugin.autocast_context_manager = lambda: torch.autocast("cpu", torch.bfloat16)  # float16 on a CPU is a matter of minutes
    fit(module, images, Guard(tmp_path), plugins=[plugin], steps=5)
    assert scaler.get_scale() < 2.0**127
    assert not (tmp_path / "nonfinite").exists()
    module, images = method_of()
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    plugin.autocast_context_manager = lambda: torch.autocast("cpu", torch.bfloat16)
    with pytest.raises(NonFinite, match=r"The loss became nan at step 3 .*trainer\.precision=32-true"):
        fit(poisoned(module, "projector", "output", [2]), images, Guard(tmp_path), plugins=[plugin])


def test_the_guard_changes_no_weight(tmp_path):
    """Sound runs are equal to the last bit, whatever the guard does."""
    found = []
    for mode in ("off", "stop", "skip"):
        module, images = method_of(method="moco", words=["method.queue_size=32"])
        fit(module, images, Guard(tmp_path, mode), steps=9)
        found.append(state(module))
    assert all(torch.equal(v, other[k]) for other in found[1:] for k, v in found[0].items())


def test_a_run_that_diverges_ends_with_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, "epochs=4", "method.hidden_dim=32", "optimizer=sgd", "optimizer.base_lr=1e15", "optimizer.warmup_epochs=1", "run=r",
             "evaluation.baselines=false", "logger=csv"]  # fmt: skip
    with pytest.raises(SystemExit) as e:
        main(words)
    assert e.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("ssl-zoo:")]
    assert "at step " in line
    assert "lower optimizer.base_lr" in line
    assert list((tmp_path / "r" / "nonfinite").iterdir())
    for file in (tmp_path / "r" / "checkpoints").glob("*.ckpt"):
        assert all(v.isfinite().all() for v in torch.load(file, weights_only=True)["state_dict"].values())


def test_the_guard_can_be_changed_by_a_resume_and_is_no_part_of_the_hash():
    from ssl_zoo.config import plain
    from ssl_zoo.fingerprint import changes, config_hash
    from ssl_zoo.saved import RESUMABLE

    a, b = (plain(compose("train", [f"guard.nonfinite={mode}"])) for mode in ("stop", "skip"))
    assert config_hash(a) == config_hash(b)
    assert changes(a, b) == changes({k: v for k, v in a.items() if k != "guard"}, b) == {}
    assert "guard." in RESUMABLE


TWO = """
import sys
import torch
from ssl_zoo.cli import main
from ssl_zoo.methods.simclr import SimCLR

before, numbers = SimCLR.step, []

def seed_step(self, number, original=SimCLR.seed_step):
    self.number = number
    original(self, number)

def step(self, views, batch):
    if self.global_rank == 1 and self.number == 8:
        views = [views[0] * torch.nan, *views[1:]]
    return before(self, views, batch)

SimCLR.step, SimCLR.seed_step = step, seed_step
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_all_ranks_stop_at_the_same_step(tmp_path, mode):
    """A NaN on the second of two ranks, in the second epoch: one sentence, both records, and the checkpoint of the first epoch."""
    (tmp_path / "two.py").write_text(TWO)
    words = [*SMALL, "dataset.train_size=96", "epochs=2", "method.hidden_dim=32", "trainer.devices=2", "trainer.strategy=ddp", "run=r",
             "evaluation.baselines=false", "evaluation.linear.final=false", f"guard.nonfinite={mode}"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SSL_ZOO_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "two.py", *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    (file,) = (tmp_path / "r" / "nonfinite").iterdir()
    found = json.loads(file.read_text())
    assert (found["step"], found["epoch"], found["what"]) == (9, 1, "loss")
    assert [(r["rank"], r["batch"], len(r["indices"])) for r in found["ranks"]] == [(0, 8, 8), (1, 8, 8)]
    assert found["ranks"][1]["loss"] == "nan"
    assert not set(found["ranks"][0]["indices"]) & set(found["ranks"][1]["indices"])
    told = [x for x in done.stderr.splitlines() if "became" in x]
    assert len(told) == 1, done.stderr
    assert "at step 9 (epoch 1, rank 1), first in the output of backbone.conv1" in told[0]
    assert found["ranks"][0]["first"].startswith("the output of backbone.bn1")
    kept = torch.load(tmp_path / "r" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(v.isfinite().all() for v in kept["state_dict"].values())
    if mode == "stop":
        assert done.returncode == 2, done.stderr
        assert kept["global_step"] == 6
    else:
        assert done.returncode == 0, done.stderr
        assert kept["global_step"] == 12
        assert json.loads((tmp_path / "r" / "summary.json").read_text())["skipped_steps"] == 1

"""What is easily got wrong, by the numbers of a list of 52 pitfalls: each test fails where its mistake is made.

Covered elsewhere:
    1, 2, 27, 34, 35, 36    values and gradients                        test_losses, test_optim, test_collapse
    3, 4, 5, 39             negatives, gradients, labels over ranks     test_distributed
    17                      the center over ranks                       test_distributed
    30                      which batch normalisation is synchronised   test_distributed
    51                      evaluation counts each image once           test_distributed
    37, 38, 40              sums, scale and gradients of CLIP, SigLIP   test_losses, test_words, test_distributed
    49, 50                  means of prompts, recall of captions        test_zero_shot
41 is of SwAV alone, which is not here.
"""

import copy
import itertools
import math
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from conftest import GOLDEN
from lightning.pytorch.plugins import MixedPrecision
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ssl_zoo.augment.kornia_engine import KorniaEngine, operations
from ssl_zoo.augment.spec import resolve, resolve_all
from ssl_zoo.callbacks.health import Health
from ssl_zoo.callbacks.place import Place
from ssl_zoo.callbacks.probe import OnlineProbe
from ssl_zoo.collapse.centering import sinkhorn
from ssl_zoo.collapse.health import assignment_entropies, effective_rank, feature_std, verdict
from ssl_zoo.collapse.teacher import Teacher
from ssl_zoo.config import conf_dir
from ssl_zoo.data.images import Images
from ssl_zoo.data.loader import Loader
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.features import extract
from ssl_zoo.methods.barlow_twins import BarlowTwins, barlow_twins_loss
from ssl_zoo.methods.base import Method
from ssl_zoo.methods.byol import BYOL, byol_loss
from ssl_zoo.methods.dino import DINO, dino_loss
from ssl_zoo.methods.moco import MoCo, info_nce
from ssl_zoo.methods.moco_v3 import MoCoV3, contrastive
from ssl_zoo.methods.simclr import SimCLR, nt_xent
from ssl_zoo.methods.simsiam import SimSiam, simsiam_loss
from ssl_zoo.methods.vicreg import VICReg, vicreg_loss
from ssl_zoo.nn.backbones import create
from ssl_zoo.nn.heads import Prototypes
from ssl_zoo.nn.numerics import unit
from ssl_zoo.nn.vit import is_vit, moco_v3_vit
from ssl_zoo.optim.build import build_optimizer
from ssl_zoo.optim.schedules import cosine

SMALL = {"hidden_dim": 16, "proj_dim": 8}
METHODS = {
    "simclr": (SimCLR, SMALL),
    "moco": (MoCo, {**SMALL, "queue_size": 14, "momentum": 0.9}),
    "moco_v3": (MoCoV3, {**SMALL, "momentum": 0.9}),
    "byol": (BYOL, {**SMALL, "momentum": 0.9}),
    "simsiam": (SimSiam, {"proj_dim": 16, "pred_dim": 8}),
    "dino": (DINO, {"hidden_dim": 16, "bottleneck_dim": 8, "out_dim": 10, "momentum": 0.9}),
    "barlow_twins": (BarlowTwins, SMALL),
    "vicreg": (VICReg, SMALL),
}
WITH_TEACHER = ("moco", "moco_v3", "byol", "dino")


pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Sequential):
    num_features = 12

    def __init__(self):
        super().__init__(nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Flat(nn.Sequential):
    """No batch normalisation: what comes out for an image does not depend on the others."""

    num_features = 12

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, 12), nn.ReLU())


def vit():
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=0, dynamic_img_size=True)


class Noisy(nn.Module):
    """Images and noise; `seeds` are those it was asked with."""

    def __init__(self, views=2):
        super().__init__()
        self.count, self.seeds = views, []

    def forward(self, images, seed):
        self.seeds.append(seed)
        g = torch.Generator().manual_seed(seed)
        return [images.float() / 255 + 0.2 * torch.randn(images.shape, generator=g) for _ in range(self.count)]


def optimizer_config(name="sgd", **changes):
    return {**yaml.safe_load((conf_dir() / f"optimizer/{name}.yaml").read_text()), **changes}


def make(name, backbone=None, optimizer=None, **changes):
    kind, options = METHODS[name]
    common = {"augment": Noisy(), "optimizer": optimizer or optimizer_config(), "batch_size": 4}
    return kind(backbone or Net(), **{**options, **common, **changes})


def pictures(count):
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 3, ["a", "b", "c"], 8)


def two_views(local_crops=0, batch=6):
    g = torch.Generator().manual_seed(2)
    base = torch.randn(batch, 3, 8, 8, generator=g)
    views = [base + 0.3 * torch.randn(batch, 3, 8, 8, generator=g) for _ in range(2 + local_crops)]
    return views[:2] + [v[..., :4, :4] for v in views[2:]]


class Watch(L.Callback):
    """What a run did: `losses` of the batches, `lrs` and `decays` of the parameter groups at each optimizer step. save: {step: file}."""

    def __init__(self, save=None):
        self.losses, self.lrs, self.decays, self.save = [], [], [], save or {}

    def on_train_start(self, trainer, module):
        trainer.optimizers[0].register_step_post_hook(self.note)

    def note(self, optimizer, *_):
        self.lrs.append([g["lr"] for g in optimizer.param_groups])
        self.decays.append([g["weight_decay"] for g in optimizer.param_groups])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"].detach()))
        if trainer.global_step in self.save:
            trainer.save_checkpoint(self.save.pop(trainer.global_step))


class When(L.Callback):
    """Calls `function(trainer, module)` at one moment, such as on_after_backward."""

    def __init__(self, moment, function):
        setattr(self, moment, lambda trainer, module, *_: function(trainer, module))


def fit(method, *callbacks, batches=4, epochs=2, accumulate=1, ckpt=None, save=None, plugins=None, extra=0):
    """Train on `batches` batches of 4 and `extra` images an epoch; returns the Watch, the trainer as `trainer`."""
    loader = Loader(pictures(4 * batches + extra), batch_size=4, seed=0)
    watch = Watch(save)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        callbacks=[*callbacks, watch, Place(loader)],
        plugins=plugins,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    trainer.fit(method, loader, ckpt_path=ckpt, weights_only=True)
    watch.trainer, watch.loader = trainer, loader
    return watch


@pytest.fixture
def updates(monkeypatch):
    """The momentum of every update of a teacher."""
    found, real = [], Teacher.update

    def update(self, *parts, momentum):
        found.append(momentum)
        real(self, *parts, momentum=momentum)

    monkeypatch.setattr(Teacher, "update", update)
    return found


def student(method):
    """The parameters that the teacher follows, in its order."""
    head = method.head if isinstance(method, DINO) else method.projector
    return [p.detach().clone() for part in (method.backbone, head) for p in part.parameters()]


def teacher(method):
    return [p.detach().clone() for p in method.teacher.parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------------------------------------- 6 to 9: the queue
def test_06_keys_are_queued_after_the_loss():
    method, views = make("moco", Flat(), queue_size=32), two_views()
    before = method.queue.keys.clone()
    q, k = (unit(method.projector(method.backbone(v))).detach() for v in views)  # the teacher still equals the student
    loss = float(method.step(views, {})["loss"].detach())
    assert loss == pytest.approx(float(info_nce(q, k, before, method.temperature)), rel=1e-5)
    assert loss != pytest.approx(float(info_nce(q, k, method.queue.keys, method.temperature)), rel=1e-3)


def test_06_queueing_leaves_the_backward_pass_alone():
    """Autograd refuses where the negatives of the loss were overwritten before its gradient is taken."""
    for symmetric in (False, True):
        method = make("moco", symmetric=symmetric)
        method.step(two_views(), {})["loss"].backward()
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


RESUMED = {
    "moco": ("queue.keys", "queue.pointer", "teacher.network.0.0.weight"),
    "moco_v3": ("teacher.network.1.1.running_mean",),
    "byol": ("teacher.network.0.0.weight", "teacher.network.0.1.running_mean"),
    "simsiam": ("predictor.0.weight",),
    "dino": ("center.value", "teacher.network.1.1.weight_v"),
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Of a method: the run of 12 steps, the same from a checkpoint amid the second epoch into another network, and both methods."""

    def run(name, accumulate=1):
        if (name, accumulate) not in found:
            file, options = tmp_path_factory.mktemp(name) / "6.ckpt", {"batches": 4 * accumulate, "epochs": 3, "accumulate": accumulate}
            torch.manual_seed(0)
            whole = make(name)
            first = fit(whole, save={6: file}, **options)
            torch.manual_seed(1)
            again = make(name)
            found[name, accumulate] = (first, whole, fit(again, ckpt=file, **options), again)
        return found[name, accumulate]

    found = {}
    return run


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", RESUMED)
def test_07_a_resumed_run_takes_the_steps_of_the_uninterrupted_one(interrupted, name, accumulate):
    first, whole, second, again = interrupted(name, accumulate)
    assert len(first.losses) == 12 * accumulate
    assert second.losses == first.losses[6 * accumulate :]
    assert second.lrs == first.lrs[6:]
    a, b = whole.state_dict(), again.state_dict()
    assert set(RESUMED[name]) <= set(a)
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


def test_07_what_a_network_drops_at_random_is_the_same_after_a_resume(tmp_path):
    class Drops(Net):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    torch.manual_seed(0)
    first = fit(make("simclr", Drops()), epochs=3, save={6: tmp_path / "6.ckpt"})
    torch.manual_seed(1)
    second = fit(make("simclr", Drops()), epochs=3, ckpt=tmp_path / "6.ckpt")
    assert second.losses == first.losses[6:]
    assert len(set(first.losses)) == 12


def test_07_where_the_queue_stands_is_saved(interrupted):
    _, whole, _, again = interrupted("moco")
    assert int(whole.queue.pointer) == int(again.queue.pointer) == (12 * 4) % 14


def test_08_no_short_batch_and_a_queue_of_any_size():
    method = make("moco")  # 14 keys, batches of 4
    watch = fit(method, batches=3, epochs=3, extra=2)
    assert (len(watch.loader), len(watch.losses)) == (3, 9)
    assert int(method.queue.pointer) == 36 % 14
    assert {len(b["image"]) for b in watch.loader} == {4}
    assert all(math.isfinite(x) for x in watch.losses)


def test_09_a_step_queues_as_many_unit_keys_as_images():
    for symmetric, added in ((False, 6), (True, 12)):
        method = make("moco", queue_size=32, symmetric=symmetric)
        before = method.queue.keys.clone()
        method.step(two_views(), {})
        after = method.queue.keys
        changed = (after != before).any(1)
        assert changed.tolist() == [i < added for i in range(32)]
        torch.testing.assert_close(after.norm(dim=1), torch.ones(32))


# ---------------------------------------------------------------------------------------------- 10 to 16: the teacher
@pytest.mark.parametrize("name", WITH_TEACHER)
def test_10_without_learning_the_teacher_stays_the_student(name):
    method = make(name, optimizer=optimizer_config(base_lr=0.0))
    first = student(method)
    assert equal(teacher(method), first)
    fit(method, epochs=1)
    assert equal(teacher(method), first)


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_10_without_momentum_the_teacher_is_the_student_before_or_after_the_step(name):
    ends = {} if name == "moco" else {"momentum_end": 0.0}
    method = make(name, momentum=0.0, **ends, optimizer=optimizer_config(warmup_epochs=0))
    seen = []

    def at_forward(*_):
        seen[-1] &= equal(teacher(method), student(method))

    def at_end(trainer, module):
        follows = equal(teacher(module), student(module))
        seen[-1] &= not follows if name.startswith("moco") else follows

    method.teacher.register_forward_pre_hook(at_forward)
    fit(method, When("on_train_batch_start", lambda *_: seen.append(True)), When("on_train_batch_end", at_end), epochs=1)
    assert seen == [True] * 4


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_11_the_teacher_moves_once_for_each_optimizer_step(updates, name):
    method, moved = make(name, optimizer=optimizer_config(warmup_epochs=0)), []
    before = [teacher(method)]

    def note(trainer, module):
        moved.append(not equal(before[-1], teacher(module)))
        before.append(teacher(module))

    watch = fit(method, When("on_train_batch_end", note), batches=10, accumulate=4)
    steps = len(watch.lrs)
    assert (len(watch.losses), steps, method.steps_total) == (20, 6, 6)
    assert len(updates) == (steps - 1 if name.startswith("moco") else steps)  # before each step but the first, or after each
    wanted = [4, 8, 10, 14, 18] if name.startswith("moco") else [3, 7, 9, 13, 17, 19]  # batches that begin a step, or that end one
    assert [i for i, m in enumerate(moved) if m] == wanted


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_11_a_step_that_overflows_does_not_move_the_teacher(updates, name):
    method, counts = make(name, Flat(), optimizer=optimizer_config(warmup_epochs=0)), []

    def overflow(trainer, module):
        if trainer.global_step == 2:
            next(module.backbone.parameters()).grad.fill_(torch.inf)

    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    note = When("on_train_batch_end", lambda trainer, module: counts.append(len(updates)))
    watch = fit(method, When("on_after_backward", overflow), note, batches=5, epochs=1, plugins=[precision])
    assert scaler.get_scale() == 0.5  # it was the scaler that skipped
    assert len(watch.lrs) == 4
    assert counts == ([0, 1, 2, 2, 3] if name == "moco" else [1, 2, 2, 3, 4])


def test_12_the_momentum_rises_along_a_cosine_per_step(updates):
    case = GOLDEN["cases"]["ema_byol_base0.996"]
    method = make("byol", momentum=0.996)
    method.steps_total = case["params"]["total"]
    for method.steps_done in case["params"]["steps"]:
        method.after_step()
    assert updates == pytest.approx(case["value"], rel=1e-12)


@pytest.mark.parametrize(("name", "steps"), [("byol", range(6)), ("dino", range(6)), ("moco_v3", range(1, 6)), ("moco", None)])
def test_12_training_counts_optimizer_steps_from_zero(updates, name, steps):
    fit(make(name), batches=6, accumulate=2)
    assert updates == pytest.approx([cosine(s / 6, 0.9, 1.0) for s in steps] if steps else [0.9] * 5, rel=1e-12)


def test_13_the_teacher_is_never_kept_in_half_precision():
    for dtype in (torch.float16, torch.bfloat16):
        net = nn.Linear(1, 1, bias=False).to(dtype)
        net.weight.data.fill_(1.0)
        average = Teacher(net).to(dtype)
        assert next(average.parameters()).dtype == torch.float32
        net.weight.data.fill_(1.1)
        for _ in range(1000):
            average.update(net, momentum=0.999)
        wanted = float(net.weight) + (1 - float(net.weight)) * 0.999**1000
        assert float(next(average.parameters())) == pytest.approx(wanted, abs=1e-4)
        assert wanted == pytest.approx(1.0632, abs=2e-3)


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_14_the_teacher_uses_and_keeps_statistics_of_its_own_batches(name):
    method, modes = make(name), []
    norms = [m for m in method.teacher.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    fit(method, When("on_train_batch_start", lambda *_: modes.append(all(m.training for m in norms))), epochs=2)
    assert modes == [True] * 8
    forwards = 1 if name in ("moco", "dino") else 2  # the views apart or together, the one view of MoCo
    assert {int(m.num_batches_tracked) for m in norms} == {8 * forwards}
    ours = [m for m in method.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not torch.equal(norms[0].running_mean, ours[0].running_mean)


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_15_the_teacher_begins_with_the_students_buffers(name):
    net = Net()
    net(torch.randn(4, 3, 8, 8) + 3)  # statistics that are not those of a new network
    method = make(name, net)
    assert equal(method.teacher.network[0].buffers(), method.backbone.buffers())
    assert method.teacher.network[0][1].running_mean.abs().max() > 0.01
    assert equal(teacher(method), student(method))


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_16_the_teacher_is_not_trained(name):
    method = make(name)
    assert not any(p.requires_grad for p in method.teacher.parameters())
    optimizer = build_optimizer(method, optimizer_config())
    trained = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert trained
    assert not trained & {id(p) for p in method.teacher.parameters()}
    assert trained == {id(p) for p in method.parameters() if p.requires_grad}
    method.step(two_views(), {})["loss"].backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    method.train().eval().train()
    assert not any(p.requires_grad for p in method.teacher.parameters())


# ---------------------------------------------------------------------------------------------- 18 to 23: DINO
def test_18_the_center_follows_raw_outputs_after_the_loss():
    torch.manual_seed(0)
    method, views = make("dino", Flat()), two_views(local_crops=0)
    method.center.value.copy_(torch.linspace(-0.5, 0.5, 10))
    before = method.center.value.clone()
    raw = torch.stack([method.teacher(v) for v in views])
    out = method.step(views, {})
    logits = torch.stack([method.head(method.backbone(v)) for v in views])
    assert torch.equal(method.center.value, before)
    method.after_step()

    def loss(center):
        return float(dino_loss(logits, F.softmax((raw - center) / 0.04, -1), 0.1).detach())

    assert float(out["loss"].detach()) == pytest.approx(loss(before), rel=1e-5)
    assert float(out["loss"].detach()) != pytest.approx(loss(method.center.value), rel=1e-4)
    torch.testing.assert_close(method.center.value, 0.9 * before + 0.1 * raw.mean((0, 1)))


def test_19_the_teacher_sees_global_views_only():
    for name, wanted in (("dino", [12]), ("moco", [6]), ("moco_v3", [6, 6]), ("byol", [6, 6])):
        method, seen = make(name), []
        method.teacher.network[0].register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].shape))
        method.step(two_views(local_crops=3), {})
        assert seen == [(n, 3, 8, 8) for n in wanted], name


def test_19_no_view_is_compared_with_itself():
    for views in (2, 5):
        directed, undirected = Method.directed_pairs(views), Method.undirected_pairs(views)
        assert len(set(directed)) == len(directed) == 2 * views - 2
        assert len(set(undirected)) == len(undirected) == 2 * views - 3
        assert all(t != v and t < 2 for t, v in directed + undirected)
    s, t = torch.randn(4, 3, 10), torch.zeros(2, 3, 10)
    t[..., 0] = 1.0
    s.requires_grad_()
    dino_loss(s, t * torch.tensor([1.0, 0.0])[:, None, None], 0.1).backward()  # only the first view teaches
    assert [bool(g.any()) for g in s.grad] == [False, True, True, True]


def test_20_the_teachers_temperature_is_that_of_the_epoch():
    """0.04 rising to 0.07 over 30 of 100 epochs; the official one moves once an epoch, this one with every step in between."""
    method, per_epoch = make("dino", teacher_temp=0.07, teacher_temp_warmup=0.3), 7
    method.steps_total, found = 100 * per_epoch, {}
    for epoch in (0, 15, 29, 30, 99):
        method.steps_done = epoch * per_epoch
        found[epoch] = method.teacher_temp()
    official = {0: 0.04, 15: 0.0555, 29: 0.07, 30: 0.07, 99: 0.07}
    assert found == pytest.approx(official, abs=0.0011)  # an epoch's rise is 0.03 / 29
    assert (found[0], found[30], found[99]) == pytest.approx((0.04, 0.07, 0.07), rel=1e-12)
    assert found[15] == pytest.approx(0.055, rel=1e-12)


def test_20_training_passes_the_rising_temperature_on(monkeypatch):
    method, found = make("dino", teacher_temp=0.07, teacher_temp_warmup=0.5), []
    monkeypatch.setattr(method.center, "forward", lambda x, temperature: found.append(temperature) or F.softmax(x / temperature, -1))
    fit(method, batches=4, accumulate=2, epochs=4)
    assert found == pytest.approx([0.04 + 0.03 * min(1.0, step / 4) for step in range(8) for _ in range(2)], rel=1e-9)


def test_21_gradients_are_clipped_each_by_itself():
    method, norms = make("dino", freeze_last_layer=0), []

    def put(trainer, module):
        kept = [module.backbone[0].weight, module.head[-1].weight_v]
        for p in module.parameters():
            if p.grad is not None:
                p.grad.zero_()
        for p in kept:
            p.grad.fill_(6.3 / p.numel() ** 0.5)

    def measure(trainer, module):
        trainer.optimizers[0].register_step_post_hook(
            lambda *_: norms.append(torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]))
        )

    fit(method, When("on_train_start", measure), When("on_after_backward", put), batches=1, epochs=1)
    assert sorted(norms[0].tolist())[-2:] == pytest.approx([3.0, 3.0], rel=1e-4)
    assert float(norms[0].norm()) == pytest.approx(18**0.5, rel=1e-4)  # 4.24, not 3


def test_22_dinos_head_begins_with_small_weights_and_no_bias():
    """With PyTorch's biases, weights of 0.02 would give every image the same projection, and a teacher that is uniform."""
    torch.manual_seed(0)
    net = Net()
    net.num_features = 256
    head = DINO(net, hidden_dim=512, bottleneck_dim=64, out_dim=1024).head
    for layer in (m for m in head[0] if isinstance(m, nn.Linear)):
        assert float(layer.weight.std()) == pytest.approx(0.02, rel=0.02)
        assert not layer.bias.any()
    assert float(head[1].weight_v.std()) == pytest.approx(1 / math.sqrt(3 * 64), rel=0.02)  # nn.Linear's own


def test_22_sinkhorn_shares_out_the_images_of_both_views_at_once():
    method = make("dino", assignment="sinkhorn", teacher_temp_start=0.05)
    logits = torch.randn(2, 6, METHODS["dino"][1]["out_dim"], generator=torch.Generator().manual_seed(0))
    assert torch.equal(method.assign(logits), sinkhorn(logits.flatten(0, 1), 0.05).view_as(logits))
    fit(method, epochs=1)
    assert not method.center.value.any()  # which has no use


def test_22_dinos_features_are_those_of_the_network_that_is_judged():
    method = make("dino")
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.add_(1.0)
    views = two_views(1)
    both = copy.deepcopy(method.evaluated)(torch.cat(views[:2]))
    torch.testing.assert_close(method.step(views, {})["features"], both[:6])


@pytest.mark.parametrize("frozen", [1, 2])
def test_22_the_last_layer_stands_still_in_the_first_epochs_even_with_weight_decay(frozen):
    torch.manual_seed(0)
    config = optimizer_config("adamw", weight_decay=0.5, warmup_epochs=0, base_lr=0.5)
    method, seen = make("dino", optimizer=config, freeze_last_layer=frozen), []
    watched = [method.head[-1].weight_v, method.head[0][0].weight]
    first = [p.detach().clone() for p in watched]
    fit(
        method, When("on_train_epoch_end", lambda *_: seen.append([equal([p], [q]) for p, q in zip(watched, first, strict=True)])), epochs=3
    )
    assert seen == [[epoch < frozen, False] for epoch in range(3)]


@pytest.mark.parametrize("fixed", [True, False])
def test_23_the_length_of_prototypes_is_fixed_or_learnt_and_survives_copies(fixed):
    method = make("dino", norm_last_layer=fixed)
    last = method.head[-1]
    assert last.weight_g.requires_grad is (not fixed)
    trained = {id(p) for g in build_optimizer(method, optimizer_config()).param_groups for p in g["params"]}
    assert (id(last.weight_g) in trained) is (not fixed)
    twin = copy.deepcopy(last)
    assert twin.weight_g.requires_grad is (not fixed)
    assert torch.equal(twin.weight_v, last.weight_v)
    assert not method.teacher.network[1][-1].weight_g.requires_grad
    fit(method, epochs=2)
    assert bool((last.weight_g == 1).all()) is fixed


def test_23_weights_of_torchs_own_weight_norm_load_by_either_name():
    ours, x = Prototypes(8, 10), torch.randn(5, 8)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(8, 10, bias=False))
    theirs.parametrizations.weight.original0.data.uniform_(0.5, 2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), theirs(F.normalize(x, dim=-1)))
    again = Prototypes(8, 10)
    again.load_state_dict(ours.state_dict(), strict=True)
    assert set(ours.state_dict()) == {"weight_g", "weight_v"}
    assert torch.equal(again(x), ours(x))


# ---------------------------------------------------------------------------------------------- 24 to 28: the optimizer
@pytest.mark.parametrize(("batches", "accumulate"), [(4, 1), (4, 2), (10, 4)])
def test_24_the_rate_after_warm_up_is_that_of_the_global_batch(batches, accumulate):
    method = make("simclr", augment=Noisy(4), optimizer=optimizer_config(base_lr=0.6, warmup_epochs=1))
    watch = fit(method, batches=batches, accumulate=accumulate)
    steps = len(watch.lrs) // 2  # of an epoch
    assert watch.lrs[0] == [0, 0]
    assert watch.lrs[steps] == pytest.approx([0.6 * 4 * accumulate / 256] * 2, rel=1e-12)
    assert [max(step) < max(watch.lrs[steps]) for step in watch.lrs] == [i != steps for i in range(2 * steps)]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_24_devices_and_accumulation_count_once(world, accumulate):
    method = make("byol", optimizer=optimizer_config(base_lr=0.6, warmup_epochs=0))
    method._trainer = SimpleNamespace(
        world_size=world,
        accumulate_grad_batches=accumulate,
        estimated_stepping_batches=10,
        max_epochs=2,
        num_training_batches=5,
        precision="32-true",
    )
    optimizer = method.configure_optimizers()["optimizer"]
    assert {g["lr"] for g in optimizer.param_groups} == {0.6 * 4 * world * accumulate / 256}


def test_25_the_predictors_rate_stays_also_after_a_resume(interrupted):
    first, whole, second, again = interrupted("simsiam")
    peak = 0.3 * 4 / 256
    for watch, method in ((first, whole), (second, again)):
        groups = watch.trainer.optimizers[0].param_groups
        fixed = [i for i, g in enumerate(groups) if g["fixed_lr"]]
        assert {id(p) for i in fixed for p in groups[i]["params"]} == {id(p) for p in method.predictor.parameters()}
        for step in watch.lrs:
            assert [step[i] for i in fixed] == [peak] * len(fixed)
        others = [i for i in range(len(groups)) if i not in fixed]
        assert [groups[i]["lr"] for i in fixed] == [peak] * len(fixed)  # after the last epoch
        assert [groups[i]["lr"] for i in others] == pytest.approx([0.0] * len(others), abs=1e-9)
    assert max(step[others[0]] for step in first.lrs) == pytest.approx(peak)


def test_25_a_predictor_that_is_not_fixed_follows_the_schedule():
    watch = fit(make("simsiam", fix_predictor_lr=False))
    assert all(len(set(step)) == 1 for step in watch.lrs)
    assert watch.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_26_norms_and_biases_are_neither_decayed_nor_scaled():
    method = make("barlow_twins")
    optimizer = build_optimizer(method, optimizer_config("lars", weight_decay=0.1, base_lr=0.5))
    for p in method.parameters():
        p.grad = torch.zeros_like(p)
    before = {k: p.detach().clone() for k, p in method.named_parameters()}
    optimizer.step()
    for key, p in method.named_parameters():
        assert torch.equal(p, before[key]) is (p.ndim <= 1), key
    norm = method.projector[1]
    norm.weight.grad.fill_(0.01)
    optimizer.step()
    torch.testing.assert_close(norm.weight.detach(), torch.full_like(norm.weight, 1 - 0.5 * 0.01))  # no trust ratio


def test_28_lars_scales_without_weight_decay():
    method = make("simclr")
    optimizer = build_optimizer(method, optimizer_config("lars", weight_decay=0.0, base_lr=0.5, trust_coefficient=0.02))
    for p in method.parameters():
        p.grad = torch.full_like(p, 3.0)
    weight = method.backbone[0].weight
    before = weight.detach().clone()
    optimizer.step()
    assert float((weight.detach() - before).norm()) == pytest.approx(0.5 * 0.02 * float(before.norm()), rel=1e-4)


def test_the_rate_and_weight_decay_of_dino_are_the_official_ones():
    """Both as they are when the optimizer takes its step: 10 epochs of 4 steps, 2 of warm-up whose last step has the peak."""
    rate, decay = GOLDEN["cases"]["dino_lr_schedule"], GOLDEN["cases"]["dino_wd_schedule"]
    config = optimizer_config(
        "adamw",
        base_lr=5e-4 * 256 / 4,
        weight_decay=0.04,
        final_weight_decay=0.4,
        warmup_epochs=2,
        inclusive_warmup=True,
        final_lr=1e-6 / 5e-4,
    )
    watch = fit(make("dino", optimizer=config), epochs=10)
    matrices = next(i for i, wd in enumerate(watch.decays[0]) if wd)
    assert [watch.lrs[i][matrices] for i in rate["params"]["idx"]] == pytest.approx(rate["value"], rel=1e-9)
    assert [watch.decays[i][matrices] for i in decay["params"]["idx"]] == pytest.approx(decay["value"], rel=1e-9)
    assert {step[1 - matrices] for step in watch.decays} == {0.0}


# ---------------------------------------------------------------------------------------------- 29, 31: batch normalisation
@pytest.mark.parametrize("name", METHODS)
def test_29_batch_statistics_are_over_one_view_or_over_both(name):
    method, seen = make(name), []
    method.backbone[1].register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[i] for i in (0, 2))))
    method.step(two_views(local_crops=2), {})
    together = name in ("simclr", "dino")
    globals_ = [(12, 6)] if together else [(6, 6)] if name == "moco" else [(6, 6), (6, 6)]  # a local view of MoCo is a query
    assert seen == [*globals_, (12, 2)]


def test_31_keys_are_computed_in_another_order_and_come_back_in_theirs():
    method, seen = make("moco", Flat(), queue_size=32), []
    method.teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    x = two_views(batch=8)[1]
    orders = []
    for method.steps_done in range(3):
        keys = method.keys(x, 1)
        torch.testing.assert_close(keys, unit(method.projector(method.backbone(x))).detach())
        orders.append(tuple(int((x == row).flatten(1).all(1).nonzero()) for row in seen[-1]))
        assert sorted(orders[-1]) == list(range(8))
        assert orders[-1] != tuple(range(8))
    assert len(set(orders)) == 3
    method.keys(x, 0)
    assert not torch.equal(seen[-1], seen[-2])  # the other direction has an order of its own


def test_31_shuffling_takes_queries_and_keys_through_different_statistics():
    """One process that stands in for four devices: the images that share a BN with a key are not those that share one with its query."""
    torch.manual_seed(0)
    method, seen = make("moco", bn_groups=4, queue_size=32), []
    method.teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    x = two_views(batch=8)[1]
    method.keys(x, 1)
    order = [int((x == row).flatten(1).all(1).nonzero()) for row in seen[0]]
    mates = {frozenset(order[i : i + 2]) for i in range(0, 8, 2)}
    assert mates != {frozenset((i, i + 1)) for i in range(0, 8, 2)}
    straight = unit(method.teacher(x))
    assert not torch.allclose(method.keys(x, 1), straight, atol=1e-3)


def test_31_groups_are_of_the_training_batch_only():
    method = make("moco", bn_groups=4).eval()
    assert method.backbone(torch.randn(5, 3, 8, 8)).shape == (5, 12)
    with pytest.raises(UserError, match=r"cut into method\.bn_groups=4 parts"):
        method.train().backbone(torch.randn(5, 3, 8, 8))
    with pytest.raises(UserError, match="has none: set it to 1"):
        make("moco", Flat(), bn_groups=4)


# ---------------------------------------------------------------------------------------------- 32, 33: half precision
HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALF)
def test_32_sums_over_a_matrix_of_dimensions_do_not_overflow(dtype):
    g = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(16, 2048, generator=g).to(dtype).requires_grad_() for _ in range(2))
    for function in (lambda a, b: barlow_twins_loss(a, b, 1.0), vicreg_loss):
        with torch.autocast("cpu", dtype=dtype):
            loss = function(z1, z2)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        z1.grad = None
        loss.backward()
        assert torch.isfinite(z1.grad).all()
    assert float(barlow_twins_loss(z1, z2, 1.0).detach()) > torch.finfo(torch.float16).max  # it would have


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    "function",
    [
        lambda x: nt_xent(x[0], x[1], 0.07),
        lambda x: info_nce(x[0], x[1], unit(x[2]), 0.07),
        lambda x: contrastive(*x, 0.07),
        lambda x: byol_loss(*x),
        lambda x: simsiam_loss(*x),
        lambda x: dino_loss(x, F.softmax(x[:2].float() / 0.04, -1), 0.07),
        lambda x: barlow_twins_loss(x[0], x[1], 0.0051),
        lambda x: vicreg_loss(x[0], x[1]),
    ],
    ids="nt_xent info_nce moco_v3 byol simsiam dino barlow_twins vicreg".split(),
)
def test_33_a_zero_row_and_a_sharp_temperature_stay_finite(function, dtype):
    x = (20 * torch.randn(4, 8, 32, generator=torch.Generator().manual_seed(0))).to(dtype)
    x[:, 0] = 0
    x.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = function(x)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


# ---------------------------------------------------------------------------------------------- 42 to 44: views
def views_of(name, size, local_crops=0):
    """The views that conf/augment/`name` describes at `size` pixels."""
    config = yaml.safe_load((conf_dir() / f"augment/{name}.yaml").read_text())
    chosen = {k.split("@")[1]: v for d in config.pop("defaults") if isinstance(d, dict) for k, v in d.items()}
    parts = {slot: yaml.safe_load((conf_dir() / f"augment/view/{view}.yaml").read_text()) for slot, view in chosen.items()}
    return resolve_all({**parts, **config, "local_crops": local_crops}, size)


BYOL_LIKE = {"colours": (0.4, 0.4, 0.2, 0.1), "jitter_p": 0.8, "gray": 0.2, "flip": 0.5, "blur": [1.0, 0.1], "solarize": [0.0, 0.2]}
MOCO_LIKE = {**BYOL_LIKE, "colours": (0.4, 0.4, 0.4, 0.1), "blur": [0.5, 0.5], "solarize": [0.0, 0.0]}
PAPERS = {  # at 224 pixels
    "simclr": {**MOCO_LIKE, "colours": (0.8, 0.8, 0.8, 0.2), "scale": (0.08, 1.0), "how": "bicubic"},
    "moco": {**MOCO_LIKE, "scale": (0.2, 1.0), "how": "bilinear"},
    "simsiam": {**MOCO_LIKE, "scale": (0.2, 1.0), "how": "bilinear"},
    "moco_v3": {**BYOL_LIKE, "scale": (0.08, 1.0), "how": "bilinear"},
    "byol": {**BYOL_LIKE, "scale": (0.08, 1.0), "how": "bicubic"},
    "barlow_twins": {**BYOL_LIKE, "scale": (0.08, 1.0), "how": "bicubic"},
    "vicreg": {**BYOL_LIKE, "scale": (0.08, 1.0), "how": "bicubic"},
    "dino": {**BYOL_LIKE, "scale": (0.4, 1.0), "how": "bicubic"},
}


@pytest.mark.parametrize("name", PAPERS)
def test_42_only_the_right_view_is_blurred_and_solarized(name):
    views = views_of(name, 224)
    assert [v.blur_p for v in views] == PAPERS[name]["blur"]
    assert [v.solarize_p for v in views] == PAPERS[name]["solarize"]


def test_42_a_probability_is_that_of_happening():
    """1000 draws of BYOL's two blurs and of its solarization, on images that each changes."""
    first, second = views_of("byol", 224)
    x = torch.randint(0, 256, (250, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for view, field, wanted in ((first, "blur_p", 1.0), (second, "blur_p", 0.1), (second, "solarize_p", 0.2)):
        off = {"flip": 0.0, "jitter_p": 0.0, "gray": 0.0, "blur_p": 0.0, "solarize_p": 0.0, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
        visible = {"size": 8, "interpolation": "bilinear", "blur_kernel": 3, "blur_sigma": (1.0, 2.0)}
        only = {**vars(view), **off, **visible, field: getattr(view, field)}
        engine = KorniaEngine([type(view)(**only)], (0.0,) * 3, (1.0,) * 3)
        y = torch.cat([engine(x, seed)[0] for seed in range(4)])
        changed = (y - x.repeat(4, 1, 1, 1) / 255).abs().amax((1, 2, 3)) > 1e-3
        assert float(changed.float().mean()) == pytest.approx(wanted, abs=0.04), field


@pytest.mark.parametrize("name", PAPERS)
def test_43_views_are_those_of_the_paper(name):
    wanted = PAPERS[name]
    for i, v in enumerate(views_of(name, 224)):
        assert (v.brightness, v.contrast, v.saturation, v.hue) == pytest.approx(wanted["colours"])
        assert (v.jitter_p, v.gray, v.flip) == (wanted["jitter_p"], wanted["gray"], wanted["flip"])
        assert (v.scale, v.ratio) == (wanted["scale"], pytest.approx((3 / 4, 4 / 3)))
        assert (v.interpolation, v.size, v.blur_kernel, v.blur_sigma) == (wanted["how"], 224, 23, (0.1, 2.0))
        order = [type(op).__name__.removeprefix("Random") for op in operations(v) if type(op).__name__ != "Clamp"]
        last = ["GaussianBlur"] * bool(wanted["blur"][i]) + ["Solarize"] * bool(wanted["solarize"][i])
        assert order == ["ResizedCrop", "HorizontalFlip", "ColorJitter", "Grayscale", *last]


def test_43_moco_v1_jitters_all_images_up_to_four_tenths_of_the_hue():
    v = resolve(yaml.safe_load((conf_dir() / "augment/view/moco_v1.yaml").read_text()), 224)
    assert (v.jitter_p, v.hue, v.blur_p, v.gray, v.scale) == (1.0, 0.4, 0.0, 0.2, (0.2, 1.0))


def test_43_local_views_are_small():
    *_, local = views_of("dino", 224, local_crops=8)
    assert (local.size, local.scale, local.blur_p, local.solarize_p, local.interpolation) == (96, (0.05, 0.4), 0.5, 0.0, "bicubic")
    assert len(views_of("dino", 224, local_crops=8)) == 10


def test_44_every_batch_draws_views_of_its_own():
    method, indices = make("simclr"), []

    class Order(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            indices.append(batch["index"].tolist())

    fit(method, Order(), accumulate=2)
    assert len(set(method.augment.seeds)) == 8
    first, second = (list(itertools.chain(*part)) for part in (indices[:4], indices[4:]))
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second
    engine = KorniaEngine(views_of("moco", 32), (0.5,) * 3, (0.25,) * 3)
    x = pictures(4).pixels
    a, b = engine(x, method.augment.seeds[0]), engine(x, method.augment.seeds[4])
    assert not torch.allclose(a[0], a[1], atol=0.1)
    assert not torch.allclose(a[0], b[0], atol=0.1)


# ---------------------------------------------------------------------------------------------- 45 to 48, 52: backbones
def test_45_moco_v3_draws_a_transformer_as_the_official_code_does():
    """Xavier-uniform, q, k and v each a matrix of its own: standard deviation sqrt(2 / (in + out)), biases zero."""
    net = VisionTransformer(img_size=16, patch_size=4, embed_dim=192, depth=1, num_heads=3, num_classes=0)
    names = dict(moco_v3_vit(net).named_parameters())
    for name, out in (("attn.qkv", 192), ("attn.proj", 192), ("mlp.fc1", 768), ("mlp.fc2", 768)):
        assert float(names[f"blocks.0.{name}.weight"].std()) == pytest.approx(math.sqrt(2 / (192 + out)), rel=0.02)
        assert not names[f"blocks.0.{name}.bias"].any()
    assert float(names["patch_embed.proj.weight"].std()) == pytest.approx(math.sqrt(2 / (48 + 192)), rel=0.05)
    net.pretrained = True
    with pytest.raises(UserError, match="would lose the pretrained ones"):
        make("moco_v3", net)
    for name in ("vit_little_patch16_reg1_gap_256", "xcit_nano_12_p16_224", "vit_tiny_r_s16_p8_224"):  # no class token; other patches
        assert not is_vit(timm.create_model(name, num_classes=0))


def test_45_patches_and_positions_of_moco_v3_never_move():
    method = make("moco_v3", vit(), optimizer=optimizer_config("adamw", weight_decay=0.5, base_lr=0.5, warmup_epochs=0))
    names = ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed")
    before = {k: v.detach().clone() for k, v in method.backbone.named_parameters()}
    fit(method, batches=5)
    for key, p in method.backbone.named_parameters():
        assert torch.equal(p, before[key]) is (key in names), key
    for key, p in method.teacher.network[0].named_parameters():
        assert torch.equal(p, before[key]) is (key in names), key


def test_46_collapse_is_seen():
    z = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    assert feature_std(z) == pytest.approx(1.0, abs=0.05)
    assert effective_rank(z) > 50
    constant = z[:1] + 1e-4 * z
    assert feature_std(constant) < 1e-3
    thin = z[:, :1] * z[:1]
    for features, word in ((z, "Healthy"), (constant, "Collapsed"), (thin, "Dimensional")):
        assert verdict({"feature_std": feature_std(features), "effective_rank": effective_rank(features)}, 64, 512).startswith(word)


def test_46_dino_reports_how_its_teacher_assigns():
    out = make("dino").step(two_views(local_crops=1), {})
    assert 0 < float(out["teacher_entropy"]) < 1
    assert 0 < float(out["marginal_entropy"]) <= 1
    uniform, one = torch.full((2, 6, 10), 0.1), F.one_hot(torch.zeros(2, 6, dtype=torch.long), 10).float()
    assert float(assignment_entropies(uniform)["teacher_entropy"]) == pytest.approx(1.0, abs=1e-5)
    assert float(assignment_entropies(one)["marginal_entropy"]) == pytest.approx(0.0, abs=1e-5)
    shared = torch.eye(10)[None]  # every image certain, and every prototype used
    found = {k: round(float(v), 4) for k, v in assignment_entropies(shared).items()}
    assert found == {"teacher_entropy": 0.0, "marginal_entropy": 1.0, "prototypes_used": shared.shape[-1]}


@pytest.mark.parametrize("name", ["byol", "dino"])
def test_47_probing_leaves_the_method_as_it_is(name):
    def judge(trainer, module):
        before = {k: v.clone() for k, v in module.state_dict().items()}
        modes = [m.training for m in module.modules()]
        extract(module.evaluated, pictures(9).pixels, 8, (0.5,) * 3, (0.25,) * 3, "cpu", batch_size=4)
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())  # weights and batch statistics
        assert [m.training for m in module.modules()] == modes

    states = []
    for callbacks in ((), (OnlineProbe(12, 3), When("on_train_epoch_end", judge))):
        torch.manual_seed(0)
        method = make(name)
        fit(method, *callbacks)
        states.append(method.state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


@pytest.mark.parametrize("name", METHODS)
def test_48_features_are_those_of_the_backbone_and_of_dinos_teacher(name):
    method, x = make(name), two_views()[0]
    out = method.step([x, x], {})
    assert out["features"].shape == (6, 12)
    assert method(x).shape == (6, 12)
    assert method.evaluated is (method.teacher.network[0] if name == "dino" else method.backbone)
    assert len(out["z"]) == 6


def test_52_positions_are_resampled_to_the_grid_of_the_image():
    model, seen = create("vit_tiny_patch16_224", 224), []
    model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.eval()
    with torch.no_grad():
        for size in (96, 224):
            x = torch.randn(1, 3, size, size)
            model(x)
            patches = model.patch_embed(x).flatten(1, 2)
            assert seen[-1].shape[1] == (size // 16) ** 2 + 1
            assert patches.shape[1] == (size // 16) ** 2
        torch.testing.assert_close(seen[-1][:, 1:], patches + model.pos_embed[:, 1:], rtol=0, atol=1e-6)  # as they are


def test_health_is_measured_after_optimizer_steps_only():
    watch, steps = Health(every_n_steps=1), []
    seen = When("on_train_batch_end", lambda trainer, module: steps.append((trainer.global_step, bool(watch.projections), watch._last)))
    fit(make("simclr"), watch, seen, accumulate=2, epochs=1)
    assert steps == [(0, False, 0), (1, True, 1), (1, True, 1), (2, True, 2)]


def test_a_warning_needs_a_finding_again(caplog):
    watch = Health(every_n_steps=1)
    features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    constant, line = torch.ones(64, 8), torch.linspace(-1, 1, 64)[:, None] * torch.ones(8)

    def see(step, z):
        trainer = SimpleNamespace(global_step=step, loggers=[], is_global_zero=True)
        watch.on_train_batch_end(trainer, None, {"features": features, "z": z}, {}, 0)
        return watch.finding

    assert [see(1, constant), see(2, features), see(3, line), see(4, features), see(5, line)] == [None] * 5
    assert "projections vary along" in see(6, line)
    assert see(7, line + 0.01 * features) is not None  # the same in other numbers is no second warning
    assert len(caplog.records) == 1
    assert "the same projection" in see(8, constant)
    assert len(caplog.records) == 2
    assert see(9, features) is None
    assert see(10, line[:, :1]) is None
    assert see(11, line[:, :1]) is None  # a projection to one dimension is asked for

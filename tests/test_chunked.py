"""A batch in chunks has the gradient of the whole, keeps no activations, and leaves running statistics as one pass would."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from conftest import SMOKE
from test_pitfalls import Flat, Net, fit, make, two_views, vit
from timm.models.convnext import ConvNeXtBlock
from torch import nn

from ssl_zoo.collapse.teacher import Teacher
from ssl_zoo.config import compose
from ssl_zoo.errors import UserError
from ssl_zoo.nn.batchnorm import GroupedBatchNorm, group_batchnorm
from ssl_zoo.nn.chunked import in_chunks, limit

pytestmark = pytest.mark.usefixtures("one_thread")
B = 7


class ConvNet(nn.Sequential):
    """Two blocks of a ConvNeXt, normalised by layer."""

    num_features = 12

    def __init__(self):
        blocks = [ConvNeXtBlock(12, kernel_size=3, ls_init_value=None) for _ in range(2)]
        super().__init__(nn.Conv2d(3, 12, 2, 2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


NETS = {"vit": vit, "convnext": ConvNet}


def method(name, net, chunk_size=None, dtype=torch.float64, **options):
    torch.manual_seed(3)
    return make(name, net(), chunk_size=chunk_size, **options).to(dtype)


def after_one_step(module, local_crops=2, batch=B):
    """Loss, gradients, and the state that the step leaves (teacher, queue, center, running statistics)."""
    views = [v.to(next(module.parameters()).dtype) for v in two_views(local_crops, batch)]
    module.before_step()
    out = module.step(views, {})
    out["loss"].backward()
    module.after_step()
    grads = {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
    return {"loss": out["loss"].detach(), "features": out["features"].detach()} | grads, module.state_dict()


def same(found, wanted, tolerance):
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for key, value in b.items():
            assert float((a[key] - value).double().norm()) <= tolerance * max(1.0, float(value.double().norm())), key


# ---------------------------------------------------------------------------------------------- the gradient
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ["simclr", "moco_v3"])
def test_the_gradient_is_that_of_the_whole_batch(name, net, dtype, tolerance):
    """For every chunk size up to all rows of a forward (two views of SimCLR), and with the local views' forwards of their own."""
    crops = 0 if net == "vit" and dtype == torch.float64 else 2  # timm resamples positions for them in float32
    wanted = after_one_step(method(name, NETS[net], dtype=dtype), crops)
    assert sum(float(g.abs().sum()) for k, g in wanted[0].items() if k.startswith("backbone")) > 0.1
    for chunk_size in (1, 2, 3, B - 1, B, 2 * B):
        same(after_one_step(method(name, NETS[net], chunk_size, dtype), crops), wanted, tolerance)


@pytest.mark.parametrize("name", ["moco", "byol", "simsiam", "dino", "barlow_twins", "vicreg"])
def test_every_method_trains_in_chunks(name):
    same(after_one_step(method(name, ConvNet, 3)), after_one_step(method(name, ConvNet)), 1e-10)


def test_what_is_dropped_at_random_is_the_same_the_second_time():
    class Drops(Flat):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5, self.training)

    net = Drops().double()
    x = torch.randn(8, 3, 8, 8, dtype=torch.double)
    grads = []
    for forward in (lambda: torch.cat([net(c) for c in x.split(2)]), lambda: in_chunks(limit(net, 2), x)):
        torch.manual_seed(0)
        net.zero_grad()
        h = forward()
        torch.randn(5)  # others draw before the backward pass
        h.square().sum().backward()
        grads.append(net[1].weight.grad.clone())
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_half_precision_adds_up_in_float32():
    """The weights' copies in bfloat16 are not shared by chunks: with chunks of two the error is that of the whole batch in bfloat16."""

    def gradient(chunk_size, half):
        net = limit(vit(), chunk_size)
        net.load_state_dict(state)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            h = in_chunks(net, x)
        F.cross_entropy(F.normalize(h.float()) @ F.normalize(h.float()).T / 0.1, torch.arange(len(x))).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    torch.manual_seed(0)
    state, x = vit().state_dict(), torch.randn(128, 3, 8, 8)
    exact = gradient(None, False)
    error = {size: float((gradient(size, True) - exact).norm() / exact.norm()) for size in (None, 2)}
    assert 0 < error[2] < 1.15 * error[None]


def test_several_inputs_are_cut_alike():
    class Two(Flat):
        def forward(self, x, shift):
            return super().forward(x + shift)

    net, x = Two(), torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(in_chunks(limit(net, 2), x, 2 * x), net(x, 2 * x))


# ---------------------------------------------------------------------------------------------- memory
@pytest.mark.parametrize("name", ["simclr", "moco_v3"])
def test_no_activations_are_kept_and_no_forward_is_larger(name):
    def live(chunk_size):
        module, kept, rows = method(name, vit, chunk_size), [], []
        for net in (module.backbone, *([module.teacher.network[0]] if name == "moco_v3" else [])):
            net.blocks[0].mlp.act.register_forward_hook(lambda _m, _x, out: (kept.append(weakref.ref(out)), rows.append(len(out)))[0])
        loss = module.step([v.double() for v in two_views(0, B)], {})["loss"]
        alive, count = sum(ref() is not None for ref in kept), len(rows)
        loss.backward()
        return alive, max(rows), len(rows) - count

    alive, rows, again = live(None)
    assert alive > 0
    assert (rows, again) == (B if name == "moco_v3" else 2 * B, 0)
    alive, rows, again = live(2)
    assert (alive, rows) == (0, 2)
    assert again == (8 if name == "moco_v3" else 7)  # every chunk of the student once more, none of the teacher


def test_what_is_judged_is_not_chunked():
    """Hooks of the evaluation see one forward."""
    module, seen = method("byol", vit, 2), []
    module.backbone.blocks[0].register_forward_hook(lambda _m, _x, out: seen.append(len(out)))
    module.eval()(two_views(0, B)[0].double())
    assert seen == [B]


# ---------------------------------------------------------------------------------------------- batch normalisation
@pytest.mark.parametrize("name", ["simclr", "moco_v3", "byol", "barlow_twins"])
def test_batch_statistics_are_those_of_groups(name):
    """Gradient, running statistics and their counts of chunks of three are those of a network whose BN takes groups of three."""
    rows = {"simclr": 12}.get(name, 6)
    options = {"sync_bn": False}
    wanted = after_one_step(method(name, lambda: group_batchnorm(Net(), rows // 3), **options), 0, 6)
    found = after_one_step(method(name, Net, 3, **options), 0, 6)
    same(found, wanted, 1e-10)
    assert int(found[1]["backbone.1.num_batches_tracked"]) == (1 if name == "simclr" else 2)  # forwards, as many as there are views
    whole = after_one_step(method(name, Net, **options), 0, 6)
    assert float((found[0]["backbone.0.weight"] - whole[0]["backbone.0.weight"]).abs().max()) > 1e-4


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_move_once(momentum):
    """By the mean over chunks of unequal size, whose rows all count the same; computing a chunk again moves nothing."""
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).double()
    x = torch.randn(8, 3, 4, 4, dtype=torch.double) + torch.arange(8.0)[:, None, None, None]
    net(x[:4])  # one update before
    before, wanted = copy.deepcopy(net[0]), 0
    for chunk in (x[:3], x[3:6], x[6:]):
        alone = copy.deepcopy(before)
        alone(chunk)
        wanted = wanted + len(chunk) / 8 * torch.stack([alone.running_mean, alone.running_var])
    out = in_chunks(limit(net, 3), x)
    for _ in range(2):
        torch.testing.assert_close(torch.stack([net[0].running_mean, net[0].running_var]), wanted, rtol=1e-12, atol=0)
        assert int(net[0].num_batches_tracked) == 2
        assert net[0].track_running_stats
        out.sum().backward(retain_graph=True)


def test_a_teachers_statistics_move_once():
    teacher = Teacher(limit(Net(), 3))
    with torch.no_grad():
        teacher(two_views(0, 8)[0])
    norm = teacher.network[0][1]
    assert int(norm.num_batches_tracked) == 1
    assert norm.running_mean.abs().max() > 0


def test_what_chunks_cannot_do_is_refused(caplog):
    for chunk_size in (1, 2):
        with pytest.raises(UserError, match="nothing to normalise over"):
            limit(Net(), chunk_size)
    with pytest.raises(UserError, match="bn_groups and chunk_size"):
        make("moco", bn_groups=2, chunk_size=3)
    with pytest.raises(UserError, match="at least 1"):
        limit(vit(), 0)
    assert "statistics" not in caplog.text
    limit(vit(), 1)
    assert not caplog.text
    limit(Net(), 3)
    assert "batch statistics over chunks of 3" in caplog.text
    assert not any(isinstance(m, GroupedBatchNorm) for m in Net().modules())
    assert compose("train", ["chunk_size=8"]).chunk_size == 8


# ---------------------------------------------------------------------------------------------- training
def test_training_in_chunks_is_training():
    """Steps of the Trainer that accumulate two batches, a teacher, local views; and the same from a checkpoint in the middle."""
    runs = {}
    for chunk_size in (None, 3):
        module = method("moco_v3", vit, chunk_size)
        runs[chunk_size] = fit(module, batches=4, accumulate=2, epochs=2).losses, module.state_dict()
    assert runs[3][0] == pytest.approx(runs[None][0], abs=1e-10)
    same(runs[3][1:], runs[None][1:], 1e-9)


@pytest.mark.parametrize(("name", "net"), [("simclr", Net), ("moco_v3", vit)])
def test_a_resumed_run_in_chunks_takes_the_same_steps(tmp_path, name, net):
    class Drops(nn.Module):
        num_features = net().num_features

        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return F.dropout(self.net(x), 0.2, self.training)

    options = {"vit": False} if name == "moco_v3" else {}
    first = fit(method(name, Drops, 3, torch.float32, **options), epochs=2, save={3: tmp_path / "3.ckpt"})
    second = fit(method(name, Drops, 3, torch.float32, **options), epochs=2, ckpt=tmp_path / "3.ckpt")
    assert second.losses == first.losses[3:]
    assert len(set(first.losses)) == 8


def test_dino_in_micro_batches_is_dino_in_one():
    """Accumulation: the center moves once a step, by the mean of all micro-batches, so their gradients are that of the whole batch."""
    whole, parts = (method("dino", Flat) for _ in range(2))
    views = [v.double() for v in two_views(0, 8)]
    for _ in range(2):
        whole.step(views, {})["loss"].backward()
        for half in zip(*(v.chunk(2) for v in views), strict=True):
            (parts.step(list(half), {})["loss"] / 2).backward()
        for module in (whole, parts):
            module.after_step()
    same(*([{k: p.grad for k, p in m.named_parameters() if p.grad is not None} | m.state_dict()] for m in (parts, whole)), 1e-10)
    assert whole.center.value.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("net", [vit, Net])
def test_a_compiled_network_is_compiled_for_chunks(net):
    torch.manual_seed(0)
    plain, compiled = limit(net(), 3), limit(net(), 3)
    compiled.load_state_dict(plain.state_dict())
    compiled.compile(backend="aot_eager")
    found = []
    for module in (plain, compiled):
        for _ in range(2):
            in_chunks(module, two_views(0, B)[0]).square().sum().backward()
        found.append([{k: p.grad for k, p in module.named_parameters() if p.grad is not None} | module.state_dict()])
    same(*found, 1e-5)


@pytest.mark.slow
def test_a_run_in_chunks(cli, tmp_path):
    done = cli(*SMOKE, "recipe=none", "chunk_size=8", "epochs=1", "run=r", "evaluation.linear.final=false")
    assert done.returncode == 0, done.stderr
    assert "batch statistics over chunks of 8" in done.stderr + done.stdout
    assert "chunk_size: 8" in (tmp_path / "r" / "config.yaml").read_text()
    words = ["method=moco_v3", "backbone=vit_t", "backbone.kwargs={depth:1}", "trainer.accumulate_grad_batches=2", "trainer.compile=false"]
    done = cli(*SMOKE, *words, "chunk_size=5", "epochs=1", "run=v", "evaluation.linear.final=false")
    assert done.returncode == 0, done.stderr
    refused = cli(*SMOKE, "chunk_size=2", "run=n")
    assert refused.returncode == 2
    assert "nothing to normalise over" in refused.stderr

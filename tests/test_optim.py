"""Optimizers, parameter groups and schedules against golden values."""

import copy
import itertools
import math

import pytest
import timm.optim
import torch
from conftest import GOLDEN, ROOT, golden_input
from omegaconf import OmegaConf
from timm.models import VisionTransformer
from torch import nn

from ssl_zoo.errors import UserError
from ssl_zoo.methods.byol import BYOL
from ssl_zoo.methods.dino import DINO
from ssl_zoo.methods.moco import MoCo
from ssl_zoo.methods.moco_v3 import MoCoV3
from ssl_zoo.nn.text import TextTower
from ssl_zoo.optim.build import build_optimizer
from ssl_zoo.optim.groups import param_groups
from ssl_zoo.optim.lars import LARS
from ssl_zoo.optim.schedules import cosine, schedule, warmup_cosine

CASES = GOLDEN["cases"]


def config(name="lars", **changes):
    """The fields of conf/optimizer/<name>.yaml."""
    return {**OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "optimizer" / f"{name}.yaml")), **changes}


def built(method, **changes):
    """A small method that has not met a trainer."""
    backbone = nn.Linear(2, 4)
    backbone.num_features = 4
    return method(backbone, hidden_dim=4, **({"out_dim": 4} if method is DINO else {"proj_dim": 4}), **changes)


# ------------------------------------------------------------------------------------ LARS
def three_steps(name, rates=(0.4, 0.4, 0.4), excluded=False):
    """The golden weight after three steps, as a matrix or as one that is neither decayed nor scaled."""
    w = golden_input("lars_w")
    net = nn.Module()
    net.w = nn.Parameter(w.flatten() if excluded else w)
    optimizer = build_optimizer(net, config(name, base_lr=1.0, weight_decay=0.01))
    for i, lr in enumerate(rates):
        net.w.grad = golden_input(f"lars_g{i}").reshape(net.w.shape)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    return net.w.detach().flatten()


def score(w):
    return (torch.arange(1, 13) * w).sum().item()


@pytest.mark.parametrize(
    ("case", "name", "excluded"),
    [
        ("lars_3steps", "lars", False),
        ("lars_3steps_excluded", "lars", True),
        ("lars_3steps_bolts_variant", "lars_timm", False),
        ("lars_3steps_excluded", "lars_timm", True),
        ("lars_3steps_excluded", "sgd", True),
    ],
)
def test_three_steps_are_golden(case, name, excluded):
    w = three_steps(name, excluded=excluded)
    assert score(w) == pytest.approx(CASES[case]["value"], rel=1e-10)
    if "w" in CASES[case]:
        assert w.tolist() == pytest.approx(CASES[case]["w"], rel=1e-10)


def test_the_forms_of_lars_differ():
    official, timms = score(three_steps("lars")), score(three_steps("lars_timm"))
    assert official != pytest.approx(timms, rel=1e-6)
    assert official != pytest.approx(CASES["lars_3steps_bolts_variant"]["value"], rel=1e-6)
    assert official != pytest.approx(CASES["lars_3steps_excluded"]["value"], rel=1e-2)
    changing = CASES["lars_3steps_tf_lr_inside_momentum"]  # that form remembers the rates of earlier steps, this one does not
    assert score(three_steps("lars", changing["params"]["lr"])) != pytest.approx(changing["value"], rel=1e-5)


def test_lars_multiplies_its_whole_momentum_by_the_rate_of_the_step():
    w, (still, moving) = golden_input("lars_w").flatten(), (three_steps("lars", (0.0, 0.0, lr)) for lr in (0.0, 0.1))
    assert torch.equal(still, w)
    buffer = torch.zeros_like(w)
    for g in (golden_input(f"lars_g{i}").flatten() + 0.01 * w for i in range(3)):
        buffer = 0.9 * buffer + 0.001 * w.norm() / g.norm() * g
    torch.testing.assert_close(moving, w - 0.1 * buffer, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lars_scales_without_weight_decay_and_survives_zeros(weight_decay):
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([w], lr=0.5, momentum=0.0, weight_decay=weight_decay)
    w.grad = torch.full((2, 2), 7.0)
    optimizer.step()
    assert (1 - w).norm().item() == pytest.approx(0.5 * 0.001 * 2, rel=1e-3)  # lr * trust * ||w||
    zero, without = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([zero, without, nn.Parameter(torch.ones(1))], lr=0.5, momentum=0.0)
    zero.grad, without.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(zero.detach(), torch.full((2, 2), -0.5))
    assert torch.equal(without.detach(), torch.ones(2, 2))


def test_lars_leaves_gradients_alone_and_is_saved():
    net = nn.Linear(3, 2)
    optimizer = build_optimizer(net, config(weight_decay=0.1))
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    optimizer.step()
    wanted = copy.deepcopy(net.state_dict())
    net.load_state_dict(saved[0])
    resumed = build_optimizer(net, config())
    resumed.load_state_dict(saved[1])
    resumed.step()
    torch.testing.assert_close(net.state_dict(), wanted, rtol=0, atol=0)
    assert all((p.grad == 1).all() for p in net.parameters())


# ------------------------------------------------------------------------------------ schedules
@pytest.mark.parametrize(("name", "final"), [("lr_warmup_cosine", 0.0), ("lr_barlow_end0.001", 0.0016)])
def test_warmup_cosine_is_golden(name, final):
    p, wanted = CASES[name]["params"], pytest.approx(CASES[name]["value"], rel=1e-10)
    assert [warmup_cosine(s, p["total"], p["warm"], p["peak"], final) for s in p["steps"]] == wanted
    rule = schedule(config(warmup_epochs=p["warm"] / 5, final_lr=final / p["peak"]), p["total"], per_epoch=5)
    assert [p["peak"] * rule(s) for s in p["steps"]] == wanted
    assert warmup_cosine(p["total"], p["total"], p["warm"], p["peak"], final) == final


def test_an_inclusive_warmup_is_dinos():
    p, wanted = CASES["dino_lr_schedule"]["params"], pytest.approx(CASES["dino_lr_schedule"]["value"], rel=1e-10)
    total, warmup = p["epochs"] * p["iters_per_epoch"], p["warmup_epochs"] * p["iters_per_epoch"]
    assert [warmup_cosine(i, total, warmup, p["base"], p["final"], inclusive=True) for i in p["idx"]] == wanted
    fields = config("adamw", warmup_epochs=p["warmup_epochs"], inclusive_warmup=True, final_lr=p["final"] / p["base"])
    rule = schedule(fields, total, p["iters_per_epoch"])
    assert [p["base"] * rule(i) for i in p["idx"]] == wanted
    assert warmup_cosine(warmup - 1, total, warmup) < 1 == warmup_cosine(warmup - 1, total, warmup, inclusive=True)


@pytest.mark.parametrize("method", [BYOL, DINO, MoCo])
def test_weight_decay_rises_as_dinos(method):
    p = CASES["dino_wd_schedule"]["params"]
    module = built(method)
    module.steps_total = p["epochs"] * p["iters_per_epoch"]
    optimizer = build_optimizer(module, config("adamw", weight_decay=p["base"], final_weight_decay=p["final"]))
    matrices, vectors = optimizer.param_groups
    for module.steps_done, wanted in zip(p["idx"], CASES["dino_wd_schedule"]["value"], strict=True):
        module.on_before_optimizer_step(optimizer)
        assert matrices["weight_decay"] == pytest.approx(wanted, rel=1e-10)
        assert cosine(module.progress(), p["base"], p["final"]) == pytest.approx(wanted, rel=1e-10)
        assert vectors["weight_decay"] == 0.0


@pytest.mark.parametrize("method", [BYOL, DINO, MoCoV3, MoCo])
def test_momentum_of_the_teacher_rises_to_one_but_in_moco(method):
    p, golden = CASES["ema_byol_base0.996"]["params"], CASES["ema_byol_base0.996"]["value"]
    module, seen = built(method, momentum=0.996), []
    module.teacher.update = lambda *parts, momentum: seen.append(momentum)
    module.steps_total = p["total"]
    for module.steps_done in p["steps"]:
        module.before_step()
        module.after_step()
    assert seen == pytest.approx([0.996] * len(golden) if method is MoCo else golden, rel=1e-12)
    assert [cosine(s / p["total"], 0.996, 1.0) for s in p["steps"]] == pytest.approx(golden, rel=1e-12)


@pytest.mark.parametrize("warmup", [0, 2])
def test_milestones_drop_the_rate_to_a_tenth_after_a_warmup(warmup):
    rule = schedule(config("sgd", milestones=[0.6, 0.8], warmup_epochs=warmup), 100, per_epoch=10)
    start = [s / 20 for s in range(20)] if warmup else [1.0] * 20
    assert [rule(s) for s in range(100)] == pytest.approx([*start, *[1.0] * 40, *[0.1] * 20, *[0.01] * 20])


@pytest.mark.parametrize(("total", "epochs", "steps"), [(100, "auto", 10), (100, 3, 15), (100, 0, 0), (4, 100, 4), (1, "auto", 0)])
def test_a_warmup_is_a_tenth_of_training_or_a_number_of_epochs(total, epochs, steps):
    rule = schedule(config(warmup_epochs=epochs), total, per_epoch=5)
    rates = [rule(s) for s in range(total + 1)]
    assert sum(b > a for a, b in itertools.pairwise(rates)) == (steps if steps < total else total - 1)
    assert all(0 <= r <= 1 for r in rates)
    assert rates[-1] == 0.0


def test_ends_of_training_do_not_divide_by_zero():
    for inclusive in (False, True):
        rates = [warmup_cosine(s, total, warmup, inclusive=inclusive) for total in (1, 2, 3) for warmup in (0, 1, 2, 3) for s in range(5)]
        assert all(math.isfinite(r) and 0 <= r <= 1 for r in rates)


# ------------------------------------------------------------------------------------ groups
def network():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    net.register_parameter("frozen", nn.Parameter(torch.ones(2, 2), requires_grad=False))
    net.register_parameter("scalar", nn.Parameter(torch.ones(())))
    return net


def test_norms_and_biases_are_neither_decayed_nor_scaled():
    net = network()
    matrices, vectors = param_groups(net, config(weight_decay=0.1), 1.0)
    assert len(matrices["params"]) == 2
    assert all(p.ndim > 1 for p in matrices["params"])
    assert (matrices["weight_decay"], matrices["trust"]) == (0.1, True)
    assert len(vectors["params"]) == 5
    assert (vectors["weight_decay"], vectors["final_weight_decay"], vectors["trust"]) == (0.0, None, False)
    assert all(p is not net.frozen for g in (matrices, vectors) for p in g["params"])
    decayed = param_groups(net, config(weight_decay=0.1, decay_norm_and_bias=True), 1.0)[1]
    assert (decayed["weight_decay"], decayed["trust"]) == (0.1, True)


@pytest.mark.parametrize("name", ["clip", "siglip", "adamw"])
def test_positions_of_both_towers_are_not_decayed_for_words(name):
    image, text = VisionTransformer(8, 4, embed_dim=8, depth=1, num_heads=2), TextTower(8, width=8, heads=2, layers=1, context=8)
    towers = nn.ModuleDict({"image": image, "text": text})
    names = {id(p): n for n, p in towers.named_parameters()}
    bare = {names[id(p)] for g in param_groups(towers, config(name), 1.0) if g["weight_decay"] == 0 for p in g["params"]}
    positions = {"image.cls_token", "image.pos_embed", "text.net.positional_embedding"}
    vectors = {n for n, p in towers.named_parameters() if p.ndim <= 1}
    assert positions <= set(names.values())
    assert bare == (vectors if name == "adamw" else vectors | positions)


def test_norms_and_biases_can_have_a_rate_of_their_own():
    optimizer = build_optimizer(network(), config(base_lr=0.2, bias_base_lr=0.0048), scale=8.0)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1.6, 0.0384])
    assert [g["lr"] for g in build_optimizer(network(), config(base_lr=0.2), 8.0).param_groups] == pytest.approx([1.6, 1.6])


def test_modules_of_fixed_rate_are_apart():
    net = network()
    groups = param_groups(net, config(weight_decay=0.1), 1.0, fixed_lr=[net[3]])
    fixed = [g for g in groups if g["fixed_lr"]]
    assert [id(p) for g in fixed for p in g["params"]] == [id(net[3].weight), id(net[3].bias)]
    assert [g["weight_decay"] for g in fixed] == [0.1, 0.0]
    assert sum(len(g["params"]) for g in groups) == 7


def test_optimizers_by_name():
    net = nn.Linear(3, 2)
    kinds = {"sgd": torch.optim.SGD, "lars": LARS, "lars_timm": timm.optim.Lars, "adamw": torch.optim.AdamW}
    for name, kind in kinds.items():
        assert type(build_optimizer(net, config(name))) is kind
    assert build_optimizer(net, config("sgd", momentum=0.8)).param_groups[0]["momentum"] == 0.8
    assert build_optimizer(net, config("sgd", momentum=None)).param_groups[0]["momentum"] == 0.9
    assert build_optimizer(net, config("lars_timm", trust_coefficient=0.02)).param_groups[0]["trust_coeff"] == 0.02
    assert build_optimizer(net, config("adamw", betas=[0.9, 0.95])).param_groups[0]["betas"] == (0.9, 0.95)
    assert {name: build_optimizer(net, config(name)).param_groups[0]["eps"] for name in ("adamw", "clip")} == {"adamw": 1e-8, "clip": 1e-6}
    with pytest.raises(UserError, match=r"optimizer\.momentum does not apply to adamw"):
        build_optimizer(net, config("adamw", momentum=0.9))

"""Optimizers and schedules against golden values."""

import pytest
import torch
from conftest import GOLDEN, golden_input
from torch import nn

from ssl_zoo.errors import UserError
from ssl_zoo.optim.build import build_optimizer
from ssl_zoo.optim.groups import param_groups
from ssl_zoo.optim.lars import LARS
from ssl_zoo.optim.schedules import warmup_cosine

BASE = {"weight_decay": 0.1, "decay_norm_and_bias": False}


def lars_steps(trust, wd):
    w = nn.Parameter(golden_input("lars_w"))
    optimizer = LARS([{"params": [w], "trust": trust}], lr=0.4, momentum=0.9, weight_decay=wd)
    for i in range(3):
        w.grad = golden_input(f"lars_g{i}")
        optimizer.step()
    return w.detach()


def test_lars_is_the_official_form():
    case = GOLDEN["cases"]["lars_3steps"]
    w = lars_steps(trust=True, wd=0.01)
    assert w.flatten().tolist() == pytest.approx(case["w"], rel=1e-10)
    score = float((torch.arange(1, 13) * w.flatten()).sum())
    assert score == pytest.approx(case["value"], rel=1e-10)
    assert score != pytest.approx(GOLDEN["cases"]["lars_3steps_bolts_variant"]["value"], rel=1e-6)


def test_lars_on_excluded_parameters_is_momentum_sgd():
    w = lars_steps(trust=False, wd=0.0)
    assert float((torch.arange(1, 13) * w.flatten()).sum()) == pytest.approx(GOLDEN["cases"]["lars_3steps_excluded"]["value"], rel=1e-10)


def test_lars_scales_without_weight_decay_and_survives_zeros():
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([w], lr=0.5, momentum=0.0)
    w.grad = torch.full((2, 2), 7.0)
    optimizer.step()
    assert float((1 - w).norm()) == pytest.approx(0.5 * 0.001 * 2, rel=1e-3)  # lr * trust * ||w||
    zero = nn.Parameter(torch.zeros(2, 2))
    optimizer = LARS([zero], lr=0.5, momentum=0.0)
    zero.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(zero.detach(), torch.full((2, 2), -0.5))


@pytest.mark.parametrize(("name", "final"), [("lr_warmup_cosine", 0.0), ("lr_barlow_end0.001", 0.0016)])
def test_warmup_cosine(name, final):
    case = GOLDEN["cases"][name]
    p = case["params"]
    assert [warmup_cosine(s, p["total"], p["warm"], p["peak"], final) for s in p["steps"]] == pytest.approx(case["value"], rel=1e-12)
    assert warmup_cosine(p["total"], p["total"], p["warm"], p["peak"], final) == final


def test_norms_and_biases_are_neither_decayed_nor_scaled():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    net.register_parameter("frozen", frozen)
    matrices, vectors = param_groups(net, 0.1, decay_norm_and_bias=False)
    assert all(p.ndim > 1 for p in matrices["params"])
    assert (matrices["weight_decay"], matrices["trust"]) == (0.1, True)
    assert len(vectors["params"]) == 4
    assert (vectors["weight_decay"], vectors["trust"]) == (0.0, False)
    assert all(p is not frozen for g in (matrices, vectors) for p in g["params"])
    assert param_groups(net, 0.1, decay_norm_and_bias=True)[1]["weight_decay"] == 0.1


def test_optimizers_by_name():
    net = nn.Linear(3, 2)
    assert build_optimizer(net, {"name": "sgd", "momentum": 0.8, **BASE}, 1.0).param_groups[0]["momentum"] == 0.8
    assert isinstance(build_optimizer(net, {"name": "lars", **BASE}, 1.0), LARS)
    assert build_optimizer(net, {"name": "adamw", "betas": [0.9, 0.95], **BASE}, 1.0).param_groups[0]["betas"] == (0.9, 0.95)
    with pytest.raises(UserError, match=r"optimizer\.momentum does not apply to adamw"):
        build_optimizer(net, {"name": "adamw", "momentum": 0.9, **BASE}, 1.0)

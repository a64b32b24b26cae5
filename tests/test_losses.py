"""Every loss against float64 golden values, in value and gradient, in half precision, and against what holds for any batch."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, golden_input
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssl_zoo.collapse.centering import Center, sinkhorn
from ssl_zoo.collapse.queue import Queue
from ssl_zoo.methods.barlow_twins import BarlowTwins, barlow_twins_loss
from ssl_zoo.methods.byol import BYOL, byol_loss
from ssl_zoo.methods.clip import clip_loss
from ssl_zoo.methods.dino import DINO, dino_loss
from ssl_zoo.methods.moco import MoCo, info_nce
from ssl_zoo.methods.moco_v3 import MoCoV3, contrastive
from ssl_zoo.methods.siglip import siglip_loss
from ssl_zoo.methods.simclr import SimCLR, nt_xent
from ssl_zoo.methods.simsiam import SimSiam, simsiam_loss
from ssl_zoo.methods.vicreg import VICReg, vicreg_loss
from ssl_zoo.nn.numerics import unit

CASES = GOLDEN["cases"]


pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------ golden values
class Inputs(dict):
    """Golden inputs by name, made when they are asked for; all of them would take a gradient."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def __missing__(self, name):
        self[name] = golden_input(name).to(self.dtype).requires_grad_()
        return self[name]

    def grads(self, name):
        """The gradients of an input as the golden file names it: "z1 (query)", "s0..s4 (all, stacked)"."""
        name = name.split()[0]
        names = [f"s{i}" for i in range(5)] if name == "s0..s4" else [name]
        return torch.cat([torch.zeros_like(self[n]) if self[n].grad is None else self[n].grad for n in names])


def score(x):
    """One number of a tensor [..., K]: column k counts k + 1 times."""
    return (x * torch.arange(1, x.shape[-1] + 1)).sum()


def moco(x, tau, query="z1", key="z2"):
    return info_nce(x[query], x[key], x["queue"].T, tau)


def enqueued(x, pointer=24):
    queue = Queue(32, 16)
    queue.keys, queue.pointer = x["queue"].T.detach().clone(), torch.tensor(pointer)
    queue.add(unit(x["z2"]))
    return queue


def centered(x, updates=0):
    center = Center(12).to(x["center0"].dtype)
    center.value = x["center0"][0]
    for _ in range(updates):
        center.value = center.value.detach().clone()
        center.add(torch.stack([x["t0"], x["t1"]]))
        center.move()
    return center


def dino(x, tt, views=5, factor=1.0, updates=0):
    probs = centered(x, updates)(factor * torch.stack([x["t0"], x["t1"]]), tt)
    return dino_loss(factor * torch.stack([x[f"s{i}"] for i in range(views)]), probs, 0.1)


def swav(x):
    """SwAV's swapped prediction is DINO's loss with codes for probabilities."""
    scores = torch.stack([0.3 * torch.tanh(x[f"c{i}"]) for i in range(4)])
    return dino_loss(scores, torch.stack([sinkhorn(s, 0.05, 3) for s in scores[:2]]), 0.1)


def learned(loss, name):
    """A loss of images and captions with the scale, and the bias, of a golden case."""
    params = CASES[name]["params"]
    rest = [params[k] for k in ("logit_scale", "scale", "bias") if k in params]
    return lambda x: loss(x["img"], x["txt"], *rest)


LOSSES = {
    **{name: learned(clip_loss, name) for name in ("clip_init_1_over_0.07", "clip_clamped_100")},
    **{name: learned(siglip_loss, name) for name in ("siglip_init_t10_b-10", "siglip_t100_b-5")},
    "nt_xent_tau0.1": lambda x: nt_xent(x["z1"], x["z2"], 0.1),
    "nt_xent_tau0.5": lambda x: nt_xent(x["z1"], x["z2"], 0.5),
    "moco_tau0.07": lambda x: moco(x, 0.07),
    "moco_tau0.2": lambda x: moco(x, 0.2),
    "moco_tau0.2_symmetric_mean": lambda x: (moco(x, 0.2) + moco(x, 0.2, "z2", "z1")) / 2,
    "moco_enqueue": lambda x: score(enqueued(x).keys.T) - enqueued(x).keys.sum(),  # counted from 0
    "moco_v3_tau0.2": lambda x: contrastive(x["p1"], x["p2"], x["z1"], x["z2"], 0.2),
    "moco_v3_tau1.0": lambda x: contrastive(x["p1"], x["p2"], x["z1"], x["z2"], 1.0),
    "byol": lambda x: byol_loss(x["p1"], x["p2"], x["z1"], x["z2"]),
    "simsiam": lambda x: simsiam_loss(x["p1"], x["p2"], x["z1"], x["z2"]),
    "dino_2g3l_tt0.04": lambda x: dino(x, 0.04),
    "dino_2g3l_tt0.07": lambda x: dino(x, 0.07),
    "dino_2g0l_tt0.04": lambda x: dino(x, 0.04, views=2),
    "dino_second_step": lambda x: dino(x, 0.04, updates=1),
    "dino_large_logits": lambda x: dino(x, 0.04, factor=1000.0),
    "dino_center_update": lambda x: score(centered(x, updates=1).value),
    "barlow_lam0.0051": lambda x: barlow_twins_loss(x["z1"], x["z2"], 0.0051),
    "barlow_lam0.005": lambda x: barlow_twins_loss(x["z1"], x["z2"], 0.005),
    "vicreg_official": lambda x: vicreg_loss(x["z1"], x["z2"]),
    "vicreg_official_hinge_active": lambda x: vicreg_loss(x["h1"] / 2, x["h2"] / 2),
    "sinkhorn_eps0.05_it3": lambda x: score(sinkhorn(0.3 * torch.tanh(x["c0"]), 0.05, 3)),
    "swav_2assign_4crops": swav,
}
VARIANTS = {  # other forms of a loss, on purpose not what it returns
    "moco_tau0.2": ["moco_tau0.2_queue_already_contains_batch"],
    "dino_2g3l_tt0.04": ["dino_2g3l_tt0.04_same_view_not_skipped", "dino_second_step"],
    "barlow_lam0.0051": ["barlow_lam0.0051_unbiased_std_variant"],
    "vicreg_official": ["vicreg_solo", "vicreg_paper"],
    "vicreg_official_hinge_active": ["vicreg_solo_hinge_active", "vicreg_paper_hinge_active"],
}


def check_gradients(case, x, rtol, factor=1.0):
    for key, wanted in case.get("grad", {}).items():
        assert x.grads(key).norm().item() == pytest.approx(factor * wanted["norm"], rel=rtol)
        first = pytest.approx(factor * wanted["first"], rel=rtol, abs=rtol * factor * wanted["norm"] / 100)
        assert x.grads(key).flatten()[0].item() == first
    for key in case.get("stopgrad", ()):
        assert key in x
        assert not x.grads(key).any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("dtype", "rtol", "grad_rtol"), [(torch.float64, 1e-10, 1e-6), (torch.float32, 1e-5, 1e-4)])
def test_value_and_gradient_are_golden(name, dtype, rtol, grad_rtol):
    case, x = CASES[name], Inputs(dtype)
    loss = LOSSES[name](x)
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(case["value"], rel=rtol)
    if "grad" in case:
        loss.backward()
        check_gradients(case, x, grad_rtol)


@pytest.mark.parametrize("name", LOSSES)
def test_value_is_not_that_of_another_form_of_the_loss(name):
    case, value = CASES[name], LOSSES[name](Inputs(torch.float64)).item()
    local = case.get("local_negatives_only_world2") or [math.inf]
    others = [case.get("official_tf_value"), sum(local) / len(local), case.get("world2_local_bn"), *case.get("scaled", {}).values()]
    others += [CASES[v]["value"] for v in VARIANTS.get(name, ())] + case.get("per_rank_only_world2", [])
    assert all(value != pytest.approx(other, rel=5e-3) for other in others if other is not None)


@pytest.mark.parametrize("name", ["clip_init_1_over_0.07", "clip_clamped_100", "siglip_init_t10_b-10", "siglip_t100_b-5"])
def test_scale_and_bias_have_golden_gradients(name):
    case, x = CASES[name], Inputs(torch.float64)
    log_scale = torch.tensor(case["params"]["log_param"], dtype=torch.float64, requires_grad=True)
    rest = [torch.tensor(case["params"]["bias"], dtype=torch.float64, requires_grad=True)] if "bias" in case["params"] else []
    (siglip_loss if rest else clip_loss)(x["img"], x["txt"], log_scale.exp(), *rest).backward()
    assert log_scale.grad.item() == pytest.approx(case["d_loss_d_log_scale"], rel=1e-7)
    assert [b.grad.item() for b in rest] == pytest.approx([case["d_loss_d_bias"] for _ in rest], rel=1e-7)


def test_every_golden_loss_is_tested():
    families = (
        "clip",
        "siglip",
        "nt_xent",
        "moco",
        "byol",
        "simsiam",
        "dino_2g",
        "dino_second",
        "dino_large",
        "dino_center",
        "barlow",
        "vicreg",
        "sinkhorn",
    )
    tested = {*LOSSES, *(v for variants in VARIANTS.values() for v in variants)}
    assert {name for name in CASES if name.startswith(families)} <= tested


def test_the_queue_gives_the_wrong_value_only_once_it_contains_the_batch():
    x = Inputs(torch.float64)
    wrong = info_nce(x["z1"], x["z2"], enqueued(x).keys, 0.2).item()
    assert wrong == pytest.approx(CASES["moco_tau0.2_queue_already_contains_batch"]["value"], rel=1e-10)


def test_center_and_sinkhorn_are_golden_in_every_entry():
    x = Inputs(torch.float64)
    assert centered(x, updates=1).value.tolist() == pytest.approx(CASES["dino_center_update"]["center1"], rel=1e-10)
    assert sinkhorn(0.3 * torch.tanh(x["c0"]), 0.05, 3)[0].tolist() == pytest.approx(CASES["sinkhorn_eps0.05_it3"]["row0"], rel=1e-10)


def test_simsiam_is_a_quarter_of_byol_less_one():
    x = Inputs(torch.float64)
    assert LOSSES["simsiam"](x).item() == pytest.approx(LOSSES["byol"](x).item() / 4 - 1, rel=1e-12)


# ------------------------------------------------------------------------------------ a step of a whole method
class Says(nn.Identity):
    """A network that gives these answers in turn, whatever it is asked."""

    num_features = 16

    def __init__(self, *answers):
        super().__init__()
        self.answers = list(answers)

    def forward(self, x):
        return self.answers.pop(0) if self.answers else x


def stubbed(module, **parts):
    """`module` with networks that answer with their input, but for `parts`."""
    for name in ("projector", "teacher"):
        setattr(module, name, Says())
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def step_of_moco(x, symmetric):
    method = stubbed(MoCo(Says(), 4, 16, queue_size=32, symmetric=symmetric))
    method.queue.keys, method.queue.pointer = x["queue"].T.detach().clone(), torch.tensor(24)
    return method


SMALL = {"hidden_dim": 4, "proj_dim": 4}
STEPS = {
    "nt_xent_tau0.1": lambda x: stubbed(SimCLR(Says(), **SMALL)),
    "moco_tau0.2": lambda x: step_of_moco(x, symmetric=False),
    "moco_tau0.2_symmetric_mean": lambda x: step_of_moco(x, symmetric=True),
    "moco_v3_tau0.2": lambda x: stubbed(MoCoV3(Says(), vit=False, temperature=0.2, **SMALL), predictor=Says(x["p1"], x["p2"])),
    "byol": lambda x: stubbed(BYOL(Says(), **SMALL), predictor=Says(x["p1"], x["p2"])),
    "simsiam": lambda x: stubbed(SimSiam(Says(), proj_dim=4, pred_dim=4), predictor=Says(x["p1"], x["p2"])),
    "barlow_lam0.0051": lambda x: stubbed(BarlowTwins(Says(), **SMALL)),
    "barlow_lam0.005": lambda x: stubbed(BarlowTwins(Says(), lambd=0.005, loss_scale=0.1, **SMALL)),
    "vicreg_official": lambda x: stubbed(VICReg(Says(), **SMALL)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_returns_the_golden_loss_and_gradient(name):
    x = Inputs(torch.float64)
    method = STEPS[name](x)
    loss = method.step([x["z1"], x["z2"]], {})["loss"]
    loss.backward()
    factor = getattr(method, "loss_scale", 1.0)
    assert loss.item() == pytest.approx(factor * CASES[name]["value"], rel=1e-10)
    check_gradients(CASES[name], x, 1e-6, factor)


def test_a_step_of_moco_leaves_the_golden_queue():
    x = Inputs(torch.float64)
    method = step_of_moco(x, symmetric=False)
    method.step([x["z1"], x["z2"]], {})
    assert torch.allclose(method.queue.keys, enqueued(x).keys, rtol=1e-12)
    assert method.queue.pointer == CASES["moco_enqueue"]["ptr_after"]
    assert torch.equal(method.queue.keys[:24], x["queue"].T[:24])


def test_steps_of_dino_move_the_center_after_the_loss():
    x = Inputs(torch.float64)
    s, t = torch.cat([x[f"s{i}"] for i in range(5)]), torch.cat([x["t0"], x["t1"]])
    head, teacher = (nn.Sequential(nn.Identity(), Says(x, x)) for x in (s, t))
    method = stubbed(DINO(Says(), 4, 4, out_dim=12), head=head, teacher=teacher)
    method.center.double().value.copy_(x["center0"][0])
    views = [torch.zeros(4, 16)] * 5
    for case in (CASES["dino_2g3l_tt0.04"], CASES["dino_second_step"]):
        loss = method.step(views, {})["loss"]
        assert loss.item() == pytest.approx(case["value"], rel=1e-10)
        method.teacher.update = lambda *nets, momentum: None  # the stubs have nothing to move
        method.after_step()
    loss.backward()
    check_gradients({"stopgrad": ["t0", "t1"]}, x, 1e-6)


# ------------------------------------------------------------------------------------ precision
def against_queue(a, b, temperature):
    dtype = torch.promote_types(a.dtype, torch.float32)
    return info_nce(a, b, unit(torch.randn(16, a.shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)), temperature)


def distilled(a, b, temperature):
    with torch.autocast("cpu", enabled=False):
        logits = torch.stack([a, b])
    exact = logits.detach().to(torch.promote_types(a.dtype, torch.float32))
    return dino_loss(logits, Center(a.shape[1])(exact, 0.4 * temperature), temperature)


OF_TWO_VIEWS = {
    "nt_xent": lambda a, b, t=0.1: nt_xent(a, b, t),
    "moco": lambda a, b, t=0.1: against_queue(a, b, t),
    "moco_v3": lambda a, b, t=0.1: contrastive(a, b, a, b, t),
    "byol": lambda a, b, t=0.1: byol_loss(a, b, a, b),
    "simsiam": lambda a, b, t=0.1: simsiam_loss(a, b, a, b),
    "dino": lambda a, b, t=0.1: distilled(a, b, t),
    "barlow": lambda a, b, t=0.1: barlow_twins_loss(a, b, 0.0051),
    "vicreg": lambda a, b, t=0.1: vicreg_loss(a, b),
}
COSINE = ("nt_xent", "moco", "moco_v3", "byol", "simsiam")


def two_views(n, d, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=g, dtype=torch.float64)
    return a.to(dtype), (a + 0.5 * torch.randn(n, d, generator=g, dtype=torch.float64)).to(dtype)


BATCHES = {
    "plain": lambda a, b: (a, b, 0.1),
    "times 1000": lambda a, b: (1000 * a, 1000 * b, 0.1),
    "with logits times 1000": lambda a, b: (a, b, 1e-4),
    "with a zero row": lambda a, b: (a.index_fill(0, torch.tensor(1), 0), b, 0.1),
    "collapsed": lambda a, b: (a[:1].expand_as(a).clone(), a[:1].expand_as(a).clone(), 0.1),
}


@pytest.mark.parametrize("name", OF_TWO_VIEWS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, True)]
)
def test_half_precision_changes_nothing_and_stays_finite(name, batch, dtype, autocast):
    a, b, temperature = BATCHES[batch](*two_views(16, 64))
    a, b = (x.to(dtype).requires_grad_() for x in (a, b))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = OF_TWO_VIEWS[name](a, b, temperature)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(OF_TWO_VIEWS[name](a.double(), b.double(), temperature).item(), rel=1e-2, abs=1e-5)
    if (name, batch, dtype) == ("vicreg", "times 1000", torch.float16):
        return  # the gradient grows with the cube of the embeddings, here to 5e7, and float16 ends at 65504
    assert torch.isfinite(a.grad).all()
    assert b.grad is None or torch.isfinite(b.grad).all()


def by_gram(name, a, b):
    """Barlow Twins and VICReg in float64 by way of N x N matrices: sum C_ij^2 = sum_nm (a a^T)_nm (b b^T)_nm."""
    N, D = a.shape
    a0, b0 = a - a.mean(0), b - b.mean(0)
    if name == "barlow":
        a0, b0 = (x / (x.var(0, correction=0) + 1e-5).sqrt() for x in (a0, b0))
        diagonal, total = (a0 * b0).mean(0), ((a0 @ a0.T) * (b0 @ b0.T)).sum() / N**2
        return (diagonal - 1).square().sum() + 0.0051 * (total - diagonal.square().sum())
    var = sum((1 - (x.var(0) + 1e-4).sqrt()).clamp_min(0).mean() for x in (a, b)) / 2
    cov = sum(((x @ x.T).square().sum() / (N - 1) ** 2 - x.var(0).square().sum()) / D for x in (a0, b0))
    return 25 * (a - b).square().mean() + 25 * var + cov


@pytest.mark.parametrize("name", OF_TWO_VIEWS)
def test_half_precision_is_enough_for_8192_dimensions(name):
    wide = name in ("barlow", "vicreg")
    a, b = two_views(64 if wide else 256, 8192, dtype=torch.float16)
    a.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = OF_TWO_VIEWS[name](a, b)
    loss.backward()
    exact = by_gram(name, a.double(), b.double()) if wide else OF_TWO_VIEWS[name](a.double(), b.double())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2, abs=1e-5)
    assert torch.isfinite(a.grad).all()


def test_nt_xent_at_random_projections():
    """ln(2N - 1) + 1 / (2 tau^2 D) for independent directions."""
    g = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(256, 128, generator=g), torch.randn(256, 128, generator=g)
    assert nt_xent(z1, z2, 0.1).item() == pytest.approx(math.log(511) + 1 / (2 * 0.01 * 128), abs=0.1)


# ------------------------------------------------------------------------------------ what holds for any batch
few = settings(max_examples=25, deadline=None, database=None)
some_views = st.builds(two_views, st.integers(2, 7), st.integers(2, 12), st.integers(0, 2**32 - 1))
seeds = st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", OF_TWO_VIEWS)
@few
@given(views=some_views, seed=seeds)
def test_the_order_of_images_does_not_matter(name, views, seed):
    a, b = views
    order = torch.randperm(len(a), generator=seed)
    assert OF_TWO_VIEWS[name](a[order], b[order]).item() == pytest.approx(OF_TWO_VIEWS[name](a, b).item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", [n for n in OF_TWO_VIEWS if n != "moco"])
@few
@given(views=some_views, seed=seeds)
def test_the_order_of_views_and_dimensions_does_not_matter(name, views, seed):
    a, b = views
    order = torch.randperm(a.shape[1], generator=seed)
    assert OF_TWO_VIEWS[name](b[:, order], a[:, order]).item() == pytest.approx(OF_TWO_VIEWS[name](a, b).item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", COSINE)
@few
@given(views=some_views, seed=seeds)
def test_lengths_do_not_matter_to_cosine_losses(name, views, seed):
    a, b = views
    lengths = torch.logspace(-4, 4, 2 * len(a), dtype=a.dtype)[torch.randperm(2 * len(a), generator=seed), None]
    scaled = OF_TWO_VIEWS[name](a * lengths[: len(a)], b * lengths[len(a) :])
    assert scaled.item() == pytest.approx(OF_TWO_VIEWS[name](a, b).item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["barlow", "vicreg"])
@few
@given(views=some_views, shift=st.floats(-10, 10))
def test_the_mean_of_embeddings_does_not_matter(name, views, shift):
    a, b = views
    assert OF_TWO_VIEWS[name](a + shift, b + shift).item() == pytest.approx(OF_TWO_VIEWS[name](a, b).item(), rel=1e-7)


@few
@given(views=some_views, shift=st.floats(-10, 10))
def test_a_constant_on_all_logits_does_not_matter_to_dino(views, shift):
    probs = F.softmax(torch.stack(views), -1)
    moved = dino_loss(torch.stack(views) + shift, probs, 0.1).item()
    assert moved == pytest.approx(dino_loss(torch.stack(views), probs, 0.1).item(), rel=1e-9)


LIMITS = {"byol": (0, 8), "simsiam": (-1, 1)}


@pytest.mark.parametrize("name", OF_TWO_VIEWS)
@few
@given(views=some_views)
def test_losses_stay_in_their_range(name, views):
    lowest, highest = LIMITS.get(name, (0, math.inf))
    assert lowest <= OF_TWO_VIEWS[name](*views).item() <= highest
    if name in LIMITS:
        assert OF_TWO_VIEWS[name](views[0], views[0]).item() == pytest.approx(lowest, abs=1e-9)
        assert OF_TWO_VIEWS[name](views[0], -views[0]).item() == pytest.approx(highest, abs=1e-9)


@few
@given(views=some_views, seed=seeds)
def test_the_order_of_the_queue_does_not_matter(views, seed):
    queue = unit(torch.randn(9, views[0].shape[1], dtype=torch.float64, generator=seed))
    assert info_nce(*views, queue.flip(0), 0.2).item() == pytest.approx(info_nce(*views, queue, 0.2).item(), rel=1e-9)

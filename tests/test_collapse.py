"""Teacher, queue, center and Sinkhorn-Knopp: what they hold, how they move, and that they survive precision, saving and moving."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath
from torch import nn

from ssl_zoo.collapse.centering import Center, sinkhorn
from ssl_zoo.collapse.health import assignment_entropies
from ssl_zoo.collapse.queue import Queue
from ssl_zoo.collapse.teacher import Teacher
from ssl_zoo.nn.numerics import unit

few = settings(max_examples=25, deadline=None, database=None)
same = torch.testing.assert_close
HALF = [torch.float16, torch.bfloat16]


pytestmark = pytest.mark.usefixtures("one_thread")


class Drops(nn.Module):
    """Drops in all the ways that backbones do: by modules and by a function call."""

    def __init__(self):
        super().__init__()
        self.dropout, self.path = nn.Dropout(0.5), DropPath(0.5)

    def forward(self, x):
        return F.dropout(self.path(self.dropout(x)), 0.5, self.training)


def trained_student():
    """A backbone and a projector whose batch statistics have seen data."""
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), Drops()), nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    for _ in range(3):
        parts[1](parts[0](5 + 3 * torch.randn(16, 6)))
    return parts


def moved(parts):
    """Students as after an optimizer step."""
    for p in (p for part in parts for p in part.parameters()):
        p.data += torch.randn_like(p)
    return parts


# ------------------------------------------------------------------------------------ teacher
def test_a_teacher_starts_equal_to_the_student_and_apart_from_it():
    parts = trained_student()
    teacher = Teacher(*parts)
    student = nn.Sequential(*parts)
    assert student.state_dict().keys() == teacher.network.state_dict().keys()
    same(dict(teacher.network.state_dict()), dict(student.state_dict()), rtol=0, atol=0)
    assert {t.data_ptr() for t in student.state_dict().values()}.isdisjoint(t.data_ptr() for t in teacher.state_dict().values())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert not teacher(torch.randn(4, 6, requires_grad=True)).requires_grad


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.99, 1.0])
def test_an_update_moves_parameters_as_far_as_momentum_says(momentum):
    teacher = Teacher(*trained_student())
    before = [p.clone() for p in teacher.parameters()]
    buffers = [b.clone() for b in teacher.buffers()]
    parts = moved(trained_student())
    teacher.update(*parts, momentum=momentum)
    student = list(nn.Sequential(*parts).parameters())
    wanted = [momentum * t + (1 - momentum) * s for t, s in zip(before, student, strict=True)]
    exact = {"rtol": 0, "atol": 0} if momentum in (0.0, 1.0) else {}
    same(list(teacher.parameters()), [w.detach() for w in wanted], **exact)
    same(list(teacher.buffers()), buffers, rtol=0, atol=0)


@pytest.mark.parametrize("parts", [lambda a, b: (a,), lambda a, b: (b, a)])
def test_an_update_by_another_network_is_refused(parts):
    a, b = trained_student()
    with pytest.raises((ValueError, RuntimeError)):
        Teacher(a, b).update(*parts(a, b), momentum=0.5)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("cast", ["before", "after"])
def test_a_teacher_of_a_half_precision_student_does_not_stand_still(dtype, cast):
    """1000 updates with momentum 0.999 from 1.0 towards 1.1 give 1.0632; in half precision they would give 1.0."""
    module = nn.Module()
    module.student = nn.Linear(3, 3)
    nn.init.ones_(module.student.weight)
    if cast == "before":
        module.student.to(dtype)
    module.teacher = Teacher(module.student)
    module = module.half() if dtype == torch.float16 else module.to(torch.bfloat16)
    nn.init.constant_(module.student.weight, 1.1)
    for _ in range(1000):
        module.teacher.update(module.student, momentum=0.999)
    (weight, _), towards = module.teacher.parameters(), module.student.weight.float()  # 1.1 as rounded in half precision
    assert module.student.weight.dtype == dtype
    assert weight.dtype == torch.float32
    same(weight.data, 1 + (towards.detach() - 1) * (1 - 0.999**1000), rtol=1e-4, atol=0)
    assert weight.mean().item() == pytest.approx(1.0632, abs=1.2e-3)
    assert module.teacher(torch.ones(2, 3, dtype=dtype)).isfinite().all()


def test_a_double_precision_teacher_stays_exact():
    assert {p.dtype for p in Teacher(nn.Linear(3, 3).double()).half().parameters()} == {torch.float64}
    assert {p.dtype for p in Teacher(nn.Linear(3, 3)).double().parameters()} == {torch.float64}


@pytest.mark.parametrize(("batch_norm", "tracks"), [("train", True), ("eval", False)])
def test_batch_norm_of_a_teacher_sees_its_own_batches_or_none(batch_norm, tracks):
    parent = nn.Module()
    parent.student = nn.Sequential(nn.BatchNorm1d(3))
    parent.teacher = Teacher(parent.student, batch_norm=batch_norm)
    x = 5 + 2 * torch.randn(64, 3)
    for calls in (1, 2):
        out = parent.teacher(x)
        norm = parent.teacher.network[0][0]
        assert int(norm.num_batches_tracked) == (calls if tracks else 0)
        assert bool(norm.running_mean.any()) is tracks
        same(out.mean(0), torch.zeros(3) if tracks else x.mean(0), atol=1e-4, rtol=1e-4)
        parent.eval().train()
    assert int(parent.student[0].num_batches_tracked) == 0
    parent.eval()
    parent.teacher(x)
    assert int(norm.num_batches_tracked) == (2 if tracks else 0)


def test_another_mode_of_batch_norm_is_refused():
    with pytest.raises(ValueError, match="train or eval, not frozen"):
        Teacher(nn.Linear(2, 2), batch_norm="frozen")


@pytest.mark.parametrize("batch_norm", ["train", "eval"])
def test_a_teacher_drops_nothing(batch_norm):
    linear, x = nn.Linear(16, 16), torch.randn(8, 16)
    parent = nn.Sequential(Teacher(linear, Drops(), batch_norm=batch_norm))
    for module in (parent, parent.train(), parent.eval(), parent.train()):
        same(module(x), linear(x).detach(), rtol=0, atol=0)
    assert not torch.equal(Drops()(x), x)


def test_a_teacher_is_saved_and_loaded():
    teacher, other = Teacher(*moved(trained_student())), Teacher(*trained_student())
    teacher(torch.randn(8, 6))
    other.load_state_dict(teacher.state_dict())
    same(dict(other.state_dict()), dict(teacher.state_dict()), rtol=0, atol=0)
    saved = nn.Sequential(teacher).half().state_dict()
    assert {t.dtype for t in saved.values()} == {torch.float32, torch.int64}


def test_a_teacher_follows_moves():
    parent = nn.Sequential(Teacher(*trained_student()))
    before = {k: v.clone() for k, v in parent.state_dict().items()}
    same(dict(parent.to("cpu", torch.float16).state_dict()), before, rtol=0, atol=0)
    parent.to("meta", torch.bfloat16)
    assert all(t.is_meta and t.dtype in (torch.float32, torch.int64) for t in parent.state_dict().values())


# ------------------------------------------------------------------------------------ queue
@few
@given(size=st.integers(1, 9), batches=st.lists(st.integers(1, 25), max_size=12), seed=st.integers(0, 2**32 - 1))
def test_a_queue_is_a_ring_buffer(size, batches, seed):
    g = torch.Generator().manual_seed(seed)
    queue = Queue(size, 3)
    ring, pointer = queue.keys.clone(), 0
    for n in batches:
        keys = unit(torch.randn(n, 3, generator=g))
        queue.add(keys)
        for key in keys:
            ring[pointer] = key
            pointer = (pointer + 1) % size
        assert torch.equal(queue.keys, ring)
        assert int(queue.pointer) == pointer
    same(queue.keys.norm(dim=1), torch.ones(size))


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
def test_a_queue_takes_keys_of_any_precision_without_their_gradient(dtype):
    queue = Queue(4, 3)
    queue.add(unit(torch.randn(6, 3)).to(dtype).requires_grad_())
    assert queue.keys.dtype == torch.float32
    assert not queue.keys.requires_grad
    same(queue.keys.norm(dim=1), torch.ones(4), rtol=1e-2, atol=0)


def test_a_queue_is_saved_with_its_pointer():
    queue, other = Queue(5, 3), Queue(5, 3)
    queue.add(unit(torch.randn(3, 3)))
    assert queue.state_dict().keys() == {"keys", "pointer"}
    assert not list(queue.parameters())
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.add(torch.eye(3))
    assert torch.equal(other.keys, queue.keys)
    assert int(other.pointer) == int(queue.pointer) == 1


def test_golden_keys_wrap_to_the_beginning():
    case = GOLDEN["cases"]["moco_enqueue"]
    queue = Queue(case["params"]["K"], 2)
    queue.pointer.fill_(case["params"]["ptr_before"])
    queue.add(torch.ones(case["params"]["N"], 2))
    assert int(queue.pointer) == case["ptr_after"] == 0
    queue.add(torch.zeros(1, 2))
    assert not queue.keys[0].any()


# ------------------------------------------------------------------------------------ center and sinkhorn
@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(8, 5), (2, 4, 5)])
def test_a_center_moves_towards_the_mean_of_logits(momentum, shape):
    center, wanted = Center(5, momentum), torch.zeros(5)
    for _ in range(3):
        logits = 3 + torch.randn(*shape, requires_grad=True)
        center.add(logits)
        center.move()
        wanted = momentum * wanted + (1 - momentum) * logits.detach().reshape(8, 5).mean(0)
        same(center.value, wanted)
    assert not list(center.parameters())


def test_a_center_that_is_saved_before_it_moves_goes_on_with_the_same_batches():
    """As after a step that a GradScaler has skipped."""
    center, again = Center(5), Center(5)
    center.add(torch.randn(4, 5))
    again.load_state_dict(center.state_dict())
    more = torch.randn(4, 5)
    for c in (center, again):
        c.add(more)
        c.move()
    assert torch.equal(center.value, again.value)
    assert not torch.equal(center.value, 0.1 * more.mean(0))


def test_a_center_gives_probabilities_that_ignore_what_all_images_share():
    center, logits, shared = Center(6, momentum=0.0), torch.randn(4, 6), 100 * torch.randn(6)
    plain = center(logits, 0.5)
    same(plain, F.softmax(logits / 0.5, -1))
    center.add(shared[None])
    center.move()
    same(center(logits + shared, 0.5), plain, rtol=1e-3, atol=1e-4)
    same(center(shared[None], 0.04), torch.full((1, 6), 1 / 6))
    assert center(1e4 * logits, 0.04).sum(-1).tolist() == pytest.approx([1.0] * 4)


@few
@given(rows=st.integers(1, 12), prototypes=st.integers(2, 9), seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_sinkhorn_gives_distributions_with_equal_shares_in_the_limit(rows, prototypes, seed, dtype, tolerance):
    scores = torch.rand(rows, prototypes, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 0.5
    few_rounds, more, many = (sinkhorn(scores, 0.2, n) for n in (1, 3, 200))
    shares = torch.full((prototypes,), rows / prototypes, dtype=dtype)
    for q in (few_rounds, more, many):
        assert q.dtype == dtype
        assert (q >= 0).all()
        same(q.sum(1), torch.ones(rows, dtype=dtype), rtol=tolerance, atol=tolerance)
    same(many.sum(0), shares, rtol=1e-5, atol=1e-5)
    assert (more.sum(0) - shares).abs().sum() <= (few_rounds.sum(0) - shares).abs().sum() + 1e-5


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 10.0, 6e4])
def test_sinkhorn_survives_scores_of_any_size(dtype, scale):
    scores = (scale * (2 * torch.rand(16, 8, generator=torch.Generator().manual_seed(0)) - 1)).to(dtype).requires_grad_()
    q = sinkhorn(scores, 0.05)
    assert q.dtype == dtype
    assert not q.requires_grad
    assert torch.isfinite(q).all()
    assert (q >= 0).all()
    assert (q.sum(1) < 1.02).all()
    if scale <= 10:
        same(q.sum(1).float(), torch.ones(16), rtol=1e-2, atol=0)


ASSIGNED = {
    "uniform": (torch.full((2, 8, 4), 0.25), 1, 1),
    "all to one": (F.one_hot(torch.zeros(2, 8, dtype=torch.long), 4).float(), 0, 0),
    "spread": (F.one_hot(torch.arange(16).view(2, 8) % 4, 4).float(), 0, 1),
    "to half of the prototypes": (F.one_hot(torch.arange(16).view(2, 8) % 2, 4).float(), 0, math.log(2) / math.log(4)),
}


@pytest.mark.parametrize("name", ASSIGNED)
def test_entropies_of_assignments_tell_collapse_from_spread(name):
    probs, teacher, marginal = ASSIGNED[name]
    for p in (probs, probs.flatten(0, 1)):
        entropies = assignment_entropies(p)
        assert entropies["teacher_entropy"].item() == pytest.approx(teacher, abs=1e-5)
        assert entropies["marginal_entropy"].item() == pytest.approx(marginal, abs=1e-5)

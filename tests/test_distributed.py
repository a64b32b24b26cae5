"""Two gloo processes against one process on the global batch."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import GOLDEN, golden_input
from torch import nn

from ssl_zoo.distributed import fold_seed, gather, gather_uneven, mean_over_ranks, rank
from ssl_zoo.methods.simclr import SimCLR, nt_xent
from ssl_zoo.nn.batchnorm import synchronise


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    """What every worker below returned on each rank, from one start of 2 or 4 gloo processes (starting is slow, the work is not)."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_enter, args=(request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{r}.pt") for r in range(request.param)]


def _enter(r, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=r, world_size=world)
    found = {worker.__name__: worker(r, world) for worker in (_collectives, _nt_xent, _simclr, _unsynchronised)}
    torch.save(found, os.path.join(folder, f"{r}.pt"))
    dist.destroy_process_group()


def part(x, r, world):
    return x.chunk(world)[r]


# ---------------------------------------------------------------------------------------------- collectives
def _collectives(r, world):
    x = torch.arange(3.0, requires_grad=True) + 10 * r
    x.retain_grad()
    weights = torch.arange(float(3 * world)) * (r + 1)
    (gather(x) * weights).sum().backward()
    mean = mean_over_ranks(torch.tensor(float(r)))
    uneven = gather_uneven(torch.full((r + 1, 2), float(r)))
    return {"grad": x.grad, "gathered": gather(x).detach(), "mean": mean, "uneven": uneven}


def test_collectives(ranks):
    found, world = [f["_collectives"] for f in ranks], len(ranks)
    total = sum(r + 1 for r in range(world))
    for r, f in enumerate(found):
        assert torch.equal(f["gathered"], torch.cat([torch.arange(3.0) + 10 * s for s in range(world)]))
        assert torch.equal(f["grad"], torch.arange(float(3 * world))[3 * r : 3 * r + 3] * total)
        assert float(f["mean"]) == (world - 1) / 2
        assert [len(f["uneven"]), float(f["uneven"][-1, 0])] == [world * (world + 1) // 2, world - 1]


# ---------------------------------------------------------------------------------------------- loss
def _nt_xent(r, world):
    z1, z2 = (part(golden_input(k), r, world).clone().requires_grad_() for k in ("z1", "z2"))
    loss = nt_xent(z1, z2, 0.1)
    loss.backward()
    return {"loss": loss.detach(), "grad": torch.stack([z1.grad, z2.grad])}


def test_nt_xent_is_exact_over_ranks(ranks):
    case = GOLDEN["cases"]["nt_xent_tau0.1"]
    found, world = [f["_nt_xent"] for f in ranks], len(ranks)
    losses = [float(f["loss"]) for f in found]
    assert sum(losses) / world == pytest.approx(case["value"], rel=1e-10)
    if world == 2:
        assert losses == pytest.approx(case["per_rank_world2"], rel=1e-10)
        assert losses != pytest.approx(case["local_negatives_only_world2"], rel=0.1)
    z1, z2 = (golden_input(k).requires_grad_() for k in ("z1", "z2"))
    nt_xent(z1, z2, 0.1).backward()
    grad = torch.cat([f["grad"] for f in found], 1) / world  # DDP divides by the number of ranks
    torch.testing.assert_close(grad, torch.stack([z1.grad, z2.grad]), rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------------------------------------- the whole method
class Net(nn.Sequential):
    num_features = 12

    def __init__(self):
        super().__init__(nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _method():
    torch.manual_seed(3)
    return SimCLR(Net(), hidden_dim=16, proj_dim=8, temperature=0.2).double()


def _views():
    g = torch.Generator().manual_seed(4)
    base = torch.randn(8, 3, 8, 8, generator=g, dtype=torch.float64)
    return [base + 0.3 * torch.randn(8, 3, 8, 8, generator=g, dtype=torch.float64) for _ in range(2)]


def _simclr(r, world):
    method = synchronise(_method(), "cpu")
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    found = {}
    for step in range(3):
        optimizer.zero_grad()
        loss = method.step([part(v, r, world) for v in _views()], {})["loss"]
        loss.backward()
        for p in method.parameters():
            if p.grad is not None:
                p.grad = mean_over_ranks(p.grad)
        if step == 0:
            found = {"loss": mean_over_ranks(loss.detach()), "grads": [p.grad.clone() for p in method.parameters() if p.grad is not None]}
        optimizer.step()
    return {**found, "state": method.state_dict()}


def test_simclr_over_ranks_equals_one_process_on_the_global_batch(ranks):
    alone = _simclr(0, 1)
    for f in (f["_simclr"] for f in ranks):
        assert float(f["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-10)
        for a, b in zip(f["grads"], alone["grads"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
        for key, value in alone["state"].items():  # weights and BN statistics after three steps
            torch.testing.assert_close(f["state"][key], value, rtol=1e-7, atol=1e-9, msg=key)


def _unsynchronised(r, world):
    loss = _method().step([part(v, r, world) for v in _views()], {})["loss"]
    return {"loss": mean_over_ranks(loss.detach()), "rank": rank()}


def test_without_global_batch_statistics_the_loss_differs(ranks):
    assert float(ranks[0]["_unsynchronised"]["loss"]) != pytest.approx(float(_simclr(0, 1)["loss"]), rel=1e-3)


def test_seeds_differ_between_ranks_and_steps():
    seeds = {fold_seed("augment", s, r, i) for s in range(4) for r in range(8) for i in range(100)}
    assert len(seeds) == 4 * 8 * 100

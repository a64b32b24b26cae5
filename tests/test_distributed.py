"""Gloo processes against one process on the global batch: losses, gradients, and everything that three steps leave behind."""

import contextlib
import multiprocessing
import os
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import GOLDEN, golden_input
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ssl_zoo.collapse.centering import Center, sinkhorn
from ssl_zoo.collapse.queue import Queue
from ssl_zoo.data.images import Images
from ssl_zoo.data.loader import Loader
from ssl_zoo.distributed import fold_seed, gather, gather_uneven, max_over_ranks, mean_over_ranks, rank, union, world_size
from ssl_zoo.evaluation.features import extract
from ssl_zoo.evaluation.knn import knn_classify
from ssl_zoo.evaluation.scores import judge
from ssl_zoo.methods.barlow_twins import BarlowTwins, barlow_twins_loss
from ssl_zoo.methods.byol import BYOL
from ssl_zoo.methods.clip import CLIP, clip_loss
from ssl_zoo.methods.dino import DINO
from ssl_zoo.methods.moco import MoCo
from ssl_zoo.methods.moco_v3 import MoCoV3, contrastive
from ssl_zoo.methods.siglip import SigLIP, siglip_loss
from ssl_zoo.methods.simclr import SimCLR, nt_xent
from ssl_zoo.methods.simsiam import SimSiam
from ssl_zoo.methods.supervised import Supervised
from ssl_zoo.methods.vicreg import VICReg, vicreg_loss
from ssl_zoo.nn.batchnorm import GlobalBatchNorm, synchronise

SLOW_IMPORTS = ["torch", "timm", "kornia", "lightning.pytorch"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    """What every worker below returned on each rank, from one start of 2 or 4 gloo processes (starting is slow, the work is not)."""
    workers = (
        _collectives,
        _losses,
        _words,
        _assignments,
        _queue,
        _constant,
        _set_up,
        _methods,
        _unsynchronised,
        _averaged_by_ddp,
        _chunked,
        _judged,
    )
    return _start(request.param, tmp_path_factory.mktemp("ranks"), workers)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The same with 3 processes, among which nothing divides evenly."""
    return _start(3, tmp_path_factory.mktemp("three"), (_batches, _features, _union, _words))


def _start(world, folder, workers):
    how = "spawn"
    if "forkserver" in multiprocessing.get_all_start_methods():  # imports once for all of them
        how = "forkserver"
        multiprocessing.set_forkserver_preload(SLOW_IMPORTS)
    mp.start_processes(_enter, args=(world, str(folder), workers), nprocs=world, start_method=how)
    return [torch.load(folder / f"{r}.pt") for r in range(world)]


def _enter(r, world, folder, workers):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=r, world_size=world)
    found = {worker.__name__: worker(r, world) for worker in workers}
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
    shared = torch.ones(3 * world, requires_grad=True)  # its gradient is the very tensor that gather's backward is given
    side = shared * 1.0
    ((side + gather(torch.ones(3, requires_grad=True))) * torch.ones(3 * world)).sum().backward()
    mean = mean_over_ranks(torch.tensor(float(r)))
    uneven = gather_uneven(torch.full((r + 1, 2), float(r)))
    mine = torch.tensor([float(r), -float(r), 7.0 * (r == 1)], requires_grad=True)
    largest = max_over_ranks(mine)
    return {
        "grad": x.grad,
        "beside": shared.grad,
        "gathered": gather(x).detach(),
        "mean": mean,
        "uneven": uneven,
        "max": largest,
        "own": mine.detach(),
    }


def test_collectives(ranks):
    found, world = [f["_collectives"] for f in ranks], len(ranks)
    total = sum(r + 1 for r in range(world))
    for r, f in enumerate(found):
        assert torch.equal(f["gathered"], torch.cat([torch.arange(3.0) + 10 * s for s in range(world)]))
        assert torch.equal(f["grad"], torch.arange(float(3 * world))[3 * r : 3 * r + 3] * total)
        assert torch.equal(f["beside"], torch.ones(3 * world))  # no other tensor's gradient is summed over ranks
        assert float(f["mean"]) == (world - 1) / 2
        assert [len(f["uneven"]), float(f["uneven"][-1, 0])] == [world * (world + 1) // 2, world - 1]
        assert f["max"].tolist() == [world - 1, 0, 7]
        assert not f["max"].requires_grad
        assert f["own"].tolist() == [r, -r, 7 * (r == 1)]  # what is compared stays as it was


def test_alone_the_maximum_is_the_value():
    x = torch.tensor([1.0, -2.0])
    assert torch.equal(max_over_ranks(x), x)


# ---------------------------------------------------------------------------------------------- losses
LOSSES = {
    "nt_xent_tau0.1": (lambda z1, z2: nt_xent(z1, z2, 0.1), ("z1", "z2")),
    "moco_v3_tau0.2": (lambda *x: contrastive(*x, 0.2), ("p1", "p2", "z1", "z2")),
    "moco_v3_tau1.0": (lambda *x: contrastive(*x, 1.0), ("p1", "p2", "z1", "z2")),
    "barlow_lam0.0051": (lambda z1, z2: barlow_twins_loss(z1, z2, 0.0051), ("z1", "z2")),
    "vicreg_official": (vicreg_loss, ("z1", "z2")),
    "vicreg_official_hinge_active": (lambda h1, h2: vicreg_loss(0.5 * h1, 0.5 * h2), ("h1", "h2")),
}


def _losses(r, world):
    found = {}
    for name, (function, inputs) in LOSSES.items():
        x = [part(golden_input(k), r, world).clone().requires_grad_() for k in inputs]
        loss = function(*x)
        loss.backward()
        found[name] = {"loss": loss.detach(), "grad": torch.stack([v.grad if v.grad is not None else torch.zeros_like(v) for v in x])}
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_exact_over_ranks(ranks, name):
    """Loss and gradient of the global batch: no rank-local negatives or statistics, no collective that loses or shrinks a gradient."""
    case = GOLDEN["cases"][name]
    found, world = [f["_losses"][name] for f in ranks], len(ranks)
    losses = [float(f["loss"]) for f in found]
    assert sum(losses) / world == pytest.approx(case["value"], rel=1e-10)
    alone = _losses(0, 1)[name]
    grad = torch.cat([f["grad"] for f in found], 1) / world  # DDP divides by the number of ranks
    torch.testing.assert_close(grad, alone["grad"], rtol=1e-10, atol=1e-12)
    if world == 2:
        if "per_rank_world2" in case:  # the label of a row is where its twin stands among those of all ranks
            assert losses == pytest.approx(case["per_rank_world2"], rel=1e-10)
        if "local_negatives_only_world2" in case:
            assert losses != pytest.approx(case["local_negatives_only_world2"], rel=0.1)
    if "world2_local_bn" in case:  # sums of squares of the global matrix, which every rank has in full
        assert losses == pytest.approx([case["value"]] * world, rel=1e-10)
        assert sum(losses) / world != pytest.approx(case["world2_local_bn"], rel=0.1)


WORDS = ("clip_init_1_over_0.07", "clip_clamped_100", "siglip_init_t10_b-10", "siglip_t100_b-5")


def _pairs(world):
    """The golden pairs, without the last where they do not divide among the ranks."""
    return [x[: len(x) // world * world] for x in (golden_input("img"), golden_input("txt"))]


@contextlib.contextmanager
def _no_gathering():
    """No rank may hold what all ranks have."""
    gathers = [n for n in vars(dist) if "gather" in n and callable(getattr(dist, n))]
    with contextlib.ExitStack() as stack:
        for name in gathers:
            stack.enter_context(mock.patch.object(dist, name, side_effect=AssertionError(f"{name} is not for the sigmoid")))
        yield


def _words(r, world, of=None):
    """Loss and gradients of both losses of images and captions: of embeddings, log-scale and bias. of: the ranks that are stood in for."""
    found = {}
    for name in WORDS:
        params = GOLDEN["cases"][name]["params"]
        x = [part(v, r, world).clone().requires_grad_() for v in _pairs(of or world)]
        rest = [torch.tensor(params[k], dtype=torch.float64, requires_grad=True) for k in ("log_param", "bias") if k in params]
        sigmoid = "bias" in params
        with _no_gathering() if sigmoid else contextlib.nullcontext():
            loss = (siglip_loss if sigmoid else clip_loss)(*x, rest[0].exp(), *rest[1:])
            loss.backward()
        found[name] = {"loss": loss.detach(), "grad": torch.stack([v.grad for v in x]), "rest": torch.stack([p.grad for p in rest])}
    return found


def _compare_words(found, name):
    """Nothing is lost or counted twice: of the embeddings, of the scale and of the bias alike."""
    world, case = len(found), GOLDEN["cases"][name]
    alone = _words(0, 1, of=world)[name]
    losses = [float(f[name]["loss"]) for f in found]
    assert sum(losses) / world == pytest.approx(float(alone["loss"]), rel=1e-10)
    if world == 2:
        assert losses == pytest.approx(case.get("per_rank_world2") or case["per_rank_world2_local_loss"], rel=1e-10)
    for key, total in (("grad", torch.cat([f[name]["grad"] for f in found], 1)), ("rest", sum(f[name]["rest"] for f in found))):
        torch.testing.assert_close(total / world, alone[key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", WORDS)
def test_losses_of_images_and_captions_are_exact_over_ranks(ranks, name):
    _compare_words([f["_words"] for f in ranks], name)


@pytest.mark.parametrize("name", WORDS)
def test_losses_of_images_and_captions_are_exact_over_three_ranks(three, name):
    _compare_words([f["_words"] for f in three], name)


# ---------------------------------------------------------------------------------------------- state that ranks share
def _center(x):
    center = Center(12, 0.9).double()
    center.value.copy_(golden_input("center0")[0])
    center.add(x)
    center.move()
    return center.value


def _scores():
    return 0.3 * torch.tanh(torch.cat([golden_input("c0"), golden_input("c1")]))  # [12, 9]


def _assignments(r, world):
    logits = torch.stack([golden_input("t0"), golden_input("t1")])
    return {"center": _center(logits.chunk(world, 1)[r]), "sinkhorn": sinkhorn(part(_scores(), r, world), 0.05)}


def test_the_center_is_that_of_all_ranks(ranks):
    case = GOLDEN["cases"]["dino_center_update"]
    k = torch.arange(1.0, 13.0, dtype=torch.float64)
    for f in ranks:
        center = f["_assignments"]["center"]
        assert center.tolist() == pytest.approx(case["center1"], rel=1e-10)
        assert float(k @ center) == pytest.approx(case["value"], rel=1e-10)
        assert all(float(k @ center) != pytest.approx(wrong, rel=0.1) for wrong in case["per_rank_only_world2"])
    logits = torch.stack([golden_input("t0"), golden_input("t1")])
    local = [float(k @ _center(half)) for half in logits.chunk(2, 1)]
    assert local == pytest.approx(case["per_rank_only_world2"], rel=1e-10)  # what ranks that do not talk would have


def test_sinkhorn_shares_prototypes_out_over_all_ranks(ranks):
    q = torch.cat([f["_assignments"]["sinkhorn"] for f in ranks])
    torch.testing.assert_close(q, sinkhorn(_scores(), 0.05), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(q.sum(0), torch.full_like(q[0], 12 / 9), rtol=0.2, atol=0)
    local = torch.cat([sinkhorn(x, 0.05) for x in _scores().chunk(len(ranks))])
    assert not torch.allclose(q, local, rtol=0.1)


def _queue(r, world):
    torch.manual_seed(5)
    queue = Queue(20, 4).double()
    for step in range(3):
        queue.add(part(torch.arange(12.0, dtype=torch.float64)[:, None].expand(-1, 4) + 100 * step, r, world))
    return {"keys": queue.keys, "pointer": queue.pointer}


def test_the_queue_takes_the_keys_of_all_ranks_in_order(ranks):
    alone = _queue(0, 1)
    for f in (f["_queue"] for f in ranks):
        assert torch.equal(f["keys"], alone["keys"])
        assert int(f["pointer"]) == int(alone["pointer"]) == 36 % 20
        latest = [108.0, 109.0, 110.0, 111.0, *range(200, 212)]  # round the end, in place of the oldest
        assert f["keys"][:16, 0].tolist() == latest


# ---------------------------------------------------------------------------------------------- batch normalisation
def _constant(r, world):
    """What a BN of its own and one of all ranks make of a batch that is the same everywhere on a rank."""
    x = torch.full((3, 2, 4, 4), float(r))
    return {"local": nn.BatchNorm2d(2)(x).detach(), "global": synchronise(nn.BatchNorm2d(2), "cpu")(x).detach()}


def test_only_global_statistics_tell_ranks_apart(ranks):
    r = torch.arange(float(len(ranks)))
    wanted = (r - r.mean()) / (r.var(correction=0) + 1e-5).sqrt()
    for f, w in zip((f["_constant"] for f in ranks), wanted, strict=True):
        assert f["local"].abs().max() < 1e-3
        torch.testing.assert_close(f["global"], torch.full_like(f["global"], float(w)))


def _set_up(r, world):
    """Which share of each method's BNs Lightning's `setup` hook makes global."""
    trainer, found = SimpleNamespace(world_size=world, strategy=SimpleNamespace(root_device=torch.device("cpu"))), {}
    for name, make in METHODS.items():
        method = make(world)
        method._trainer = trainer
        method.setup("fit")
        norms = [isinstance(m, GlobalBatchNorm) for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        found[name] = sum(norms) / max(1, len(norms))
    return found


def test_every_batchnorm_is_synchronised_but_those_of_moco(ranks):
    for name, share in ranks[0]["_set_up"].items():
        assert share == (0 if name.startswith("moco_v2") else 1), name


# ---------------------------------------------------------------------------------------------- whole methods
class Net(nn.Sequential):
    num_features = 12

    def __init__(self, norm=True):
        norms = [nn.BatchNorm2d(12)] if norm else []
        super().__init__(nn.Conv2d(3, 12, 3, bias=not norm), *norms, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _vit():
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=0, dynamic_img_size=True)


MOCO = {"hidden_dim": 16, "proj_dim": 8, "queue_size": 40, "momentum": 0.9}
DINO_ = {"hidden_dim": 16, "bottleneck_dim": 8, "out_dim": 10, "momentum": 0.9, "teacher_temp_start": 0.1, "norm_last_layer": False}


def _dino(**options):
    """With weights large enough for the images to matter beside the biases."""
    method = DINO(Net(), **DINO_, **options)
    for m in (*method.head.modules(), *method.teacher.network[1].modules()):
        if isinstance(m, nn.Linear):
            m.weight.data.mul_(20)
    return method


TEXT = {"width": 8, "heads": 2, "layers": 1, "context": 5}
METHODS = {  # of the number of devices that one process stands in for
    "simclr": lambda _: SimCLR(Net(), hidden_dim=16, proj_dim=8, temperature=0.2),
    "moco_v2": lambda _: MoCo(Net(norm=False), **MOCO),
    "moco_v2_symmetric": lambda _: MoCo(Net(norm=False), symmetric=True, **MOCO),
    "moco_v2_with_bn": lambda groups: MoCo(Net(), bn_groups=groups, **MOCO),
    "moco_v3": lambda _: MoCoV3(Net(), hidden_dim=16, proj_dim=8, momentum=0.9),
    "moco_v3_vit": lambda _: MoCoV3(_vit(), hidden_dim=16, proj_dim=8, momentum=0.9),
    "byol": lambda _: BYOL(Net(), hidden_dim=16, proj_dim=8, momentum=0.9),
    "simsiam": lambda _: SimSiam(Net(), proj_dim=16, pred_dim=8),
    "dino": lambda _: _dino(),
    "dino_sinkhorn": lambda _: _dino(assignment="sinkhorn"),
    "barlow_twins": lambda _: BarlowTwins(Net(), hidden_dim=16, proj_dim=8),
    "vicreg": lambda _: VICReg(Net(), hidden_dim=16, proj_dim=8),
    "supervised": lambda _: Supervised(Net(), 3),
    "clip": lambda _: CLIP(Net(), 8, TEXT),
    "siglip": lambda _: SigLIP(Net(), 8, TEXT),
}


def _method(name, groups=1):
    torch.manual_seed(3)
    return METHODS[name](groups).double()


def _views(local_crops=0):
    g = torch.Generator().manual_seed(4)
    base = torch.randn(12, 3, 8, 8, generator=g, dtype=torch.float64)
    views = [base + 0.3 * torch.randn(12, 3, 8, 8, generator=g, dtype=torch.float64) for _ in range(2 + local_crops)]
    return views[:2] + [v[..., 2:6, 1:5] for v in views[2:]]


def _beside(r=0, world=1):
    """Beside the views; labels of which ranks have unlike numbers."""
    tokens = torch.randint(1, 90, (12, 5), generator=torch.Generator().manual_seed(6))
    labels = torch.tensor([0, 1, -1, 2, 0, -1, -1, -1, 1, -1, -1, -1])
    return {"tokens": part(tokens, r, world), "label": part(labels, r, world)}


def _three_steps(name, local_crops, r, world, groups=1):
    """Three optimizer steps with the hooks in the order of Method.training_step; loss and gradients are those of the first."""
    method = _method(name, groups)
    if method.sync_bn:
        synchronise(method, "cpu")
    trained = {k: p for k, p in method.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.05, momentum=0.9)
    method.steps_total, found = 5, {}
    for step in range(3):
        method.steps_done = step
        if step:
            method.before_step()
        optimizer.zero_grad()
        loss = method.step([part(v, r, world) for v in _views(local_crops)], _beside(r, world))["loss"]
        loss.backward()
        mean = mean_over_ranks(parameters_to_vector([p.grad for p in trained.values()]))
        vector_to_parameters(mean, [p.grad for p in trained.values()])
        if step == 0:
            found = {"loss": mean_over_ranks(loss.detach()), "grads": {k: p.grad.clone() for k, p in trained.items()}}
        optimizer.step()
        method.after_step()
    return {**found, "state": method.state_dict()}


def _methods(r, world):
    """With and without two local views; groups of a BN are not those of ranks where local views share a forward."""
    cases = [(name, crops) for name in METHODS for crops in (0, 2) if not crops or (world == 2 and name != "moco_v2_with_bn")]
    return {f"{name} {crops}": _three_steps(name, crops, r, world) for name, crops in cases}


@pytest.mark.parametrize("name", METHODS)
def test_ranks_equal_one_process_on_the_global_batch(ranks, name):
    for case in (c for c in ranks[0]["_methods"] if c.split()[0] == name):
        _compare([f["_methods"][case] for f in ranks], name, int(case.split()[1]))


def _compare(found, name, local_crops):
    own_statistics = name == "moco_v2_with_bn"  # of each rank: the mean over ranks of the running ones is that over the groups
    alone = _three_steps(name, local_crops, 0, 1, len(found) if own_statistics else 1)
    running = {k: torch.stack([f["state"][k] for f in found]).mean(0) for k in alone["state"] if own_statistics and "running_" in k}
    for f in found:
        assert float(f["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-10)
        assert f["grads"].keys() == alone["grads"].keys()
        for key, grad in alone["grads"].items():
            torch.testing.assert_close(f["grads"][key], grad, rtol=1e-8, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}")
        for key, value in alone["state"].items():  # weights, teacher, queue and pointer, center, BN statistics after three steps
            torch.testing.assert_close(running.get(key, f["state"][key]), value, rtol=1e-7, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


def test_three_steps_move_everything():
    """What the comparison above compares is not what there was before the first step."""
    for name in METHODS:
        before, after = _method(name).state_dict(), _three_steps(name, 2, 0, 1)["state"]
        still = {k for k, v in before.items() if torch.equal(v, after[k])}
        if name == "moco_v3_vit":
            still = {k for k in still if not k.endswith(("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"))}
        still -= {"center.value"} if name == "dino_sinkhorn" else set()  # which has no use for it
        still -= {"center.added", "center.batches"}  # used up in each step
        still = {k for k in still if not (name == "simclr" and k == "projector.4.bias")}  # the shift that stays at zero
        assert not still, f"{name}: {still}"


def _unsynchronised(r, world):
    found = {}
    for name in ("simclr", "moco_v3", "byol", "simsiam", "dino", "barlow_twins", "vicreg"):
        loss = _method(name).step([part(v, r, world) for v in _views()], {})["loss"]
        found[name] = mean_over_ranks(loss.detach())
    return {**found, "rank": rank()}


def test_without_global_batch_statistics_the_loss_differs(ranks):
    found = {k: float(v) for k, v in ranks[0]["_unsynchronised"].items()}
    assert found.pop("rank") == 0
    for name, loss in found.items():
        assert loss != pytest.approx(float(_three_steps(name, 0, 0, 1)["loss"]), rel=1e-4), name


class _Loss(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, captions, *views):
        return self.method.step(views, captions)["loss"]


def _averaged_by_ddp(r, world):
    """Gradients of the first step as DistributedDataParallel averages them; the second fails where a parameter had none."""
    found = {}
    for name in METHODS if world == 2 else ():
        method = synchronise(_method(name), "cpu") if _method(name).sync_bn else _method(name)
        wrapped = DistributedDataParallel(_Loss(method))
        for step in range(2):
            wrapped(_beside(r, world), *[part(v, r, world) for v in _views()]).backward()
            if step == 0:
                found[name] = {k: p.grad.clone() for k, p in method.named_parameters() if p.requires_grad}
            method.zero_grad()
    return found


def test_ddp_averages_to_the_same_gradients(ranks):
    for f in ranks:
        for name, grads in f["_averaged_by_ddp"].items():
            for key, grad in f["_methods"][f"{name} 0"]["grads"].items():
                torch.testing.assert_close(grads[key], grad, rtol=1e-10, atol=1e-12)


CHUNKED = {
    "simclr": lambda size: SimCLR(Net(), hidden_dim=16, proj_dim=8, temperature=0.2, chunk_size=size),
    "simclr_vit": lambda size: SimCLR(_vit(), hidden_dim=16, proj_dim=8, temperature=0.2, chunk_size=size),
    "moco_v3": lambda size: MoCoV3(Net(), hidden_dim=16, proj_dim=8, chunk_size=size),
    "moco_v3_vit": lambda size: MoCoV3(_vit(), hidden_dim=16, proj_dim=8, chunk_size=size),
}


def _in_chunks(name, size, views, wrap):
    """Loss, gradients and state of one step, and how often DDP was handed a gradient; with `wrap`, as DDP averages them."""
    torch.manual_seed(3)
    method, handed = synchronise(CHUNKED[name](size).double(), "cpu"), []
    net = DistributedDataParallel(_Loss(method)) if wrap else _Loss(method)
    if wrap:
        net.register_comm_hook(None, lambda _, bucket: handed.extend(bucket.parameters()) or _average(bucket))
    loss = net({}, *views)
    loss.backward()
    grads = {k: p.grad for k, p in method.named_parameters() if p.requires_grad}
    return {"loss": mean_over_ranks(loss.detach()), "handed": len(handed), **grads, **{f"after {k}": b for k, b in method.named_buffers()}}


def _average(bucket):
    done = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return done.then(lambda f: f.value()[0] / world_size())


def _chunked(r, world):
    return {name: _in_chunks(name, 3, [part(v, r, world) for v in _views()], True) for name in CHUNKED}


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_on_ranks_are_chunks_of_one_process(ranks, name):
    """A chunk is that of all ranks together, as its batch statistics tell; DDP gets every gradient once."""
    world = len(ranks)
    parts = [torch.stack([part(v, r, world) for r in range(world)]) for v in _views()]  # [W, B / W, ...]
    together = [torch.cat([x.flatten(0, 1) for x in p.split(3, 1)]) for p in parts]
    size = None if name.endswith("vit") else 3 * world
    alone = _in_chunks(name, size, together, False)
    for found in (f["_chunked"][name] for f in ranks):
        assert found.pop("handed") == sum(not k.startswith(("after", "loss", "handed")) for k in alone)
        for key in found:
            torch.testing.assert_close(found[key], alone[key], rtol=1e-8, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}")


# ---------------------------------------------------------------------------------------------- data over three ranks
def _images(count):
    return Images(torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 2, 2), None, None, 2)


def _batches(r, world):
    loader = Loader(_images(50), batch_size=4, seed=0, rank=r, world_size=world)
    epochs = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        epochs.append(torch.stack([b["index"] for b in loader]))
    return {"epochs": torch.stack(epochs), "length": len(loader)}


def _union(r, world):
    return {"lines": union([f"rank {r}", "all"])}


def test_the_lines_of_all_ranks(three):
    assert all(f["_union"]["lines"] == ["all", "rank 0", "rank 1", "rank 2"] for f in three)


def test_ranks_take_equal_shares_of_an_epoch_and_no_image_twice(three):
    found = [f["_batches"] for f in three]
    assert [f["length"] for f in found] == [4, 4, 4]  # 50 images, 12 in a global batch: two are left out
    assert all(f["epochs"].shape == (3, 4, 4) for f in found)
    seen = torch.stack([f["epochs"] for f in found], 1).flatten(1)  # [epoch, image]
    assert all(len(set(epoch.tolist())) == 48 for epoch in seen)
    assert not torch.equal(seen[0], seen[1])
    assert set(seen.flatten().tolist()) == set(range(50))  # who is left out changes from epoch to epoch


class Counting(nn.Module):
    num_features = 3

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return x.mean((2, 3))


def _features(r, world):
    found = {}
    for count in (50, 4, 2):
        net = Counting()
        features = extract(net, _images(count).pixels, 2, (0.0,) * 3, (1 / 255,) * 3, "cpu", batch_size=7)
        found[str(count)] = {"features": features, "seen": net.seen}
    return found


@pytest.mark.parametrize("count", [50, 4, 2])
def test_evaluation_counts_every_image_once(three, count):
    """No copies that fill up the last rank, and ranks without images (the last of three, with four or two)."""
    found = [f["_features"][str(count)] for f in three]
    assert sum(f["seen"] for f in found) == count
    for f in found:
        torch.testing.assert_close(f["features"], torch.arange(float(count))[:, None].expand(-1, 3))


def _judged(r, world):
    """kNN on 7 test images against 13 training images, of which no number of ranks here is a divisor."""
    g = torch.Generator().manual_seed(0)
    labels = [torch.randint(3, (n,), generator=g) for n in (13, 7)]
    pixels = [torch.randint(256, (len(y), 3, 4, 4), generator=g, dtype=torch.uint8) for y in labels]
    train, test = (Images(x, y, ["a", "b", "c"], 4) for x, y in zip(pixels, labels, strict=True))
    net = Counting()
    bank, queries = (extract(net, i.pixels, 4, (0.5,) * 3, (0.25,) * 3, "cpu", batch_size=2) for i in (train, test))
    scores = knn_classify(bank, train.labels, queries, 5, 0.07, 3)
    return {"seen": net.seen, "scores": scores, "judged": judge(scores, test.labels, train.classes)}


def test_seven_test_images_are_judged_once_whatever_the_ranks(ranks):
    alone = _judged(0, 1)
    assert sum(f["_judged"]["seen"] for f in ranks) == alone["seen"] == 20
    for f in ranks:
        torch.testing.assert_close(f["_judged"]["scores"], alone["scores"])
        assert f["_judged"]["judged"] == alone["judged"]
        assert sum(map(sum, f["_judged"]["judged"]["confusion"])) == 7


def test_seeds_differ_between_ranks_and_steps():
    seeds = {fold_seed("augment", s, r, i) for s in range(4) for r in range(8) for i in range(100)}
    assert len(seeds) == 4 * 8 * 100

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d
from torch import nn

from ssl_zoo.errors import UserError
from ssl_zoo.nn import batchnorm
from ssl_zoo.nn.backbones import SMALL_STEM, create, tiny
from ssl_zoo.nn.heads import mlp


@pytest.mark.parametrize("size", [32, 64, 96])
def test_resnet_stem_follows_the_image_size(size):
    net = create("resnet18", image_size=size)
    small = size <= 64
    assert net.stem_used == (SMALL_STEM if small else "the model's own")
    conv = net.conv1
    assert (conv.kernel_size, conv.stride, conv.padding) == (((3, 3), (1, 1), (1, 1)) if small else ((7, 7), (2, 2), (3, 3)))
    assert isinstance(net.maxpool, nn.Identity) == small
    assert net(torch.zeros(2, 3, size, size)).shape == (2, net.num_features) == (2, 512)
    assert create("resnet18", image_size=size, stem="small").stem_used == SMALL_STEM


@pytest.mark.parametrize(("size", "patch"), [(32, 4), (96, 8), (224, 16)])
def test_vit_takes_any_size_divisible_by_its_patch(size, patch):
    net = create("vit_tiny_patch16_224", image_size=size)
    assert net.stem_used == f"patches of {patch} px"
    assert net(torch.zeros(1, 3, size, size)).shape == (1, 192)


def test_vit_interpolates_to_other_sizes():
    net = create("vit_tiny_patch16_224", image_size=96)
    assert net(torch.zeros(1, 3, 48, 48)).shape == (1, 192)


def test_vit_refuses_a_size_that_is_no_multiple():
    with pytest.raises(UserError, match=r"no multiple.*dataset.image_size=96"):
        create("vit_tiny_patch16_224", image_size=100, patch_size=16)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto", "regnetx_002"])
def test_any_timm_name(name):
    net = create(name, image_size=32)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, net.num_features)
    assert net.stem_used == SMALL_STEM


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        create("resnet81")
    with pytest.raises(UserError, match=r"refuses backbone\.kwargs"):
        create("resnet18", kwargs={"nonsense": 3})


def test_kwargs_reach_timm():
    assert create("vit_tiny_patch16_224", image_size=32, kwargs={"depth": 2}).blocks[1:][0] is not None
    assert len(create("vit_tiny_patch16_224", image_size=32, kwargs={"depth": 2}).blocks) == 2


@pytest.mark.parametrize("size", [32, 64, 96])
def test_tiny(size):
    net = tiny(image_size=size)
    assert net(torch.zeros(2, 3, size, size)).shape == (2, net.num_features)


def test_simclr_head_is_the_official_one():
    head = mlp(16, 32, 8, 2, last_norm="scale", init_std=0.01)
    linears = [m for m in head if isinstance(m, nn.Linear)]
    norms = [m for m in head if isinstance(m, nn.BatchNorm1d)]
    assert all(m.bias is None for m in linears)
    assert len(norms) == 2
    assert norms[0].bias.requires_grad
    assert norms[1].weight.requires_grad
    assert not norms[1].bias.requires_grad
    assert isinstance(head[-1], nn.BatchNorm1d)
    assert float(linears[0].weight.std()) == pytest.approx(0.01, rel=0.1)
    assert mlp(16, 32, 8, 3, last_bias=True)[-1].bias is not None
    assert mlp(16, 32, 8, 2, last_norm="plain")[-1].weight is None


# ---------------------------------------------------------------------------------------------- statistics of the global batch
def fused_net():
    torch.manual_seed(0)
    layers = (
        BatchNormAct2d(6, act_layer=nn.SiLU),
        nn.Conv2d(6, 4, 1),
        BatchNormAct2d(4, act_layer=nn.ReLU, drop_layer=nn.Tanh, inplace=False),
    )
    return nn.Sequential(nn.Conv2d(3, 6, 3), *layers, nn.AdaptiveAvgPool2d(1)).double()


def one_step(net, images, weights):
    """Output, gradients and state after a training step, and the output in evaluation mode after it."""
    out = net(images)
    (out * weights).sum().backward()
    return {
        "out": out.detach(),
        "grads": [p.grad for p in net.parameters()],
        "state": net.state_dict(),
        "eval": net.eval()(images).detach(),
    }


def fused_input():
    g = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 6, 6, generator=g, dtype=torch.float64), torch.randn(8, 4, 1, 1, generator=g, dtype=torch.float64)


def fused_step(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = one_step(batchnorm.synchronise(fused_net(), "cpu"), *(x.chunk(2)[rank] for x in fused_input()))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_fused_batchnorm_over_ranks_equals_one_process_on_the_global_batch(tmp_path):
    mp.spawn(fused_step, args=(str(tmp_path),), nprocs=2)
    a, b = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    alone = one_step(fused_net(), *fused_input())
    close = lambda x, y: torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)  # noqa: E731
    close(torch.cat([a["out"], b["out"]]), alone["out"])
    close(torch.cat([a["eval"], b["eval"]]), alone["eval"])
    close([x + y for x, y in zip(a["grads"], b["grads"], strict=True)], alone["grads"])
    close(a["state"], alone["state"])


@pytest.mark.parametrize("name", ["regnetx_002", "efficientnet_b0"])
def test_every_batchnorm_of_timm_is_synchronised(name):
    images = torch.randn(2, 3, 32, 32)
    net = create(name, image_size=32).eval()
    before = net(images)
    assert any(type(m) is BatchNormAct2d for m in net.modules())
    batchnorm.synchronise(net, "cpu")
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(m, batchnorm.GlobalBatchNorm) for m in norms)
    assert torch.equal(net(images), before)


def test_a_batchnorm_that_cannot_be_synchronised_is_said(monkeypatch):
    class OddNorm(nn.BatchNorm2d):
        pass

    net = nn.Sequential(OddNorm(3), nn.BatchNorm2d(3))
    assert type(batchnorm.synchronise(net, "cpu")[0]) is OddNorm
    monkeypatch.setattr(batchnorm, "world_size", lambda: 2)
    for device in ("cpu", "cuda"):
        with pytest.raises(UserError, match=r"OddNorm cannot use the statistics .* method\.sync_bn=false"):
            batchnorm.synchronise(net, device)


def test_synchronising_twice_keeps_the_activation(monkeypatch):
    monkeypatch.setattr(batchnorm, "world_size", lambda: 2)
    for device in ("cpu", "cuda"):
        net = batchnorm.synchronise(batchnorm.synchronise(fused_net(), device), device)
        assert isinstance(net[1].act, nn.SiLU)
        assert "Act" in type(net[1]).__name__


def test_recomputed_activations_give_the_same_gradients():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        net = create("vit_tiny_patch16_224", image_size=32, grad_checkpointing=checkpointing, kwargs={"depth": 2}).train()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            loss = net(x).square().mean()
        loss.backward()
        grads.append(([p.grad for p in net.parameters()], sum(kept)))
    assert all(torch.equal(a, b) for a, b in zip(grads[0][0], grads[1][0], strict=True))
    assert grads[1][1] < grads[0][1] / 4  # numbers kept for the backward pass
    with pytest.raises(UserError, match="batch normalisation"):
        create("resnet18", image_size=32, grad_checkpointing=True)

import pytest
import torch
from torch import nn

from ssl_zoo.errors import UserError
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
    assert mlp(16, 32, 8, 3, last_norm="none")[-1].bias is not None
    assert mlp(16, 32, 8, 2, last_norm="plain")[-1].weight is None

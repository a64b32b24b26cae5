"""Weights from elsewhere: outputs equal those of the network they came from, or a sentence says why they cannot be loaded."""

import argparse
import copy
import io
import os
import pickle
import re
import types
import urllib.error
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from ssl_zoo.errors import UserError
from ssl_zoo.methods.byol import BYOL
from ssl_zoo.methods.dino import DINO
from ssl_zoo.nn.backbones import create, tiny
from ssl_zoo.nn.checkpoint_file import read_checkpoint
from ssl_zoo.nn.layouts import NEUTRAL, STUDENTS, TEACHERS
from ssl_zoo.nn.named_weights import named_weights
from ssl_zoo.nn.vit import moco_v3_vit
from ssl_zoo.nn.weights import load_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def stirred(net, seed=0):
    """Every number of `net` away from its start, where a mistake would not show."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in net.state_dict().items():
            if t.is_floating_point():
                noise = torch.rand(t.shape, generator=g)
                t.copy_(0.5 + noise if name.endswith("running_var") else t + 0.1 * (noise - 0.5))
    return net.eval()


def cifar(net, padding=1):
    net.conv1 = nn.Conv2d(3, 64, 3, 1, padding, bias=False)
    net.maxpool = nn.Identity()
    return net


def theirs(seed=0, padding=1, stem="small"):
    """torchvision's ResNet with one block per stage, without classifier."""
    net = torchvision.models.ResNet(TorchvisionBlock, [1, 1, 1, 1])
    net.fc = nn.Identity()
    return stirred(cifar(net, padding) if stem == "small" else net, seed)


def ours(stem="small"):
    net = ResNet(BasicBlock, layers=(1, 1, 1, 1), num_classes=0)
    return (cifar(net) if stem == "small" else net).eval()


def vit(size=16, patch=8, width=48, heads=3, depth=2, **kwargs):
    return VisionTransformer(size, patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0, **kwargs).eval()


SMALL = ResNet(BasicBlock, layers=(1, 1, 1, 1), channels=(4, 4, 4, 4), num_classes=0, stem_type="deep", stem_width=2)
SMALL.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)


@pytest.fixture(scope="module")
def nets():
    """Student and teacher; their state dicts are shared by the tests and not changed."""
    return theirs(1), theirs(2)


def under(prefix, state):
    return {f"{prefix}{name}": t for name, t in state.items()}


def head(prefix, *names):
    return {f"{prefix}{name}": torch.ones(2, 2) for name in names or ("0.weight", "1.bias", "1.running_mean")}


def images(size=32):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def same(a, b, size=32):
    with torch.no_grad():
        x, y = a.eval()(images(size)), b.eval()(images(size))
    assert x.std() > 1e-3
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def refused(match, backbone, content, **options):
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(UserError, match=match) as e:
        load_weights(backbone, content, **options)
    assert "\n" not in str(e.value)
    assert str(e.value).endswith(".")
    assert all(torch.equal(t, before[n]) for n, t in backbone.state_dict().items())


def children(state):
    """Names of nn.Sequential(*list(resnet.children())[:-1])."""
    where = {"conv1": "0", "bn1": "1", **{f"layer{i}": str(3 + i) for i in range(1, 5)}}
    return {re.sub(r"^\w+", lambda m: where[m[0]], name): t for name, t in state.items()}


def generator(state):
    """Names of the children of a ResNet whose ReLU is a function, which has no max-pool, and calls the way round a shortcut."""
    where = {"conv1": "0", "bn1": "1", **{f"layer{i}": str(1 + i) for i in range(1, 5)}}
    return {re.sub(r"^\w+", lambda m: where[m[0]], name).replace("downsample", "shortcut"): t for name, t in state.items()}


LAYOUTS = {  # layout: (content of student's and teacher's state dicts, what the report says of it, what auto takes, parts that are left)
    "flat": (lambda s, t: {**s, **head("fc.", "weight", "bias")}, "a state dict", "student", {"classifier or projector"}),
    "compiled": (lambda s, t: under("_orig_mod.module.", s), "a state dict: _orig_mod.module", "student", set()),
    "dino": (
        lambda s, t: {
            "student": {**under("module.backbone.", s), **head("module.head.", "mlp.0.weight", "last_layer.weight_g")},
            "teacher": {**under("backbone.", t), **head("head.", "mlp.0.weight", "last_layer.weight_v")},
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
            "dino_loss": {"center": torch.zeros(1, 8)},
            "args": argparse.Namespace(arch="resnet"),
            "epoch": 3,
        },
        "DINO: teacher.backbone",
        "teacher",
        {"the student's network", "projector", "state of training", "state of the loss"},
    ),
    "moco": (
        lambda s, t: {
            "state_dict": {
                **under("module.encoder_q.", s),
                **head("module.encoder_q.fc.", "0.weight", "2.bias"),
                **under("module.encoder_k.", t),
                **head("module.encoder_k.fc.", "0.weight"),
                "module.queue": torch.ones(4, 8),
                "module.queue_ptr": torch.zeros(1, dtype=torch.long),
            },
            "optimizer": {"state": {}},
            "arch": "resnet50",
        },
        "MoCo v1/v2: module.encoder_q",
        "student",
        {"queue", "classifier or projector", "the teacher's network", "state of training"},
    ),
    "moco_v3": (
        lambda s, t: {
            "state_dict": {
                **under("module.base_encoder.", s),
                **head("module.base_encoder.fc."),
                **under("module.momentum_encoder.", t),
                **head("module.momentum_encoder.fc."),
                **head("module.predictor."),
            }
        },
        "MoCo v3: module.base_encoder",
        "student",
        {"predictor", "classifier or projector", "the teacher's network"},
    ),
    "barlow_twins": (
        lambda s, t: {"model": {**under("module.backbone.", s), **head("module.projector."), "module.bn.running_mean": torch.ones(2)}},
        "Barlow Twins: model.module.backbone",
        "student",
        {"projector"},
    ),
    "vicreg": (
        lambda s, t: {"epoch": 1, "model": {**under("module.backbone.", s), **head("module.projector.")}, "optimizer": {}},
        "VICReg: model.module.backbone",
        "student",
        {"projector", "state of training"},
    ),
    "simsiam": (
        lambda s, t: {"state_dict": {**under("module.encoder.", s), **head("module.encoder.fc."), **head("module.predictor.")}},
        "SimSiam: module.encoder",
        "student",
        {"predictor", "classifier or projector"},
    ),
    "byol": (
        lambda s, t: {**under("online_network.", s), **under("target_network.", t), **head("online_predictor.")},
        "a state dict: online_network",
        "student",
        {"predictor", "the teacher's network"},
    ),
    "lightly": (
        lambda s, t: {
            "state_dict": {
                **under("backbone.", children(s)),
                **head("projection_head.layers."),
                **under("backbone_momentum.", children(t)),
                **head("projection_head_momentum.layers."),
            },
            "pytorch-lightning_version": "2.0",
        },
        "lightly: backbone",
        "student",
        {"projector", "the teacher's network"},
    ),
    "lightly generator": (
        lambda s, t: under("backbone.", generator(s)),
        "lightly: backbone (a row of a ResNet's children)",
        "student",
        set(),
    ),
    "lightly dino": (
        lambda s, t: {**under("student_backbone.", children(s)), **under("teacher_backbone.", children(t)), **head("student_head.")},
        "teacher_backbone",
        "teacher",
        {"projector", "the student's network"},
    ),
    "lightly benchmark": (  # whose teacher is the one without a word before it
        lambda s, t: {"state_dict": {**under("backbone.", t), **under("student_backbone.", s), **head("projection_head.")}},
        "lightly: backbone",
        "teacher",
        {"projector", "the student's network"},
    ),
    "lightning": (lambda s, t: {"state_dict": {**under("model.net.", s)}}, "a state dict: model.net", "student", set()),
    "shortcuts": (
        lambda s, t: {**{n.replace("downsample", "shortcut"): v for n, v in s.items()}, **head("linear.", "weight", "bias")},
        "a ResNet with shortcuts",
        "student",
        {"classifier or projector"},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("net", ["auto", "student", "teacher"])
def test_each_layout_gives_the_network_it_names(nets, layout, net):
    make, words, auto, parts = LAYOUTS[layout]
    content = make(*(n.state_dict() for n in nets))
    backbone = ours()
    if net == "teacher" and not any("teacher" in p or "student" in p for p in parts):
        refused("holds no teacher .*: leave net=auto", backbone, content, net=net)
        return
    report = load_weights(backbone, content, net)
    taken = auto if net == "auto" else net
    same(backbone, nets[taken == "teacher"])
    if net == "auto":
        assert words in report.layout
        assert set(report.left) == parts
        other = {"student": "teacher", "teacher": "student"}[auto]
        assert any(f"net={other}" in note for note in report.notes) == (f"the {other}'s network" in parts)
    assert report.matched == tuple(backbone.state_dict())
    assert "loaded" in str(report)
    assert all(part in str(report) for part in parts)


def test_everything_in_the_file_is_accounted_for(nets):
    report = load_weights(ours(), LAYOUTS["moco"][0](*(n.state_dict() for n in nets)))
    assert report.left["queue"] == ("state_dict.queue", "state_dict.queue_ptr")
    assert report.left["classifier or projector"] == ("state_dict.encoder_q.fc.0.weight", "state_dict.encoder_q.fc.2.bias")
    assert len(report.left["the teacher's network"]) == len(nets[1].state_dict()) + 1  # and its fc


def test_solo_learn_pads_its_small_stem_by_two():
    source = theirs(3, padding=2)
    content = {
        "state_dict": {**under("backbone.", source.state_dict()), **head("classifier.", "weight", "bias"), **head("projector.")},
        "pytorch-lightning_version": "1.9",
    }
    for name in ("backbone", "encoder"):
        backbone = ours()
        state = {n.replace("backbone.", f"{name}."): t for n, t in content["state_dict"].items()}
        report = load_weights(backbone, {**content, "state_dict": state})
        assert report.layout.startswith("solo-learn")
        assert any("conv1.padding set to 2" in note for note in report.notes)
        same(backbone, source)
    backbone = ours("model")
    large = theirs(3, stem="model")
    report = load_weights(backbone, {**content, "state_dict": {**under("backbone.", large.state_dict()), **head("classifier.", "weight")}})
    assert backbone.conv1.padding == (3, 3)
    assert not any("padding" in note for note in report.notes)
    same(backbone, large)


def test_what_a_state_dict_does_not_tell_is_noted(nets):
    assert any("stride 1, padding 1 and no max-pool" in n for n in load_weights(ours(), nets[0].state_dict()).notes)
    assert any("3 heads" in n for n in load_weights(vit(), vit().state_dict()).notes)


def simsiam_of(encoder):
    net = nn.Module()
    encoder.fc = nn.Sequential(
        nn.Linear(512, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False)
    )
    net.encoder, net.predictor = encoder, nn.Sequential(nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 8))
    return net


def test_a_whole_simsiam_from_a_file_of_torch_before_1_6(tmp_path):
    source = theirs(4)
    plain = copy.deepcopy(source)
    file = tmp_path / "checkpoint_0099.pth.tar"
    state = under("module.", simsiam_of(source).state_dict())
    torch.save({"epoch": 1, "arch": "resnet50", "state_dict": state}, file, _use_new_zipfile_serialization=False)
    backbone = ours()
    assert load_weights(backbone, file).layout.startswith("SimSiam: module.encoder")
    same(backbone, plain)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121"])
def test_torchvision_and_timm_call_these_alike(name):
    source = stirred(torchvision.models.get_model(name))
    backbone = timm.create_model(name, num_classes=0)
    report = load_weights(backbone, source.state_dict())
    assert set(report.left) == {"classifier or projector"}
    setattr(source, "classifier" if name.startswith("dense") else "fc", nn.Identity())
    same(backbone, source, 64)


@pytest.mark.parametrize("name", ["convnext_atto", "regnetx_002", "mobilenetv3_small_050", "deit_tiny_distilled_patch16_224"])
def test_any_model_of_timm_leaves_its_classifier(name):
    source, backbone = stirred(timm.create_model(name)), timm.create_model(name, num_classes=0)
    report = load_weights(backbone, under("module.", source.state_dict()))
    assert set(report.left) == {"classifier or projector"}
    source.reset_classifier(0)
    same(backbone, source, 224 if name.startswith("deit") else 64)


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "efficientnet_b0"])
def test_other_families_of_torchvision_are_refused(name):
    refused("torchvision's names, which are known of ResNets", ours(), torchvision.models.get_model(name).state_dict())


def torchvision_vit(classes=5):
    torch.manual_seed(1)
    return stirred(torchvision.models.VisionTransformer(16, 8, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=192, num_classes=classes))


@pytest.mark.parametrize("old_names", [False, True])
def test_torchvision_vision_transformer(old_names):
    source = torchvision_vit()
    state = source.state_dict()
    if old_names:  # of the first published files
        state = {n.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t for n, t in state.items()}
    backbone = vit()
    report = load_weights(backbone, under("module.", state))
    assert "torchvision's VisionTransformer" in report.layout
    assert report.left == {"classifier or projector": ("heads.head.weight", "heads.head.bias")}
    source.heads = nn.Identity()
    same(backbone, source, 16)
    assert backbone.norm.eps == source.encoder.ln.eps == backbone.blocks[0].norm1.eps == source.encoder.layers[0].ln_1.eps == 1e-6


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.vit.", "net."])
def test_timm_vision_transformer_under_wrappers(prefix):
    source, backbone = stirred(vit()), vit()
    extra = {"backbone.mask_token": torch.zeros(1, 1, 48)} if "vit" in prefix else head(f"{prefix}head.", "weight", "bias")
    assert len(load_weights(backbone, {**under(prefix, source.state_dict()), **extra}).left) == 1
    same(backbone, source, 16)


def test_masked_autoencoder_leaves_its_decoder(tmp_path):
    source, backbone = stirred(vit()), vit()
    model = {
        **source.state_dict(),
        "mask_token": torch.ones(1, 1, 8),
        **head("decoder_embed.", "weight"),
        "decoder_pos_embed": torch.ones(1),
    }
    torch.save({"model": model, "args": argparse.Namespace(model="mae"), "epoch": 1}, tmp_path / "mae.pth")
    report = load_weights(backbone, tmp_path / "mae.pth")
    assert report.layout.startswith("MAE")
    assert set(report.left) == {"decoder of masked patches", "state of training"}
    same(backbone, source, 16)


def test_positions_are_resampled_as_timm_does_it():
    source = stirred(vit(size=16))
    backbone = vit(size=32)
    report = load_weights(backbone, source.state_dict())
    assert "positions resampled from 2x2 to 4x4 patches" in report.notes
    source.set_input_size(img_size=32)
    same(backbone, source, 32)


def test_positions_of_another_number_of_tokens_are_refused():
    state = vit().state_dict()
    refused("pos_embed has 4 positions in the file.* 1 further", vit(), {**state, "pos_embed": state["pos_embed"][:, 1:]})


@pytest.mark.parametrize("heads", [6, 12])
def test_moco_v3_has_twelve_heads_in_a_small_transformer(heads):
    source = stirred(vit(width=384, heads=12, depth=1))
    backbone = vit(width=384, heads=heads, depth=1)
    state = {**under("module.base_encoder.", source.state_dict()), **head("module.base_encoder.head."), **head("module.predictor.")}
    report = load_weights(backbone, {"state_dict": state})
    assert any("from 6 to 12 heads" in note for note in report.notes) == (heads == 6)
    assert backbone.blocks[0].attn.scale == source.blocks[0].attn.scale  # which fused attention takes from the shapes
    same(backbone, source, 16)


@pytest.mark.parametrize("size", [24, 40])  # of the backbone's images: positions are recognised before they are resampled
@pytest.mark.parametrize("fixed", [True, False])
def test_solo_learn_has_twelve_heads_where_positions_are_fixed(fixed, size):
    source = vit(size=24, width=192, heads=12 if fixed else 3, depth=1)
    source = moco_v3_vit(source) if fixed else stirred(source)
    backbone = vit(size=size, width=192, heads=3, depth=1)
    state = {**under("backbone.", source.state_dict()), **head("classifier.", "weight")}
    load_weights(backbone, {"state_dict": state, "pytorch-lightning_version": "2.0"})
    assert backbone.blocks[0].attn.num_heads == (12 if fixed else 3)
    source.set_input_size(img_size=size)
    same(backbone, source, size)


def test_fixed_positions_without_a_project_are_noted():
    net = moco_v3_vit(vit(size=24, width=192, heads=3, depth=1))
    turned = net.pos_embed[:, 1:].unflatten(1, (3, 3)).transpose(1, 2).flatten(1, 2)  # MAE's
    for positions in (net.pos_embed[:, 1:], turned):
        state = {**net.state_dict(), "pos_embed": torch.cat([net.pos_embed[:, :1], positions], 1)}
        assert any("kwargs={num_heads:12}" in n for n in load_weights(vit(size=24, width=192, depth=1), state).notes)
    assert not any("num_heads:12" in n for n in load_weights(vit(width=192, depth=1), vit(width=192, depth=1).state_dict()).notes)


@pytest.mark.parametrize("method", [BYOL, DINO])
def test_our_own_checkpoint(method, tmp_path):
    options = {"hidden_dim": 16, "bottleneck_dim": 8, "out_dim": 16} if method is DINO else {"hidden_dim": 16, "proj_dim": 8}
    module = method(backbone=tiny(), **options)
    stirred(module.backbone, 1), stirred(module.teacher, 2)
    file = tmp_path / "last.ckpt"
    torch.save(
        {"state_dict": module.state_dict(), "unseen_step": False, "pytorch-lightning_version": "2.6", "optimizer_states": [{}]}, file
    )
    for net in ("auto", "student", "teacher"):
        backbone = tiny()
        report = load_weights(backbone, file, net)
        assert report.layout.startswith("ssl_zoo")
        assert not any("not known" in part for part in report.left)
        teacher = net == "teacher" or (net == "auto" and method is DINO)
        same(backbone, module.teacher.network[0] if teacher else module.backbone)


def test_our_own_weights(tmp_path):
    source, backbone = stirred(tiny()), tiny()
    save_file(source.state_dict(), tmp_path / "backbone.safetensors")
    report = load_weights(backbone, tmp_path / "backbone.safetensors")
    assert report.left == {}
    same(backbone, source)


def test_a_loaded_transformer_says_so():
    net = create("vit_tiny_patch16_224", image_size=16, kwargs={"depth": 1})
    load_weights(net, net.state_dict())
    with pytest.raises(UserError, match=r"method\.vit=false"):  # MoCo v3 would draw the weights anew
        moco_v3_vit(net)


# ------------------------------------------------------------------------------------ refusals
def test_stem_and_patches_come_with_their_remedy():
    refused(r"conv1\.weight is 64x3x7x7 in the file and 64x3x3x3 here: set backbone\.stem=model", ours(), theirs(stem="model").state_dict())
    refused(r"set backbone\.stem=small", ours("model"), theirs().state_dict())
    refused(r"48x3x8x8 in the file and 48x3x4x4 here: set backbone\.patch_size=8", vit(patch=4), vit(patch=8).state_dict())


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("resnet18", r"ResNet \(resnet18: 2-2-2-2 basic blocks .*choose backbone=resnet18\."),
        ("resnet34", r"choose backbone=timm backbone\.name=resnet34\."),
        ("resnet50", r"choose backbone=resnet50\."),
        ("resnet101", r"choose backbone=timm backbone\.name=resnet101\."),
        ("wide_resnet50_2", r"backbone\.name=wide_resnet50_2\."),
        ("resnext50_32x4d", r"backbone\.name=resnext50_32x4d\."),
        ("vit_tiny_patch16_224", r"choose backbone=vit_t backbone\.patch_size=16\."),
        ("vit_small_patch16_224", r"choose backbone=vit_s backbone\.patch_size=16\."),
        ("vit_base_patch32_224", r"choose backbone=vit_b backbone\.patch_size=32\."),
        ("vit_large_patch16_224", r"backbone=timm backbone\.name=vit_large_patch16_224 backbone\.patch_size=16\."),
    ],
)
def test_the_right_backbone_is_named(file, match):
    with torch.device("meta"):
        state = timm.create_model(file).state_dict()
    for backbone in (vit(), ours()):
        refused(match, backbone, state)


def test_the_right_size_is_named_between_two_of_a_family():
    with torch.device("meta"):
        small = timm.create_model("vit_small_patch16_224", num_classes=0)
    refused(r"vision transformer \(12 blocks of width 48|but the backbone is a vision .*choose backbone=vit_s", vit(), small.state_dict())
    refused("choose backbone=tiny", ours(), tiny().state_dict())


def test_every_missing_name_is_refused_by_its_name():
    state = SMALL.state_dict()
    for name in state:
        rest = {n: t for n, t in state.items() if n != name}
        if name.endswith("num_batches_tracked"):
            assert any("num_batches_tracked" in note for note in load_weights(copy.deepcopy(SMALL), rest).notes)
        else:
            refused(f"lacks {re.escape(name)}", SMALL, rest)


def test_unknown_names_shapes_kinds_and_numbers_are_refused(nets):
    state = nets[0].state_dict()
    refused(r"has layer1\.0\.se\.weight, for which the backbone has no place", ours(), {**state, "layer1.0.se.weight": torch.ones(2)})
    refused(r"has head\.norm\.weight, for which", ours(), {**state, "head.norm.weight": torch.ones(2)})
    refused(r"layer4\.0\.bn2\.bias is 3 in the file and 512 here", ours(), {**state, "layer4.0.bn2.bias": torch.ones(3)})
    refused("not finite", ours(), {**state, "bn1.bias": torch.full((64,), float("nan"))})
    refused(r"torch\.int8 in the file", ours(), {**state, "bn1.bias": torch.ones(64, dtype=torch.int8)})
    refused(r"names begin with wrap\., which is not known here, save them without it", ours(), under("wrap.", state))
    refused("twice", ours(), {**state, "module.bn1.bias": state["bn1.bias"]})
    refused("twice", ours(), {**state, "layer2.0.shortcut.0.weight": state["layer2.0.downsample.0.weight"]})
    refused(r"several networks \(net, model\)", ours(), {**under("net.", state), **under("model.", state)})
    refused("holds no network, only queue", ours(), {"queue": torch.ones(2)})
    refused("no tensors at all", ours(), {"arch": "resnet18"})
    refused("net is auto, student or teacher, not best", ours(), state, net="best")
    refused(r"backbone\.kwargs=\{global_pool:token\}", vit(global_pool="avg"), vit().state_dict())
    refused(r"backbone\.kwargs=\{global_pool:avg\}", vit(), vit(global_pool="avg").state_dict())
    refused("1 further tokens|choose the backbone", vit(reg_tokens=2), vit().state_dict())


def test_half_precision_is_converted(nets):
    state = {n: t.half() if t.is_floating_point() else t for n, t in nets[0].state_dict().items()}
    backbone = ours()
    assert "stored as float16, converted" in load_weights(backbone, state).notes
    assert backbone.conv1.weight.dtype == torch.float32
    assert torch.equal(backbone.conv1.weight, state["conv1.weight"].float())


NAMES = st.lists(
    st.sampled_from(["a", "layer1", "backbone", "fc", "head", "conv1", "weight", "0", "block", "norm", "b2", "x_y"]), min_size=1
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(NAMES.map(".".join))
def test_a_further_name_is_refused_or_reported(name):
    state = stirred(copy.deepcopy(SMALL)).state_dict()
    if name in state:
        return
    backbone = copy.deepcopy(SMALL)
    try:
        report = load_weights(backbone, {**state, name: torch.ones(3)})
    except UserError:
        assert torch.equal(backbone.conv1.weight, SMALL.conv1.weight)
    else:
        assert name in [n for names in report.left.values() for n in names]
        assert torch.equal(backbone.conv1.weight, state["conv1.weight"])


@settings(max_examples=60, deadline=None)
@given(st.text("abcdeklmnorst_0", min_size=1, max_size=12))
def test_an_unknown_prefix_is_refused(word):
    if word not in NEUTRAL | STUDENTS | TEACHERS | {"module"}:
        with pytest.raises(UserError, match=r"the names begin with|does not fit the backbone: it lacks|holds no network"):
            load_weights(SMALL, under(f"{word}.", SMALL.state_dict()))


# ------------------------------------------------------------------------------------ files
class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_of_a_file_is_run(tmp_path, nets, zipped):
    file, marker = tmp_path / "evil.pth", tmp_path / "marker"
    state = nets[0].state_dict()
    torch.save({"args": Evil(marker), "state_dict": state}, file, _use_new_zipfile_serialization=zipped)
    torch.load(file, weights_only=False)
    assert marker.exists()  # the file would do harm
    marker.unlink()
    backbone = ours()
    load_weights(backbone, file)
    assert not marker.exists()
    same(backbone, nets[0])


def test_a_plain_pickle_is_neither_run_nor_taken(tmp_path):
    file, marker = tmp_path / "evil.pth", tmp_path / "marker"
    file.write_bytes(pickle.dumps(Evil(marker)))
    pickle.loads(file.read_bytes())
    marker.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(file)
    assert not marker.exists()


def test_a_pickle_cannot_change_the_functions_that_it_may_call(tmp_path):
    function = torch._utils._rebuild_tensor_v2
    before = function.__defaults__
    attack = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b."
    pickle.loads(attack)
    assert function.__defaults__ == (1,)  # the attack works on pickle
    function.__defaults__ = before
    (tmp_path / "evil.pth").write_bytes(attack)
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "evil.pth")
    assert function.__defaults__ == before


class Settings(dict):
    """Stands for the hyper-parameters of other projects: a class that is not rebuilt."""


def test_objects_of_other_classes_are_stubs(tmp_path):
    content = {
        "args": argparse.Namespace(lr=0.1),
        "hyper_parameters": Settings(lr=0.1),
        "best_acc1": np.float64(3.0),
        "array": np.ones(3),
        "scheduler": types.SimpleNamespace(last=[torch.ones(2)]),
        "state_dict": OrderedDict(a=nn.Parameter(torch.ones(2)), b=torch.arange(3), c=torch.ones(2, dtype=torch.bfloat16)),
        "epoch": 3,
        "names": ("x", [1.5, True, None]),
        "set": {1},
    }
    torch.save(content, tmp_path / "c.pth")
    back = read_checkpoint(tmp_path / "c.pth")
    assert {k: back[k] for k in ("epoch", "names", "set")} == {"epoch": 3, "names": ("x", [1.5, True, None]), "set": {1}}
    assert all(torch.equal(back["state_dict"][n], t) for n, t in content["state_dict"].items())
    assert repr(back["args"]) == "<argparse.Namespace, not rebuilt>"
    assert not isinstance(back["hyper_parameters"], dict)


def zip_of(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, data in members.items():
            z.writestr(f"archive/{name.replace('_', '.')}", data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "neither a safetensors nor a torch file"),
        (b"\n<!DOCTYPE html><html>404", "a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\x93NUMPY and more", "neither a safetensors nor a torch file"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{ no json", "cannot be read .*damaged"),
        (zip_of(data_pkl=b"\x80\x02}."), "cannot be read .*damaged"),
        (zip_of(constants_pkl=b"\x80\x02).", data_pkl=b""), "TorchScript"),
        (b"\x80\x02}.", "cannot be read"),
    ],
)
def test_files_that_hold_no_weights_are_refused(tmp_path, data, match):
    (tmp_path / "w.pth").write_bytes(data)
    refused(match, ours(), tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_short_is_refused(tmp_path, kind):
    file = tmp_path / "w.pth"
    state = {"a": torch.ones(1000), "b": torch.ones(1000)}
    save_file(state, file) if kind == "safetensors" else torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    whole = file.read_bytes()
    for share in (0.1, 0.5, 0.9):
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(file)


def test_missing_files_and_whole_models_are_refused(tmp_path):
    refused("There is no file of weights", ours(), tmp_path / "none.pth")
    refused("There is no file of weights", ours(), str(tmp_path))
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    refused(r"one object \(torch\.nn\.modules\.linear\.Linear\).*save the state_dict\(\)", ours(), tmp_path / "model.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    refused(r"one object \(list\)", ours(), tmp_path / "list.pth")


# ------------------------------------------------------------------------------------ by name
def test_timm_weights_by_name(monkeypatch):
    make, asked = timm.create_model, []

    def without_network(name, pretrained=False, **options):
        asked.append((name, pretrained))
        return stirred(make(name, **options))

    monkeypatch.setattr(timm, "create_model", without_network)
    state, model, about = named_weights("timm/resnet18.tv_in1k")
    assert asked == [("resnet18.tv_in1k", True)]
    assert model == "resnet18"
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    assert about == {"weights": "timm/resnet18.tv_in1k", "mean": mean, "std": std, "image_size": 224}
    assert load_weights(make("resnet18", num_classes=0), state).left == {}
    assert re.fullmatch(r"timm/resnet18\.\w+", named_weights("timm/resnet18")[2]["weights"])


def test_torchvision_weights_by_name(monkeypatch):
    nets = {"resnet18": stirred(torchvision.models.resnet18()), "vit_b_16": None}
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, **_: nets["resnet18"].state_dict())
    for name in ("torchvision/resnet18", "torchvision/ResNet18_Weights.IMAGENET1K_V1"):
        state, model, about = named_weights(name)
        assert (model, about["image_size"]) == ("resnet18", 224)
        assert about["weights"] == "torchvision/ResNet18_Weights.IMAGENET1K_V1"
        assert about["mean"] == [0.485, 0.456, 0.406]
        backbone = timm.create_model(model, num_classes=0)
        load_weights(backbone, state)
        source = copy.deepcopy(nets["resnet18"])
        source.fc = nn.Identity()
        same(backbone, source, 64)
    assert named_weights("torchvision/ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1")[1:] == (
        "vit_base_patch16_224",
        {
            "weights": "torchvision/ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "image_size": 384,
        },
    )


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("resnet18", "Weights by name are timm/<model> or torchvision/<model>, not resnet18"),
        ("timm/resnet81", "timm has no model 'resnet81'; near are .*resnet18"),
        ("timm/resnet18.imagenet", r"timm has no weights 'resnet18\.imagenet'; near are resnet18\."),
        ("timm/vit_base_patch16_rope_reg1_gap_256_none", "timm has no model"),
        ("torchvision/resnet81", "torchvision has no model 'resnet81'; near are .*resnet18"),
        (
            "torchvision/ResNet18_Weights.V9",
            r"torchvision has no weights 'ResNet18_Weights\.V9'; near are .*ResNet18_Weights\.IMAGENET1K_V1",
        ),
        ("torchvision/swin_t", "torchvision's swin_t has other names than timm's"),
    ],
)
def test_unknown_names_of_weights(name, match):
    with pytest.raises(UserError, match=match):
        named_weights(name)


def test_weights_that_cannot_be_had(monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", offline)
    for name in ("timm/resnet18", "torchvision/resnet18"):
        with pytest.raises(UserError, match=r"(?i)weights .*resnet18.* cannot be had .*no route to host.*check the network"):
            named_weights(name)

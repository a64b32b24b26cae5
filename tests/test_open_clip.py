"""open_clip: the same losses, its weights here, and ours there."""

import json
import socket

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from open_clip.model import CLIP as OpenCLIP
from open_clip.model import CustomTextCLIP
from PIL import Image
from safetensors.torch import save_file

from ssl_zoo.cli import main
from ssl_zoo.data.pixels import fit
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.features import normalised
from ssl_zoo.export import header, load_backbone, save_backbone
from ssl_zoo.methods.clip import CLIP, clip_loss
from ssl_zoo.methods.siglip import SigLIP, siglip_loss
from ssl_zoo.nn.backbones import create, tiny
from ssl_zoo.nn.checkpoint_file import read_checkpoint
from ssl_zoo.nn.numerics import unit
from ssl_zoo.nn.text import TextTower, tokenize
from ssl_zoo.nn.text_weights import load_meeting, load_text
from ssl_zoo.nn.weights import load_weights
from ssl_zoo.open_clip_folder import as_open_clip, write

pytestmark = pytest.mark.usefixtures("one_thread")
CLOSE = {"rtol": 0, "atol": 1e-5}
TEXT = {"width": 32, "heads": 2, "layers": 2, "context": 12}
SENTENCES = ["a red circle", "", "Two  small BLUE squares above a long green triangle, and more words than there is room for"]
ABOUT = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.25]}
METHODS = [CLIP, SigLIP]


def stirred(net):
    """Every number away from its start, where a mistake would not show."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, t in net.state_dict().items():
            if t.is_floating_point():
                noise = torch.rand(t.shape, generator=g)
                t.copy_(0.5 + noise if name.endswith("running_var") else t + 0.1 * (noise - 0.5))
    return net.eval()


def pictures(size, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------ losses
def inputs(batch, dim):
    g = torch.Generator().manual_seed(batch)
    image, text = (torch.randn(batch, dim, generator=g, dtype=torch.float64).requires_grad_() for _ in "it")
    return (
        image,
        text,
        torch.tensor(12.5, dtype=torch.float64, requires_grad=True),
        torch.tensor(-3.0, dtype=torch.float64, requires_grad=True),
    )


@pytest.mark.parametrize(("batch", "dim"), [(2, 3), (9, 16), (64, 32)])
@pytest.mark.parametrize("method", METHODS)
def test_losses_are_those_of_open_clip(method, batch, dim):
    found = []
    for own in (True, False):
        image, text, scale, bias = inputs(batch, dim)
        if method is CLIP:
            loss = clip_loss(image, text, scale) if own else ClipLoss()(unit(image), unit(text), scale)
        else:
            loss = siglip_loss(image, text, scale, bias) if own else SigLipLoss()(unit(image), unit(text), scale, bias)
        leaves = [image, text, scale] + [bias] * (method is SigLIP)
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    for ours, theirs in zip(*found, strict=True):
        assert theirs.abs().sum() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------ ours in open_clip
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
TINY = "vit_tiny_patch16_224"
TIMM, NATIVE = "timm's", "open_clip's VisionTransformer"
EXPORTED = [
    (TINY, 224, {}, TIMM),
    (TINY, 32, {"kwargs": SMALL}, NATIVE),
    ("vit_small_patch16_224", 40, {"patch_size": 8, "kwargs": {**SMALL, "global_pool": "avg"}}, NATIVE),
    ("vit_small_patch16_224", 64, {"kwargs": {**SMALL, "init_values": 0.1, "qkv_bias": False}}, NATIVE),
    ("vit_base_patch16_clip_224", 32, {"kwargs": SMALL}, NATIVE),
    ("resnet18", 64, {"stem": "model"}, TIMM),
    pytest.param("vit_small_patch16_224", 224, {}, TIMM, marks=pytest.mark.slow),
    pytest.param("vit_small_patch16_224", 96, {}, NATIVE, marks=pytest.mark.slow),
    pytest.param("vit_base_patch16_224", 32, {}, NATIVE, marks=pytest.mark.slow),
    pytest.param("resnet50", 96, {}, TIMM, marks=pytest.mark.slow),
    pytest.param("convnext_tiny", 96, {}, TIMM, marks=pytest.mark.slow),
]


def trained(kind, name, size, options, embed_dim=64):
    torch.manual_seed(0)
    method = stirred(kind(create(name, image_size=size, **options), embed_dim, TEXT))
    config = {"_target_": "ssl_zoo.nn.backbones.create", "name": name, **options}
    return method, as_open_clip(method, config, {**ABOUT, "image_size": size})


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(("name", "size", "options", "tower"), EXPORTED)
@torch.no_grad()
def test_open_clip_gives_the_embeddings_of_the_run(tmp_path, monkeypatch, kind, name, size, options, tower):
    method, found = trained(kind, name, size, options)
    assert found.tower.startswith(tower)
    write(found, tmp_path / "out", {**ABOUT, "image_size": size})
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["open_clip_config.json", "open_clip_model.safetensors"]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("open_clip asked the network"))
    theirs, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(SENTENCES)
    theirs.eval()
    assert torch.equal(tokens, tokenize(SENTENCES, TEXT["context"])[0])
    torch.testing.assert_close(theirs.encode_image(pictures(size)), method.project(method.backbone(pictures(size))), **CLOSE)
    torch.testing.assert_close(theirs.encode_text(tokens), method.text(tokens), **CLOSE)
    assert theirs.logit_scale.item() == method.log_scale.item()
    assert (theirs.logit_bias is None) == (kind is CLIP)
    if kind is SigLIP:
        assert theirs.logit_bias.item() == method.bias.item()
    pixels = torch.randint(256, (size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)).numpy()
    ours = normalised(torch.from_numpy(fit(Image.fromarray(pixels), size).copy())[None], size, ABOUT["mean"], ABOUT["std"])
    torch.testing.assert_close(prepare(Image.fromarray(pixels))[None], ours)


def test_preprocessing_is_that_of_the_run_for_other_shapes(tmp_path):
    _, found = trained(CLIP, TINY, 32, {"kwargs": SMALL})
    write(found, tmp_path / "out", ABOUT)
    *_, prepare = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    ramp = torch.arange(96 * 64 * 3).view(96, 64, 3).float().div(96 * 64 * 3).mul(255).byte().numpy()
    image = Image.fromarray(ramp)
    ours = normalised(torch.from_numpy(fit(image, 32).copy())[None], 32, ABOUT["mean"], ABOUT["std"])
    torch.testing.assert_close(prepare(image)[None], ours, rtol=0, atol=0.03)  # two grey levels: they crop after resizing
    said = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["preprocess_cfg"]
    assert said == {"size": 32, "mode": "RGB", **ABOUT, "interpolation": "bicubic", "resize_mode": "shortest"}


@pytest.mark.parametrize(
    ("name", "size", "options", "said"),
    [
        (None, 32, {}, "train with backbone=vit_t, resnet18 or another"),
        ("resnet18", 32, {}, r"3x3 stride 1, no max-pool: train with backbone\.stem=model"),
        (TINY, 32, {**SMALL, "class_token": False, "global_pool": "avg"}, "has no image tower that computes"),
        (TINY, 32, {**SMALL, "act_layer": "relu"}, r"has no image tower that computes .*'act_layer': 'relu'"),
        ("resnet18", 96, {"act_layer": "gelu"}, "has no image tower that computes"),  # its weights would fit
    ],
)
def test_what_open_clip_cannot_build_is_said(name, size, options, said):
    method = stirred(CLIP(create(name, size, kwargs=options) if name else tiny(size), 16, TEXT))
    config = {"_target_": f"ssl_zoo.nn.backbones.{'create' if name else 'tiny'}", "name": name, "kwargs": options}
    with pytest.raises(UserError, match=said):
        as_open_clip(method, config, {**ABOUT, "image_size": size})


@torch.no_grad()
def test_what_was_exported_loads_here_again(tmp_path):
    """Also where a bias went through the last norm: the features change then, the embeddings do not."""
    for kind in METHODS:
        method, found = trained(kind, TINY, 32, {"kwargs": SMALL})
        write(found, tmp_path / kind.__name__, {**ABOUT, "image_size": 32})
        file = tmp_path / kind.__name__ / "open_clip_model.safetensors"
        assert header(file)["mean"] == ABOUT["mean"]
        again = kind(create(TINY, 32, kwargs=SMALL), 64, TEXT).eval()
        report = load_weights(again.backbone, file)
        content = read_checkpoint(file)
        load_text(again.text, content)
        assert load_meeting(again, content)
        assert "patches have no bias in the file: 0 here" in report.notes
        torch.testing.assert_close(again.project(again.backbone(pictures(32))), method.project(method.backbone(pictures(32))), **CLOSE)
        torch.testing.assert_close(again.text(tokenize(SENTENCES, 12)[0]), method.text(tokenize(SENTENCES, 12)[0]), **CLOSE)
        assert torch.equal(again.log_scale, method.log_scale)


# ------------------------------------------------------------------------------------ open_clip's here
VISION = {"image_size": 32, "patch_size": 8, "width": 48, "head_width": 16, "layers": 2}
WORDS = {"context_length": 12, "width": 32, "heads": 2, "layers": 2}
SIGLIP_WORDS = {**WORDS, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
VIT = {"image_size": 32, "patch_size": 8, "kwargs": SMALL}


def saved(folder, net, form="safetensors"):
    """A checkpoint of open_clip: a model alone, or what its training script leaves."""
    if form == "safetensors":
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "theirs.safetensors")
        return folder / "theirs.safetensors"
    state = {"epoch": 3, "name": "run", "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}, "optimizer": {"state": {}}}
    torch.save(state, folder / "theirs.pt")
    return folder / "theirs.pt"


@pytest.mark.parametrize("form", ["safetensors", "training"])
@pytest.mark.parametrize(
    ("vision", "name", "options", "kind"),
    [
        (VISION, "vit_base_patch16_clip_224", VIT, {}),
        (VISION, "vit_base_patch16_clip_quickgelu_224", VIT, {"quick_gelu": True}),
        ({**VISION, "ls_init_value": 0.1}, "vit_base_patch16_clip_224", {**VIT, "kwargs": {**SMALL, "init_values": 0.1}}, {}),
        ({**VISION, "no_ln_pre": True, "norm_kwargs": {"eps": 1e-6}}, TINY, VIT, {}),
        ({"timm_model_name": "resnet18", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}, "resnet18",
         {"image_size": 64, "stem": "model"}, {}),
        ({"timm_model_name": TINY, "timm_pool": "", "timm_proj": "linear"}, TINY, {"image_size": 224}, {}),
    ],
    ids=["vit", "quickgelu", "layer-scale", "no-ln-pre", "timm-resnet", "timm-vit"],
)  # fmt: skip
@torch.no_grad()
def test_image_towers_of_open_clip_load(tmp_path, vision, name, options, kind, form):
    theirs = stirred(OpenCLIP(40, dict(vision), dict(WORDS), **kind))
    backbone = create(name, **options).eval()
    report = load_weights(backbone, saved(tmp_path, theirs, form))
    size = options["image_size"]
    project = theirs.visual.head if "timm_model_name" in vision else lambda h: h @ theirs.visual.proj
    torch.testing.assert_close(project(backbone(pictures(size))), theirs.encode_image(pictures(size)), **CLOSE)
    assert report.layout.startswith("open_clip: ")
    assert {"text tower", "state of the loss"} <= report.left.keys()
    assert not any("not known" in what for what in report.left)
    assert len(report.matched) == len(backbone.state_dict())


@pytest.mark.parametrize("layout", [OpenCLIP, CustomTextCLIP])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", ["safetensors", "training"])
@torch.no_grad()
def test_text_towers_of_open_clip_load(tmp_path, layout, causal, form):
    theirs = stirred(layout(40, dict(VISION), dict(WORDS if causal else SIGLIP_WORDS)))
    tower = TextTower(40, **TEXT, causal=causal).eval()
    lines = load_text(tower, read_checkpoint(saved(tmp_path, theirs, form)))
    tokens, _ = tokenize(SENTENCES, 12)
    torch.testing.assert_close(tower(tokens), theirs.encode_text(tokens), **CLOSE)
    assert lines[0].endswith(layout.__name__)


@pytest.mark.parametrize("quick", [True, False])
@torch.no_grad()
def test_a_text_tower_with_quick_gelu_loads_and_goes_out(quick):
    theirs = stirred(OpenCLIP(40, dict(VISION), dict(WORDS), quick_gelu=True))
    tower = TextTower(40, **TEXT, quick_gelu=quick).eval()
    lines = load_text(tower, theirs.state_dict())
    tokens, _ = tokenize(SENTENCES, 12)
    assert torch.allclose(tower(tokens), theirs.encode_text(tokens), **CLOSE) == quick
    assert any(("QuickGELU here" in line) if quick else ("quick_gelu=true" in line) for line in lines)
    method = stirred(CLIP(create("resnet18", image_size=64, stem="model"), 64, {**TEXT, "quick_gelu": quick}))
    config = {"_target_": "ssl_zoo.nn.backbones.create", "name": "resnet18", "stem": "model"}
    found = as_open_clip(method, config, {**ABOUT, "image_size": 64})  # both libraries are compared there
    assert ("quick_gelu" in found.config["model_cfg"]) == quick
    if quick:
        native = stirred(CLIP(create(TINY, 32, kwargs=SMALL), 64, {**TEXT, "quick_gelu": True}))
        with pytest.raises(UserError, match=r"method\.text\.quick_gelu=false, which goes for both towers there\.$"):
            as_open_clip(native, {**config, "name": TINY, "kwargs": SMALL}, {**ABOUT, "image_size": 32})


@pytest.mark.parametrize("kind", METHODS)
@torch.no_grad()
def test_both_towers_of_one_file_meet_as_they_did(tmp_path, kind):
    bias = {"init_logit_bias": -7.0} if kind is SigLIP else {}
    theirs = stirred(CustomTextCLIP(40, dict(VISION), dict(WORDS if kind is CLIP else SIGLIP_WORDS), **bias))
    file = saved(tmp_path, theirs)
    method = kind(create("vit_base_patch16_clip_224", **VIT), 40, TEXT).eval()
    load_weights(method.backbone, file)
    content = read_checkpoint(file)
    load_text(method.text, content)
    load_meeting(method, content)
    torch.testing.assert_close(method.project(method.backbone(pictures(32))), theirs.encode_image(pictures(32)), **CLOSE)
    assert torch.equal(method.log_scale, theirs.logit_scale)
    if kind is SigLIP:
        assert torch.equal(method.bias, theirs.logit_bias)


@torch.no_grad()
def test_a_text_tower_without_bias_goes_into_one_with_bias_and_not_the_other_way_round():
    theirs = stirred(OpenCLIP(40, dict(VISION), {**WORDS, "no_causal_mask": True, "pool_type": "last"}))
    tower = TextTower(40, **TEXT, causal=False).eval()
    load_text(tower, theirs.state_dict())
    tokens, _ = tokenize(SENTENCES, 12)
    torch.testing.assert_close(tower(tokens), theirs.encode_text(tokens), **CLOSE)
    with pytest.raises(UserError, match="projects with a bias, as SigLIP's does: use method=siglip"):
        load_text(TextTower(40, **TEXT), stirred(OpenCLIP(40, dict(VISION), dict(SIGLIP_WORDS))).state_dict())


@pytest.mark.parametrize(
    ("embed_dim", "words", "change", "said"),
    [
        (40, {"width": 64, "layers": 3}, {}, r"set method\.text\.width=64 method\.text\.layers=3 \(and method\.text\.heads"),
        (40, {"context_length": 77}, {}, r"set method\.text\.context=77\."),
        (24, {}, {}, r"set method\.embed_dim=24\."),
        (40, {"vocab_size": 32000}, {}, "knows 32,000 tokens, and here are the 49,408"),
        (40, {}, {"token_embedding.weight": None}, "holds no text tower that is known"),
        (40, {}, {"ln_final.bias": None}, r"lacks ln_final\.bias"),
        (40, {"ls_init_value": 0.1}, {}, r"has transformer\.resblocks\.0\.ls_1\.gamma"),
        (40, {"mlp_ratio": 2.0}, {}, r"transformer\.resblocks\.0\.mlp\.c_fc\.weight is 64x32 in the file and 128x32 here"),
        (40, {}, {"ln_final.bias": torch.full((32,), torch.nan)}, r"ln_final\.bias holds what are no finite numbers"),
        (40, {}, {"positional_embedding": torch.zeros(3)}, "positional_embedding is 3 in the file and 12x32 here"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_text_tower_is_one_sentence(embed_dim, words, change, said):
    state = {**OpenCLIP(embed_dim, dict(VISION), {**WORDS, **words}).state_dict(), **change}
    tower = TextTower(40, **TEXT)
    before = {k: v.clone() for k, v in tower.state_dict().items()}
    with pytest.raises(UserError, match=said):
        load_text(tower, {k: v for k, v in state.items() if v is not None})
    assert all(torch.equal(v, before[k]) for k, v in tower.state_dict().items())


class Call:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_nothing_in_a_checkpoint_is_run(tmp_path):
    torch.save({"state_dict": OpenCLIP(40, dict(VISION), dict(WORDS)).state_dict(), "args": Call(tmp_path / "mark")}, tmp_path / "c.pt")
    content = read_checkpoint(tmp_path / "c.pt")
    assert load_text(TextTower(40, **TEXT), content)
    assert load_weights(create("vit_base_patch16_clip_224", **VIT), content)
    assert not (tmp_path / "mark").exists()


def test_image_towers_that_do_not_fit_are_one_sentence():
    vit = OpenCLIP(40, dict(VISION), dict(WORDS))
    with pytest.raises(UserError, match=r"begin with a norm, choose backbone=timm backbone\.name=vit_base_patch16_clip_224"):
        load_weights(create(TINY, **VIT), vit.state_dict())
    resnet = OpenCLIP(40, {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 32}, dict(WORDS))
    with pytest.raises(UserError, match="OpenAI's ModifiedResNet"):
        load_weights(create("resnet18", 64), resnet.state_dict())


def test_towers_of_a_run_give_their_backbone(tmp_path):
    method = stirred(SigLIP(tiny(32), 16, TEXT))
    save_backbone(method, tmp_path / "towers.safetensors", {})
    first, second = tiny(32), tiny(32)
    load_backbone(first, tmp_path / "towers.safetensors")
    report = load_weights(second, tmp_path / "towers.safetensors")
    for name, tensor in method.backbone.state_dict().items():
        assert torch.equal(first.state_dict()[name], tensor)
        assert torch.equal(second.state_dict()[name], tensor)
    assert report.left.keys() == {"projector", "text tower", "state of the loss"}


@pytest.mark.slow
def test_a_checkpoint_of_open_clip_is_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, stirred(OpenCLIP(40, dict(VISION), dict(WORDS))))
    _, found = trained(CLIP, TINY, 32, {"kwargs": SMALL})
    write(found, tmp_path / "ours", {**ABOUT, "image_size": 32})
    data = ["dataset=shapes", "dataset.train_size=48", "dataset.test_size=32", "protocol.k=5"]
    small = "backbone.kwargs={depth: 2, embed_dim: 48, num_heads: 3}"
    clip = ["backbone=timm", "backbone.name=vit_base_patch16_clip_224", "backbone.patch_size=8"]
    cases = {"theirs": (clip, "0.481, 0.458, 0.408"), "ours/open_clip_model": (["backbone=vit_t"], "0.400, 0.500, 0.600")}
    for file, (net, mean) in cases.items():
        with pytest.raises(SystemExit) as ended:
            main(["eval", f"weights={file}.safetensors", *net, small, *data, "out=judged"])
        told = capsys.readouterr()
        assert ended.value.code == 0, told.err
        assert "layout   open_clip: visual (CLIP's VisionTransformer)" in told.out
        assert f"normalised by mean {mean}" in told.out

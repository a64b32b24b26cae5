"""What the figures show of a backbone: attention as timm computes it, patches, a map of features, neighbours."""

import importlib.util
import logging
import sys

import numpy as np
import pytest
import timm
import torch
from conftest import numbered
from torch import nn

from ssl_zoo.checks import check_packages
from ssl_zoo.config import compose, plain
from ssl_zoo.data.images import Images
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.attention import attention_maps, patch_colours, patch_features, principal_components
from ssl_zoo.evaluation.pictures import feature_map, figure_data
from ssl_zoo.evaluation.word_pictures import word_figure_data
from ssl_zoo.fingerprint import config_hash
from ssl_zoo.nn.backbones import tiny

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}


def vit(name="vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    net = timm.create_model(name, **{**SMALL, **options})
    with torch.no_grad():  # timm's weights are so small that all attention would be alike
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net.train()


def images(n=2, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def by_hand(net, x):
    """The attention matrix of the last block from its weights."""
    net.eval()
    tokens = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(x))))
    for block in net.blocks[:-1]:
        tokens = block(tokens)
    a = net.blocks[-1].attn
    b, n, _ = tokens.shape
    q, k, _ = a.qkv(net.blocks[-1].norm1(tokens)).view(b, n, 3, a.num_heads, -1).permute(2, 0, 3, 1, 4)
    return ((a.q_norm(q) @ a.k_norm(k).mT) / q.shape[-1] ** 0.5).softmax(-1).detach()


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"reg_tokens": 3}], ids=str)
def test_attention_is_that_of_the_class_token(options):
    net, x = vit(**options), images()
    with torch.no_grad():
        before = net.eval()(x)
    net.train()
    found = attention_maps(net, x)
    assert net.training
    matrix = by_hand(net, x)
    prefix = 1 + options.get("reg_tokens", 0)
    torch.testing.assert_close(found.flatten(2), matrix[:, :, 0, prefix:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum((2, 3)) + matrix[:, :, 0, :prefix].sum(-1), torch.ones(2, 3))
    assert found.shape == (2, 3, 4, 4)
    assert found.std() > 0.01
    assert net.blocks[-1].attn.fused_attn
    assert not net.blocks[-1].attn.attn_drop._forward_pre_hooks
    with torch.no_grad():
        assert torch.equal(net.eval()(x), before)


def test_without_a_class_token_it_is_the_mean_over_patches():
    net, x = vit(class_token=False, global_pool="avg"), images()
    torch.testing.assert_close(attention_maps(net, x).flatten(2), by_hand(net, x).mean(2), rtol=1e-4, atol=1e-6)


def test_attention_is_put_back_after_an_error():
    net = vit()
    with pytest.raises(AssertionError):
        attention_maps(net, images(size=24))
    assert net.blocks[-1].attn.fused_attn
    assert not net.blocks[-1].attn.attn_drop._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("eva02_tiny_patch14_224", {}),
        ("beit_base_patch16_224", {}),
        ("vit_small_patch16_rope_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
)
def test_attention_with_rotary_positions_or_a_bias_sums_to_one(name, options):
    net = vit(name, **options)
    found = attention_maps(net, images())
    assert found.shape == (2, 3, 4, 4)
    assert ((found.sum((2, 3)) <= 1 + 1e-5) & (found.sum((2, 3)) > 0.3)).all()


@pytest.mark.parametrize(
    "name", ["xcit_nano_12_p8_224", "swin_tiny_patch4_window7_224", "resnet10t", "convnext_atto", "efficientnet_lite0", "mixer_s32_224"]
)
def test_other_networks_have_no_such_attention(name):
    net = timm.create_model(name, num_classes=0)
    assert attention_maps(net, images(1, 224)) is None
    found = patch_features(net, images(1, 224))
    assert found.dim() == 4
    assert min(found.shape[2:]) >= 4


def test_patches_are_the_tokens_after_the_final_norm():
    net, x = vit(), images()
    found = patch_features(net, x)
    with torch.no_grad():
        tokens = net.eval().forward_features(x)[:, 1:]
    torch.testing.assert_close(found.flatten(2).mT, tokens)


def test_a_convolutional_network_shows_its_last_map_of_four_cells():
    net = tiny().eval()
    found = patch_features(net, images())
    with torch.no_grad():
        torch.testing.assert_close(found, net.forward_intermediates(images(), intermediates_only=True)[3])
    assert found.shape == (2, 64, 4, 4)
    assert patch_features(nn.Conv2d(3, 4, 3), images()) is None
    assert patch_features(tiny(image_size=8), images(size=8)) is not None  # an early one


def test_principal_components_are_numpy_s_with_a_sign():
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)
    found = principal_components(rows, 3)
    centred = rows.numpy() - rows.numpy().mean(0)
    _, _, v = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(found.abs(), np.abs(centred @ v[:3].T), atol=1e-4)
    turned = torch.eye(6)
    turned[0, 0] = -1  # the largest weight of the first components is another one
    torch.testing.assert_close(principal_components(rows @ turned, 3), found, rtol=1e-4, atol=1e-4)
    assert principal_components(rows[:, :1], 3).shape == (50, 1)


def test_colours_of_patches_know_no_scale_and_show_the_parts():
    maps = torch.randn(3, 8, 5, 5, generator=torch.Generator().manual_seed(0)) * 0.01
    maps[:, 0, :, :2] += 5.0
    found = patch_colours(maps)
    assert (found.shape, found.dtype) == ((3, 3, 5, 5), torch.uint8)
    assert (found[:, 0, :, :2].int() - found[:, 0, :, 2:4].int()).abs().min() > 200
    assert (patch_colours(7 * maps + 3).int() - found.int()).abs().max() <= 1
    assert patch_colours(maps[:, :1])[:, 1:].max() == 0  # one dimension has one component
    assert torch.equal(patch_colours(torch.full((1, 4, 4, 4), torch.nan)), torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def blobs(n=60):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 16, generator=g) + 10 * (torch.arange(n) % 3)[:, None] * torch.randn(1, 16, generator=g)


def test_a_map_by_t_sne_is_the_same_for_a_seed_and_keeps_classes_together():
    (first, name), (second, _) = feature_map(blobs(), "tsne", seed=3), feature_map(blobs(), "tsne", seed=3)
    assert (name, first.shape, first.dtype) == ("tsne", (60, 2), np.float32)
    np.testing.assert_array_equal(first, second)
    labels = np.arange(60) % 3
    distance = np.linalg.norm(first[:, None] - first[None], axis=-1) + 1e9 * np.eye(60)
    assert (labels[distance.argmin(1)] == labels).all()


def test_a_map_by_umap():
    pytest.importorskip("umap")
    (first, name), (second, _) = feature_map(blobs(), "umap", seed=3), feature_map(blobs(), "umap", seed=3)
    assert (name, first.shape, first.dtype) == ("umap", (60, 2), np.float32)
    np.testing.assert_array_equal(first, second)


def test_few_images_are_mapped_by_principal_components():
    points, name = feature_map(torch.randn(5, 8), "tsne")
    assert (name, points.shape) == ("pca", (5, 2))


@pytest.mark.parametrize(("method", "package"), [("tsne", "sklearn.manifold"), ("umap", "umap")])
def test_a_missing_package_is_named_at_the_start_and_never_ends_a_run(method, package, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"by {method} needs a package .* 'ssl-zoo\\[plots\\]'"):
        feature_map(blobs(), method)
    with caplog.at_level(logging.WARNING, "ssl_zoo"):
        data = figure_data(Net(), numbered(30), torch.randn(30, 8), (0.5,) * 3, (0.5,) * 3, method=method)
    assert "plots" in caplog.text
    assert (str(data["map_method"]), data["map"].shape) == ("pca", (30, 2))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"evaluation.map={method} needs a package"):
        check_packages({"evaluation": {"map": method}})
    check_packages({"evaluation": {"map": "pca"}})


def test_how_features_are_mapped_is_no_part_of_the_result():
    with pytest.raises(UserError, match="made by pca, tsne or umap, not by 'mds'"):
        feature_map(blobs(), "mds")
    with pytest.raises(UserError, match="takes pca, tsne or umap"):
        compose("train", ["evaluation.map=mds"])
    assert config_hash(plain(compose("train", ["evaluation.map=tsne"]))) == config_hash(plain(compose("train", [])))
    assert config_hash(plain(compose("train", ["evaluation.knn.k=3"]))) != config_hash(plain(compose("train", [])))


class Net(nn.Module):
    """A backbone that is not timm's and has nothing to look into."""

    def forward(self, x):
        return x.mean((2, 3))


class Broken(Net):
    def forward_intermediates(self, x):
        raise NotImplementedError("not this one")


def test_the_data_of_the_figures():
    test = numbered(40)
    queries = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    known, bank = numbered(90), torch.randn(90, 6, generator=torch.Generator().manual_seed(1))
    mean, std = (0.2, 0.4, 0.6), (0.5, 0.25, 0.125)

    def views(some):
        m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
        return [(some.float() / 255 - m) / s, (some[:, :, :4, :4].float() / 255 - m) / s]

    data = figure_data(Net(), test, queries, mean, std, views, known, bank)
    rows = [i * 40 // 18 for i in range(18)]
    assert data["originals"][:, 0, 0, 0].tolist() == rows[:8]
    np.testing.assert_allclose(data["view_0"].astype(int), data["originals"], atol=1)
    assert data["view_1"].shape == (8, 3, 4, 4)
    assert data["queries"][:, 0, 0, 0].tolist() == rows[8:]
    unit = nn.functional.normalize
    wanted = (unit(queries[rows[8:]], dim=1) @ unit(bank, dim=1).T).argsort(1, descending=True)[:, :8]
    np.testing.assert_array_equal(data["index"], wanted)
    np.testing.assert_array_equal(data["neighbours"][:, 0, 0, 0], wanted.flatten())
    np.testing.assert_array_equal(data["neighbour_labels"], wanted % 3)
    assert data["query_labels"].tolist() == [r % 3 for r in rows[8:]]
    assert (data["labels"].tolist(), data["classes"].tolist()) == ([i % 3 for i in range(40)], ["a", "b", "c"])
    assert data["map"].shape == (40, 2)
    assert not {"attention", "patches"} & set(data)


def test_without_a_bank_a_query_is_no_neighbour_of_its_own():
    test = numbered(12, labels=False)
    data = figure_data(Net(), test, torch.randn(12, 6), (0.5,) * 3, (0.5,) * 3)
    assert data["index"].shape == (10, 8)
    assert all(row not in of for row, of in zip(range(2, 12), data["index"], strict=True))
    assert not {"labels", "query_labels", "view_0"} & set(data)


@pytest.mark.parametrize("labels", [True, False])
def test_one_image_and_features_that_are_no_numbers(labels):
    test = numbered(1, labels)
    data = figure_data(Net(), test, torch.full((1, 4), torch.nan), (0.5,) * 3, (0.5,) * 3)
    assert np.isfinite(data["map"]).all()
    assert data["index"].shape == (1, 0)


def test_a_transformer_shows_where_it_looks_in_the_precision_it_has():
    pixels = torch.randint(0, 256, (12, 3, 40, 40), dtype=torch.uint8)
    test = Images(pixels, None, None, 32)
    net = vit().to(torch.bfloat16)
    data = figure_data(net, test, torch.randn(12, 24), (0.5,) * 3, (0.25,) * 3)
    assert (data["attention"].shape, data["attention"].dtype) == ((8, 3, 4, 4), np.float32)
    assert (data["patches"].shape, data["patches"].dtype) == ((8, 3, 4, 4), np.uint8)
    assert data["originals"].shape == (8, 3, 32, 32)
    x = ((pixels[:8, :, 4:36, 4:36].float() / 255 - 0.5) / 0.25).bfloat16()
    np.testing.assert_array_equal(data["attention"], attention_maps(net, x))


def test_a_backbone_that_cannot_be_looked_into_is_no_error(caplog):
    with caplog.at_level(logging.WARNING, "ssl_zoo"):
        data = figure_data(Broken(), numbered(12), torch.randn(12, 6), (0.5,) * 3, (0.5,) * 3)
    assert "No pictures of what the backbone looks at" in caplog.text
    assert not {"attention", "patches"} & set(data)


# ---------------------------------------------------------------------------------------------- images and words
class Letters(nn.Module):
    """Captions of one letter as unit vectors that turn with it."""

    context = 8

    def forward(self, ids):
        angle = (ids[:, 1].float() - 320) / 8  # "a" is 320
        return torch.stack([angle.cos(), angle.sin()], 1)


def captioned(said):
    pixels = torch.arange(len(said), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    return Images(pixels, None, None, 8, said)


def test_the_data_of_images_and_words():
    letters = "abcdefghijkl"
    test = captioned([[c] for c in letters] + [["a"], [], ["b", "c"]])
    angles = torch.tensor([*range(12), 0.2, 4.4, 1.5]) / 8
    data = word_figure_data(nn.Identity(), Letters(), test, 7 * torch.stack([angles.cos(), angles.sin()], 1))
    assert data["pair_captions"].tolist() == [letters[i * 12 // 10] for i in range(10)]
    assert data["pair_images"][:, 0, 0, 0].tolist() == [i * 12 // 10 for i in range(10)]
    wanted = np.cos((angles[[i * 12 // 10 for i in range(10)], None] - angles[[i * 12 // 10 for i in range(10)]]).numpy())
    np.testing.assert_allclose(data["pair_cosine"], wanted, atol=1e-5)
    assert data["asked"].tolist() == [*"abcdeg"]
    found = data["found"][:, 0, 0, 0].reshape(6, 6)
    assert found[0].tolist() == [0, 12, 1, 14, 2, 3]
    assert data["found_right"][0].tolist() == [True, True, False, False, False, False]
    assert found[4, :2].tolist() == [4, 13]
    assert data["found_right"][:, 0].all()
    assert data["plane"].shape == (24, 2)


@pytest.mark.parametrize(("said", "features"), [([["a"]], torch.full((1, 2), torch.nan)), ([["a"], ["a"]], torch.ones(2, 2))])
def test_one_pair_is_drawn_and_no_numbers_are_no_error(said, features):
    data = word_figure_data(nn.Identity(), Letters(), captioned(said), features)
    assert data["pair_cosine"].shape == (1, 1)
    assert np.isfinite(data["pair_cosine"]).all()
    assert data["found_right"].all()


def test_images_without_captions_have_no_such_figures():
    assert word_figure_data(nn.Identity(), Letters(), captioned([[], [" "]]), torch.ones(2, 2)) == {}
    assert word_figure_data(nn.Identity(), Letters(), numbered(3), torch.ones(3, 2)) == {}

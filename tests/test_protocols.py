"""The protocols of `ssl-zoo eval` against scikit-learn and brute force."""

import numpy as np
import pytest
import torch
from conftest import Bytes, needs, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, confusion_matrix
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from ssl_zoo.build import Data
from ssl_zoo.config import compose
from ssl_zoo.data.images import Images
from ssl_zoo.data.ondemand import OnDemand
from ssl_zoo.data.parquet import Parquet
from ssl_zoo.errors import UserError
from ssl_zoo.evaluate import evaluate, save_result
from ssl_zoo.evaluation import feature_cache, knn
from ssl_zoo.evaluation.amounts import amount
from ssl_zoo.evaluation.features import Subject, extract
from ssl_zoo.evaluation.few_shot import draw, few_shot
from ssl_zoo.evaluation.finetune import Classifier, _groups, finetune
from ssl_zoo.evaluation.frozen import frozen
from ssl_zoo.evaluation.linear import choose_and_fit, fit
from ssl_zoo.evaluation.retrieval import retrieval
from ssl_zoo.evaluation.scores import calibration, judge, mean_and_interval, wilson
from ssl_zoo.evaluation.sgd import linear_sgd, rate
from ssl_zoo.judging import plan, variant
from ssl_zoo.nn.backbones import create, tiny
from ssl_zoo.nn.taps import Tap, pick, tokens
from ssl_zoo.protocols import Evaluation
from ssl_zoo.reports.results import told

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def clusters(n, dim=8, classes=4, seed=0, gap=1.5):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    return gap * centres[labels] + torch.randn(n, dim, generator=g), labels


def coloured(n, seed=0, size=16, classes=3, labels=None):
    """Images whose class is their colour."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g) if labels is None else labels
    pixels = torch.randint(0, 90, (n, 3, size, size), generator=g, dtype=torch.uint8)
    for i, c in enumerate(labels.tolist()):
        pixels[i, c] += 150
    return Images(pixels, labels, [f"c{i}" for i in range(classes)], size)


def subject(size=16, seed=0):
    torch.manual_seed(seed)
    return Subject(tiny(image_size=size), size, (0.4,) * 3, (0.25,) * 3)


# ---------------------------------------------------------------------------------------------- kNN
def test_knn_is_that_of_scikit_learn():
    (bank, labels), (queries, _) = clusters(300), clusters(80, seed=1)
    for k, t in ((1, 0.07), (20, 0.07), (200, 0.1)):
        theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d, t=t: np.exp((1 - d) / t))
        expected = theirs.fit(bank.double().numpy(), labels.numpy()).predict_proba(queries.double().numpy())
        ours = knn.knn_classify(bank.double(), labels, queries.double(), k, t, 4)
        np.testing.assert_allclose((ours / ours.sum(1, keepdim=True)).numpy(), expected, rtol=1e-8, atol=1e-10)


def test_one_search_serves_every_k_and_temperature(monkeypatch):
    (bank, labels), (queries, _) = clusters(60), clusters(9, seed=1)
    alone = {(k, t): knn.knn_classify(bank, labels, queries, k, t, 4) for k in (20, 3, 500) for t in (0.07, 0.5)}
    monkeypatch.setattr(knn, "BANK", 7)  # more than one block of the bank, the last one short
    found = knn.knn_sweep(bank, labels, queries, [20, 3, 500], [0.07, 0.5], 4)
    assert found.keys() == alone.keys()
    for key, scores in found.items():
        torch.testing.assert_close(scores, alone[key], rtol=1e-5, atol=1e-9)


# ---------------------------------------------------------------------------------------------- logistic regression
@pytest.mark.parametrize(("count", "dim", "l2"), [(500, 12, 1e-3), (40, 100, 0.1)])  # also of fewer images than features
def test_the_probe_is_the_minimum_that_scikit_learn_finds(count, dim, l2):
    x, y = clusters(count, dim=dim)
    ours = fit(x.double(), y, 4, l2=l2, max_iter=1000)
    theirs = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-10, max_iter=5000).fit(((x - x.mean(0)) / x.std(0)).double().numpy(), y.numpy())
    weight = ours.weight - ours.weight.mean(1, keepdim=True)  # a shift of all classes changes nothing
    np.testing.assert_allclose(weight.T.numpy(), theirs.coef_ - theirs.coef_.mean(0), atol=2e-3)
    bias = ours.bias - ours.bias.mean()
    np.testing.assert_allclose(bias.numpy(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)


# ---------------------------------------------------------------------------------------------- scores
def test_intervals_are_the_published_ones():
    assert wilson(80.0, 10) == pytest.approx([49.02, 94.33], abs=0.01)
    assert wilson(100.0, 20)[1] == 100.0
    assert wilson(0.0, 20) == pytest.approx([0.0, 16.11], abs=0.01)
    told = mean_and_interval([51.0, 52.0, 53.0])
    assert told == {"top1": 52.0, "std": pytest.approx(1.0), "interval": pytest.approx([52 - 4.303 / 3**0.5, 52 + 4.303 / 3**0.5])}
    assert mean_and_interval([1.0, 2.0, 0.0])["interval"][0] == 0.0
    assert mean_and_interval([4.0]) == {"top1": 4.0, "std": None, "interval": None}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.integers(2, 12), st.integers(0, 1000))
def test_a_split_is_judged_as_by_hand(n, classes, seed):
    g = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(n, classes, generator=g), torch.randint(classes, (n,), generator=g)
    told = judge(logits, labels, [f"c{i}" for i in range(classes)], logits.softmax(1))
    expected = confusion_matrix(labels, logits.argmax(1), labels=range(classes))
    assert told["confusion"] == expected.tolist()
    assert told["top1"] == pytest.approx(100 * np.trace(expected) / n)
    for i, accuracy in enumerate(told["per_class"].values()):
        row = expected[i]
        assert accuracy == (pytest.approx(100 * row[i] / row.sum()) if row.sum() else None)
    low, high = told["top1_interval"]
    assert 0 <= low <= told["top1"] + 1e-9 <= high + 2e-9 <= 100 + 3e-9
    assert sum(told["calibration"]["count"]) == n


def test_calibration_is_the_mean_gap_of_the_bins():
    p = torch.tensor([[0.9, 0.1], [0.95, 0.05], [0.6, 0.4], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 0, 1])
    told = calibration(p, labels)  # bins of 1/15: {0.9}, {0.95}, {0.6}, {0.7}
    gaps = [abs(90 - 100), abs(95 - 0), abs(60 - 100), abs(70 - 100)]
    assert told["ece"] == pytest.approx(sum(gaps) / 4)


def test_classes_of_one_name_are_kept_apart():
    told = judge(torch.eye(2), torch.arange(2), ["crane", "crane"])
    assert told["per_class"] == {"crane (0)": 100.0, "crane (1)": 100.0}


# ---------------------------------------------------------------------------------------------- retrieval
def brute(queries, labels, gallery, gallery_labels, ks):
    q, g = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery))
    itself = gallery is queries
    found = {k: [] for k in ks}
    ap, ap_r = [], []
    for i in range(len(q)):
        sim = g @ q[i]
        keep = [j for j in range(len(g)) if not (itself and j == i)]
        order = sorted(keep, key=lambda j: -sim[j])
        hits = np.array([gallery_labels[j] == labels[i] for j in order])
        if not hits.any():
            continue
        for k in ks:
            found[k].append(hits[:k].any())
        ap.append(average_precision_score(hits, -np.arange(len(hits))))
        r = hits.sum()
        ap_r.append(sum(hits[: j + 1].mean() for j in range(r) if hits[j]) / r)
    return {f"recall_at_{k}": 100 * np.mean(v) for k, v in found.items()} | {"map": 100 * np.mean(ap), "map_at_r": 100 * np.mean(ap_r)}


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("chunk", [7, 256])
def test_retrieval_is_that_of_brute_force(itself, chunk):
    (q, labels), (g, others) = clusters(40, gap=0.5), clusters(50, seed=3, gap=0.5)
    q, g = q.double(), g.double()
    found = retrieval(q, labels, None if itself else g, None if itself else others, [1, 5, 10], chunk)
    expected = brute(a := q.numpy(), labels.numpy(), a if itself else g.numpy(), (labels if itself else others).numpy(), [1, 5, 10])
    assert found.pop("queries") == 40
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_class_of_one_image_is_no_query():
    q, labels = torch.eye(3), torch.tensor([0, 0, 1])
    assert retrieval(q, labels, None, None, [1])["queries"] == 2
    with pytest.raises(UserError, match="No test image has another"):
        retrieval(q, torch.arange(3), None, None, [1])


# ---------------------------------------------------------------------------------------------- few labels
def test_amounts_of_labels():
    assert amount("1 %") == ("1 %", 0.01)
    assert amount("10%") == ("10 %", 0.1)
    assert amount(0.01) == ("1 %", 0.01)
    assert amount(5) == ("5 per class", 5)
    for wrong in (0, -1, 1.5, "many", "0 %", "101 %", True, "x %"):
        with pytest.raises(UserError, match=r"protocol\.labels=.* does not work"):
            amount(wrong)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 200), st.integers(1, 5), st.one_of(st.integers(1, 9), st.sampled_from([0.01, 0.1, 1.0])), st.integers(0, 99))
def test_draws_are_balanced(n, classes, number, seed):
    labels = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    index = draw(labels, number, seed)
    assert len(index.unique()) == len(index)
    for c, have in zip(*labels.unique(return_counts=True), strict=True):
        wanted = number if isinstance(number, int) else max(1, round(number * int(have)))
        assert int((labels[index] == c).sum()) == min(wanted, int(have))
    assert torch.equal(index, draw(labels, number, seed))


def test_few_labels_are_those_of_scikit_learn():
    (x, y), (test, wanted) = clusters(400), clusters(200, seed=1)
    (one, five) = few_shot(x.double(), y, test.double(), wanted, list("abcd"), ["5 %", 5], draws=3, l2=[0.01], max_iter=500, seed=0)
    assert len(one["per_draw"]) == 3
    assert one["images"] == sum(max(1, round(0.05 * int((y == c).sum()))) for c in range(4))
    assert five["images"] == 20
    from ssl_zoo.distributed import fold_seed

    confusion = np.zeros((4, 4))
    for d, found in enumerate(five["per_draw"]):
        index = draw(y, 5, fold_seed("few_shot", 0, "5 per class", d))
        a, mean, std = x[index].double(), x.double().mean(0), x.double().std(0)
        theirs = LogisticRegression(C=1 / (0.01 * 20), tol=1e-8, max_iter=5000).fit(((a - mean) / std).numpy(), y[index].numpy())
        predicted = theirs.predict(((test.double() - mean) / std).numpy())
        assert found == pytest.approx(100 * np.mean(predicted == wanted.numpy()), abs=0.51)
        confusion += confusion_matrix(wanted.numpy(), predicted)
    assert np.abs(np.array(five["confusion"]) - confusion).max() <= 3  # summed over draws; one image a draw may fall on the other side
    assert five["per_class"] == pytest.approx(dict(zip("abcd", 100 * confusion.diagonal() / confusion.sum(1), strict=True)), abs=2)
    assert five["top1"] == pytest.approx(np.mean(five["per_draw"]))
    assert five["std"] == pytest.approx(np.std(five["per_draw"], ddof=1))


# ---------------------------------------------------------------------------------------------- frozen
class Leaky(nn.Module):
    """Counts its images in a buffer, as batch statistics in training mode would."""

    num_features = 3

    def __init__(self, leaks):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.leaks = leaks

    def forward(self, x):
        if self.leaks:
            self.seen += len(x)
        return x.mean((2, 3))


TAPS = {"layer": None, "blocks": 1, "pool": "auto"}
OPTIONS = {
    "knn": {"k": [5, 1], "temperature": [0.07]},
    "linear": {"l2": [0.01, 0.1], "max_iter": 20},
    "few_shot": {"labels": [1, "50 %"], "draws": 2, "l2": [0.01], "max_iter": 20},
    "retrieval": {"k": [1, 5], "gallery": "train"},
    "linear_mocov2": {"base_lr": 3.0, "scale_lr": False, "batch_size": 16, "epochs": 2, "optimizer": "sgd",
                      "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "schedule": "steps", "milestones": [0.5], "features": None},
}  # fmt: skip


def evaluation(name, backbone, cache=None):
    data = Data(coloured(60), coloured(30, seed=1), (0.4,) * 3, (0.25,) * 3)
    judged = Subject(backbone, 16, data.mean, data.std)
    return Evaluation(judged, data, {"name": name, **OPTIONS[name]}, TAPS, 0, CPU, cache=cache)


def top1(result):
    return result["top1"] if "top1" in result else result["results"][-1]["top1"]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_frozen_protocol_leaves_the_backbone_bit_for_bit(name):
    e = evaluation(name, tiny(image_size=16).train())
    before = {k: v.clone() for k, v in e.subject.backbone.state_dict().items()}
    result = evaluate(e, {"dataset": "coloured"})
    assert all(torch.equal(v, before[k]) for k, v in e.subject.backbone.state_dict().items())
    assert all(p.requires_grad for p in e.subject.backbone.parameters())
    assert e.subject.backbone.training
    assert top1(result) > 60  # of three colours
    assert result["weights"] == feature_cache.weights_hash(e.subject.backbone)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_leak_into_the_backbone_is_caught(name):
    assert top1(evaluate(evaluation(name, Leaky(leaks=False)), {})) > 60
    with pytest.raises(RuntimeError, match="changed the backbone"):
        evaluate(evaluation(name, Leaky(leaks=True)), {})


def test_a_trained_parameter_is_caught_as_well():
    net = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="changed the backbone"), frozen(net):
        net.weight.data += 1e-7


# ---------------------------------------------------------------------------------------------- cached features
def test_features_are_kept_under_weights_images_and_layer(tmp_path, monkeypatch):
    calls = []
    real = feature_cache.cached

    def spy(root, key, compute, keep):
        return real(root, key, lambda: calls.append(key) or compute(), keep)

    monkeypatch.setattr("ssl_zoo.protocols.cached", spy)
    torch.manual_seed(0)
    net = tiny(image_size=16)
    first = evaluate(evaluation("knn", net, tmp_path), {})
    assert len(calls) == 2  # train and test
    again = evaluate(evaluation("linear", net, tmp_path), {})
    assert len(calls) == 2
    assert again["weights"] == first["weights"]
    e = evaluation("knn", net, tmp_path)
    e.taps = {"layer": "layer1", "blocks": 1, "pool": "auto"}
    evaluate(e, {})
    assert len(calls) == 4
    e = evaluation("knn", net, tmp_path)
    e.data.test.pixels[3, 0, 5, 5] ^= 1
    evaluate(e, {})
    assert len(calls) == 5
    net.bn1.running_mean[0] += 1e-3
    changed = evaluate(evaluation("knn", net, tmp_path), {})
    assert len(calls) == 7
    assert changed["weights"] != first["weights"]
    padding, net.conv1.padding = net.conv1.padding, (2, 2)  # which no weight tells
    assert feature_cache.weights_hash(net) != changed["weights"]
    net.conv1.padding = padding
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-9])  # damaged
    assert evaluate(evaluation("knn", net, tmp_path), {})["results"] == changed["results"]
    assert len(calls) == 9


def test_features_that_cannot_be_kept_are_used_all_the_same(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert torch.equal(feature_cache.cached(tmp_path / "file", "key", lambda: torch.ones(2)), torch.ones(2))
    assert "cannot be kept" in caplog.text
    feature_cache.cached(tmp_path, "other", lambda: torch.ones(2), keep=lambda: False)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


# ---------------------------------------------------------------------------------------------- layers and tokens
def test_a_tap_gives_the_tokens_that_timm_gives():
    torch.manual_seed(0)
    net = create("vit_tiny_patch16_224", image_size=32, kwargs={"depth": 4}).eval()
    x = torch.randn(2, 3, 32, 32)
    layers = net.get_intermediate_layers(x, n=3, return_prefix_tokens=True, norm=True)
    torch.testing.assert_close(Tap(net, blocks=3, pool="cls")(x), torch.cat([prefix[:, 0] for _, prefix in layers], -1))
    torch.testing.assert_close(Tap(net, blocks=3)(x), torch.cat([prefix[:, 0] for _, prefix in layers], -1))
    torch.testing.assert_close(Tap(net, blocks=2, pool="mean")(x), torch.cat([patches.mean(1) for patches, _ in layers[-2:]], -1))
    both = torch.cat([layers[-1][1][:, 0], layers[-1][0].mean(1)], -1)
    torch.testing.assert_close(Tap(net, pool="cls_mean")(x), both)
    torch.testing.assert_close(Tap(net)(x), net(x))
    torch.testing.assert_close(pick(tokens(net, x, 3), 1, "cls_mean"), both)
    assert Tap(net, layer="blocks.1")(x).shape == (2, 192)
    assert not torch.allclose(Tap(net, layer="blocks.1")(x), Tap(net, layer="blocks.1", pool="cls")(x))


def test_tokens_of_an_averaging_transformer_are_normalised_too():
    torch.manual_seed(0)
    net = create("vit_tiny_patch16_224", image_size=32, kwargs={"depth": 2, "global_pool": "avg"}).eval()
    x = torch.randn(2, 3, 32, 32)
    for patches, others in tokens(net, x, 2):
        for t in (patches, others):
            torch.testing.assert_close(t.std(-1, correction=0), torch.ones(t.shape[:-1]), atol=0.01, rtol=0)


def test_a_tap_of_a_convolutional_network_averages_over_positions():
    torch.manual_seed(0)
    net = create("resnet18", image_size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(Tap(net, layer="layer4")(x), net(x))
    assert Tap(net, layer="layer2.0.conv1")(x).shape == (2, 128)


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("resnet18", {"layer": "layr3"}, "did you mean 'layer3'"),
        ("resnet18", {"blocks": 4}, "need a transformer"),
        ("resnet18", {"pool": "cls"}, "need a transformer"),
        ("resnet18", {"layer": "layer3", "blocks": 2}, "exclude each other"),
        ("vit_tiny_patch16_224", {"blocks": 13}, "more than the 12 blocks"),
    ],
)
def test_features_that_a_backbone_has_not(name, words, told):
    with pytest.raises(UserError, match=told):
        Tap(create(name, image_size=32), **words)


# ---------------------------------------------------------------------------------------------- SGD
def test_rates_fall_as_the_papers_say():
    o = {"epochs": 10, "milestones": [0.6, 0.8], "schedule": "steps"}
    assert [rate(o, s, 2) for s in (0, 11, 12, 15, 16, 19)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    o["schedule"] = "cosine_epoch"
    assert rate(o, 0, 2) == rate(o, 1, 2) == 1.0
    assert rate(o, 10, 2) == pytest.approx(0.5)
    o["schedule"] = "cosine"
    assert rate(o, 1, 2) < 1.0
    assert rate(o, 10, 2) == pytest.approx(0.5)


def test_one_step_of_sgd_is_that_of_torch(monkeypatch):
    """The head after one step on views that are known: weights - lr x gradient."""
    train, s = coloured(8), subject()
    options = {**OPTIONS["linear_mocov2"], "epochs": 1, "batch_size": 8, "base_lr": 0.5}
    seen = []
    monkeypatch.setattr("ssl_zoo.evaluation.sgd._top1", lambda head, *_: seen.append(head.weight.clone()) or 0.0)
    caught = []
    real = torch.nn.functional.cross_entropy
    monkeypatch.setattr("ssl_zoo.evaluation.sgd.F.cross_entropy", lambda z, y: caught.append((z, y)) or real(z, y))
    linear_sgd(s, [Tap(s.backbone)], train, coloured(4, seed=1), options, 0, CPU)
    ((z, y),) = caught
    head = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    assert seen[0].shape == head.shape
    assert float(z.softmax(1).gather(1, y[:, None]).mean()) == pytest.approx(1 / 3, abs=0.1)  # weights start at N(0, 0.01)


def test_a_grid_chooses_on_images_held_out_of_train():
    s = subject()
    options = {**OPTIONS["linear_mocov2"], "base_lr": [1e-6, 3.0], "epochs": 3, "schedule": "cosine"}
    found = linear_sgd(s, [Tap(s.backbone)], coloured(80), coloured(40, seed=1), options, 0, CPU)
    assert found.chosen["lr"] == 3.0
    assert found.chosen["held_out_top1"] > 60
    assert found.summary["final"] == {"epoch": 3, "top1": found.history[-1]}
    assert found.summary["best"]["top1"] == max(found.history)
    assert found.history[-1] == pytest.approx(100 * float((found.scores.argmax(1) == coloured(40, seed=1).labels).float().mean()))


def test_the_grid_of_tokens_takes_one_forward_a_step(monkeypatch):
    torch.manual_seed(0)
    net = create("vit_tiny_patch16_224", image_size=16, kwargs={"depth": 4})
    s = Subject(net, 16, (0.4,) * 3, (0.25,) * 3)
    taps = [Tap(net, blocks=n, pool=p) for n in (1, 4) for p in ("cls", "cls_mean")]
    options = {**OPTIONS["linear_mocov2"], "base_lr": [0.01, 0.1], "epochs": 1}
    calls = []
    monkeypatch.setattr(net, "forward_intermediates", lambda *a, f=net.forward_intermediates, **k: calls.append(k["indices"]) or f(*a, **k))
    found = linear_sgd(s, taps, coloured(40), coloured(20, seed=1), options, 0, CPU)
    assert found.chosen["tap"]["blocks"] in (1, 4)
    assert len(calls) == 2 + 2 * len(taps)  # two steps; test and held-out features of each tap


# ---------------------------------------------------------------------------------------------- finetuning
FINETUNE = {"labels": None, "epochs": 12, "batch_size": 8, "base_lr": 0.1, "backbone_lr": 1.0, "layer_decay": "auto", "weight_decay": 0.0,
            "warmup_epochs": 1, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}  # fmt: skip


def test_finetuning_overfits_a_few_images_and_leaves_the_weights():
    s = subject()
    before = feature_cache.weights_hash(s.backbone)
    g = torch.Generator().manual_seed(0)
    colours = torch.randint(256, (12, 3, 1, 1), generator=g, dtype=torch.uint8).expand(-1, -1, 16, 16).contiguous()
    few = Images(colours, torch.randperm(12, generator=g) % 3, ["a", "b", "c"], 16)  # nothing to generalise from
    found = finetune(s, few, few, {**FINETUNE, "epochs": 60}, 0, CPU)
    assert found.history[-1] > 95
    assert found.history[0] < 70
    assert feature_cache.weights_hash(s.backbone) == before


def test_finetuning_needs_two_images():
    with pytest.raises(UserError, match="there is 1 with a label"):
        finetune(subject(), coloured(1), coloured(4), FINETUNE, 0, CPU)


@pytest.mark.parametrize("mix", [{"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}, {"label_smoothing": 0.1}])
def test_finetuning_is_repeatable_and_leaves_random_numbers_alone(mix):
    s, options = subject(), {**FINETUNE, **mix, "epochs": 2, "labels": "50 %"}
    np.random.seed(3)
    a = finetune(s, coloured(40), coloured(20, seed=1), options, 0, CPU)
    drawn = np.random.rand()
    np.random.seed(3)
    assert drawn == np.random.rand()
    b = finetune(s, coloured(40), coloured(20, seed=1), options, 0, CPU)
    assert torch.equal(a.scores, b.scores)
    assert a.chosen["train_images"] == sum(max(1, round(0.5 * int((coloured(40).labels == c).sum()))) for c in range(3))


def test_layers_near_the_input_learn_more_slowly_in_a_transformer():
    net = Classifier(create("vit_tiny_patch16_224", image_size=16, kwargs={"depth": 3}), 192, 2, torch.Generator())
    groups = _groups(net, 1.0, {**FINETUNE, "weight_decay": 0.05, "backbone_lr": 0.5})
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert len(scale) == len(list(net.parameters()))
    rates = [scale[id(p)] for p in (net.backbone.pos_embed, *(b.attn.qkv.weight for b in net.backbone.blocks), net.head.weight)]
    assert rates == sorted(rates)
    assert rates[1] / rates[2] == pytest.approx(0.75)
    assert rates[-1] == 1.0
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert decay[id(net.backbone.pos_embed)] == decay[id(net.head.bias)] == 0.0
    assert decay[id(net.head.weight)] == 0.05


def test_the_strength_of_l2_is_told(caplog):
    (x, y) = clusters(100)
    probe, l2 = choose_and_fit(x, y, 4, [0.1], 20)
    assert l2 == 0.1
    assert probe(x).shape == (100, 4)


def test_real_features_are_judged_as_scikit_learn_judges_them():
    """CIFAR-10 through an untrained backbone: kNN the same, logistic regression within 0.1 point and close in its weights."""
    source = Parquet(str(needs("cifar10")), image_size=32)
    train, test = source.load("train").some(2000), source.load("test").some(1000)
    torch.manual_seed(0)
    net, (mean, std) = tiny(image_size=32), train.statistics()
    x, q = (extract(net, images.pixels, 32, mean, std, "cpu") for images in (train, test))
    theirs = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = 100 * theirs.fit(x.double().numpy(), train.labels.numpy()).score(q.double().numpy(), test.labels.numpy())
    found = knn.knn_classify(x.double(), train.labels, q.double(), 20, 0.07, 10)
    assert knn.accuracy(found, test.labels) == pytest.approx(expected, abs=1e-9)
    probe = fit(x.double(), train.labels, 10, l2=0.1, max_iter=1000)
    scale = x.std(0).clamp_min(1e-6)  # some features of an untrained network are dead
    standard = ((x - x.mean(0)) / scale).double().numpy()
    logistic = LogisticRegression(C=1 / (0.1 * len(x)), tol=1e-6, max_iter=3000).fit(standard, train.labels.numpy())
    theirs_top1 = 100 * logistic.score(((q - x.mean(0)) / scale).double().numpy(), test.labels.numpy())
    assert knn.accuracy(probe(q), test.labels) == pytest.approx(theirs_top1, abs=0.1)
    np.testing.assert_allclose((probe.weight - probe.weight.mean(1, keepdim=True)).T.numpy(), logistic.coef_, atol=0.01)


# ---------------------------------------------------------------------------------------------- what goes wrong
def test_features_that_are_no_numbers_are_told():
    for name in ("knn", "linear", "linear_mocov2", "retrieval"):
        e = evaluation(name, tiny(image_size=16))
        e.subject.backbone.bn1.running_var[0] = -1.0
        with pytest.raises(UserError, match=r"(30 of 30|60 of 60) images get"):
            evaluate(e, {})
    e = evaluation("linear_mocov2", tiny(image_size=16))
    e.options["base_lr"] = 3e38
    with pytest.raises(UserError, match=r"has diverged: lower protocol\.base_lr"):
        evaluate(e, {})


def test_networks_of_equal_weights_do_not_share_features():
    torch.manual_seed(0)
    a = create("vit_tiny_patch16_224", image_size=16, kwargs={"depth": 2})
    b = create("vit_tiny_patch16_224", image_size=16, kwargs={"depth": 2, "global_pool": "avg", "fc_norm": False})
    b.load_state_dict(a.state_dict())
    assert feature_cache.behaviour(a, 16, CPU) == feature_cache.behaviour(a, 16, CPU) != feature_cache.behaviour(b, 16, CPU)
    net = Leaky(leaks=False)
    net.register_buffer("hidden", torch.zeros(2), persistent=False)
    before = feature_cache.weights_hash(net)
    net.hidden += 1
    assert feature_cache.weights_hash(net) != before


def test_a_tap_knows_where_channels_and_class_tokens_are():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    net = create("convnext_tiny", image_size=64, stem="model").eval()
    assert Tap(net, layer="stages.0.blocks.0.mlp")(x).shape == (2, 96)  # channels come last inside a block
    assert Tap(net, layer="stages.0")(x).shape == (2, 96)
    vit = create("vit_tiny_patch16_224", image_size=64, kwargs={"depth": 2}).eval()
    patches = vit.patch_embed(x)
    torch.testing.assert_close(Tap(vit, layer="patch_embed")(x), patches.flatten(1, -2).mean(1))
    blocks = vit.get_intermediate_layers(x, n=1, norm=False)[0]
    torch.testing.assert_close(Tap(vit, layer="blocks.1")(x), blocks.mean(1))
    for net, layer in ((vit, "patch_embed"), (create("resnet18", image_size=64).eval(), "layer3")):
        with pytest.raises(UserError, match="has no class token"):
            Tap(net, layer=layer, pool="cls")(x)
    with pytest.raises(UserError, match="need a transformer"):
        Tap(create("mobilenetv3_small_050", image_size=64), pool="mean")


@pytest.mark.parametrize("name", ["linear_mocov2", "finetune", "knn"])
def test_unreadable_test_images_do_not_count(name):
    """They show another image, so their label says nothing; two of eight here."""
    good = [picture(colour=(200, 20 * i, 0) if i % 2 else (0, 20 * i, 200), size=(16, 16)) for i in range(8)]
    files = Bytes(*[b"no picture" if i in (3, 6) else data for i, data in enumerate(good)])
    test = Images(OnDemand(files, 16), torch.arange(8) % 2, ["blue", "red"], 16)
    train = Images(OnDemand(Bytes(*good), 16), torch.arange(8) % 2, ["blue", "red"], 16)
    options = {"finetune": {**FINETUNE, "epochs": 1}}.get(name) or {**OPTIONS[name], "batch_size": 4, "k": 1}
    e = Evaluation(subject(), Data(train, test, (0.4,) * 3, (0.25,) * 3), {"name": name, **options}, TAPS, 0, CPU)
    result = evaluate(e, {})
    assert sum(map(sum, result["confusion"])) == 6
    assert (result["train_images"], result["test_images"]) == (8, 6)


def test_one_labelled_image_is_too_few():
    images = Images(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.tensor([1, -1, -1, -1]), ["a", "b"], 16)
    e = Evaluation(subject(), Data(images, coloured(4), (0.4,) * 3, (0.25,) * 3), {"name": "knn", **OPTIONS["knn"]}, TAPS, 0, CPU)
    with pytest.raises(UserError, match="only one training image has a label"):
        evaluate(e, {})


BAD = {
    "out={file}/x": "cannot be made",
    "backbone=tiny": "a run says what its backbone is",
    "protocol=finetune features.layer=layer3": "takes features of its own",
    "protocol=linear_simclr protocol.momentum=0": "needs a momentum",
    "protocol=few_shot protocol.labels=null": "few_shot takes an amount of labels",
    "protocol=finetune protocol.labels=[1,5]": "finetune takes one amount",
    "protocol=finetune protocol.base_lr=auto": "finetune takes a number",
    "protocol=finetune protocol.base_lr=[0.1,0.2]": "finetune takes a number",
    "protocol=linear_simclr protocol.base_lr=auto": "linear_simclr takes numbers",
    "protocol.name=foo": "is none that there is",
    "device=meta": "device takes auto, cpu",
    "features.layer=1": "null or the name of a layer",
    "net=teacher weights=x": "give run=",
}


@pytest.mark.parametrize("words", BAD)
def test_what_does_not_go_together_is_told_before_torch(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    config = compose("train", [])
    (tmp_path / "2024").mkdir()
    (tmp_path / "2024" / "backbone.safetensors").write_bytes(b"")
    OmegaConf.save(config, tmp_path / "2024" / "config.yaml")
    with pytest.raises(UserError, match=BAD[words]):
        plan(["run=2024", *words.format(file=tmp_path / "file").split()], [])


def test_files_of_results_are_told_apart(tmp_path):
    def saved(path=None, **features):
        config = OmegaConf.create({"net": "auto", "features": {"layer": None, "blocks": 1, "pool": "auto", **features}})
        return save_result(tmp_path, "photos", config, "", {"protocol": "knn", "path": path}).name

    assert saved("/a/photos") == saved("/a/photos") == "knn-photos.json"
    assert saved("/b/photos") == saved("/b/photos") != "knn-photos.json"
    assert saved(layer="blocks.3") == "knn-photos-blocks.3.json"
    assert saved(layer="blocks.3", pool="cls") == "knn-photos-blocks.3-cls.json"
    assert saved(blocks=4) == "knn-photos-auto4.json"


def test_several_data_sets_are_told_whatever_the_protocol():
    one = {"protocol": "few_shot", "dataset": "a", "train_images": 9, "test_images": 5, "classes": ["x"],
           "seconds": {"features": 1.0, "protocol": 1.0},
           "results": [{"labels": "1 %", "top1": 43.25, "std": None, "images": 3, "per_draw": [43.25]}]}  # fmt: skip
    said = told([one, {**one, "dataset": "b", "results": [{**one["results"][0], "top1": 51.5}]}])
    assert all(word in said for word in ("few_shot on a", "few_shot on b", "43.2 %", "51.5 %"))


def test_settings_that_are_not_the_usual_get_letters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def letters(*words):
        return variant(compose("eval", ["run=r", *words]), list(words), [])

    assert letters() == letters("protocol=knn") == letters("batch_size=8", "device=cpu", "dataset=shapes") == ""
    assert letters("protocol=linear") == ""
    several = [letters(w) for w in ("protocol.k=5", "seed=1", "data.subset=50", "image_size=64")]
    several.append(letters("dataset=shapes", "dataset.train_size=32"))
    assert len({*several, ""}) == 6
    (tmp_path / "photos").mkdir()
    assert letters("dataset=folder", "dataset.path=photos") == ""
    assert compose("eval", ["run=r", "dataset=shapes", "backbone=vit_t", "backbone.kwargs={num_heads:12}"]).backbone.kwargs == {
        "num_heads": 12
    }

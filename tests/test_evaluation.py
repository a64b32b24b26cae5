"""kNN, linear probe, features and collapse numbers."""

import re

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_input
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn

from ssl_zoo.collapse.health import alignment, effective_rank, feature_std, measure, uniformity, verdict
from ssl_zoo.data.images import Images
from ssl_zoo.evaluation.features import extract, raw_pixels
from ssl_zoo.evaluation.knn import accuracy, knn_classify, nearest
from ssl_zoo.evaluation.labelled import knn_top1, labelled_pair
from ssl_zoo.evaluation.linear import fit, linear_probe


@pytest.mark.parametrize("name", ["knn_k5_T0.07", "knn_k20_T0.07", "knn_k200_T0.1"])
@pytest.mark.parametrize("chunk", [2, 1024])
def test_knn_golden(name, chunk):
    case = GOLDEN["cases"][name]
    labels = (torch.arange(40) * 7) % 4
    scores = knn_classify(golden_input("knn_train"), labels, golden_input("knn_test"), case["params"]["k"], case["params"]["T"], 4, chunk)
    assert (scores[0] / scores[0].sum()).tolist() == pytest.approx(case["value"], rel=1e-10)
    assert scores.argmax(1).tolist() == case["predictions"]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 100), st.integers(2, 5), st.integers(0, 1000))
def test_knn_votes_sum_to_the_weights_of_the_neighbours(n, queries, k, classes, seed):
    g = torch.Generator().manual_seed(seed)
    bank, labels, q = torch.randn(n, 6, generator=g), torch.randint(classes, (n,), generator=g), torch.randn(queries, 6, generator=g)
    scores = knn_classify(bank, labels, q, k, 0.1, classes)
    sim, _ = nearest(bank, q, k)
    torch.testing.assert_close(scores.sum(1), (sim.double() / 0.1).exp().sum(1), rtol=1e-4, atol=1e-9)
    assert scores.shape == (queries, classes)


def test_knn_with_a_sharp_temperature_is_finite():
    x = torch.eye(4)
    assert torch.isfinite(knn_classify(x, torch.arange(4), x, 4, 0.005, 4)).all()


def test_accuracy_counts_the_best():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3]])
    assert accuracy(scores, torch.tensor([1, 2])) == 50.0
    assert accuracy(scores, torch.tensor([1, 2]), topk=2) == 100.0
    assert accuracy(scores, torch.tensor([1, 2]), topk=5) == 100.0


def test_linear_probe_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    x = rng.normal(size=(300, 5)) * [1, 10, 0.1, 3, 1] + labels[:, None] * [1, 5, 0.05, 0, 0.5]
    probe = fit(torch.tensor(x), torch.tensor(labels), 3, l2=0.01, max_iter=500)
    standard = (x - x.mean(0)) / x.std(0, ddof=1)
    theirs = LogisticRegression(C=1 / (0.01 * 300), tol=1e-8, max_iter=2000).fit(standard, labels)
    ours = torch.softmax(probe(torch.tensor(x)), 1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(standard), atol=2e-3)


def test_l2_is_chosen_on_held_out_training_data():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 150, generator=g), torch.randint(2, (200,), generator=g)
    x[:, 0] += 2.0 * y
    found = linear_probe(x, y, x[:50], y[:50], 2, [1e-6, 1.0], seed=0)
    assert found["l2"] == 1.0  # next to no regularisation overfits 150 noise dimensions
    assert linear_probe(x, y, x[:50], y[:50], 2, [1e-6])["l2"] == 1e-6


def test_a_diverged_run_is_judged_by_nan_and_not_by_an_error():
    x, y = torch.randn(40, 6), torch.arange(40) % 2
    x[3, 2] = float("nan")
    assert all(np.isnan(v) for v in linear_probe(x, y, torch.randn(9, 6), y[:9], 2, [0.1, 1.0]).values())
    assert all(np.isnan(v) for v in linear_probe(torch.randn(40, 6), y, x[:9], y[:9], 2, [0.1]).values())


class Doubler(nn.Module):
    num_features = 3

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.fixed = nn.BatchNorm2d(3)

    def forward(self, x):
        assert not self.norm.training
        return self.norm(x).mean((2, 3))


def test_extract_keeps_modes_and_statistics_and_centres():
    net = Doubler().train()
    net.fixed.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    pixels = torch.zeros(7, 3, 6, 6, dtype=torch.uint8)
    pixels[:, :, 1:5, 1:5] = 255
    h = extract(net, pixels, 4, (0.5,) * 3, (0.5,) * 3, "cpu", batch_size=3)
    torch.testing.assert_close(h, torch.ones(7, 3), rtol=1e-4, atol=1e-4)
    assert net.training
    assert net.norm.training
    assert not net.fixed.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_unlabelled_rows_do_not_count():
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    train = Images(pixels, torch.tensor([0, 1, -1, -1]), ["a", "b"], 8)
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
    test = Images(pixels[:3], torch.tensor([0, 1, -1]), ["a", "b"], 8)
    assert knn_top1(bank, train, bank[:3], test, {"k": 50, "temperature": 0.1}) == 100.0
    assert labelled_pair(train, test) is None
    assert "no labels" in labelled_pair(Images(pixels, None, None, 8), train)
    assert "no label that train knows" in labelled_pair(train, Images(pixels, None, None, 8))
    assert "one class" in labelled_pair(Images(pixels, torch.zeros(4, dtype=torch.long), ["a"], 8), test)


def test_raw_pixels_are_bounded():
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = raw_pixels(pixels, 64, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert found.shape == (2, 3 * 32 * 32)
    flat = raw_pixels(pixels[:, :, :8, :8], 8, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert float(flat[0, 0]) == pytest.approx((float(pixels[0, 0, 0, 0]) / 255 - 0.5) / 0.2, abs=1e-6)


def test_health_numbers_know_the_extremes():
    g = torch.Generator().manual_seed(0)
    spread, constant = torch.randn(2000, 32, generator=g), torch.ones(2000, 32)
    line = torch.randn(2000, 1, generator=g) * torch.ones(1, 32)
    assert feature_std(spread) == pytest.approx(1.0, abs=0.05)
    assert feature_std(constant) == pytest.approx(0.0, abs=1e-6)
    assert effective_rank(spread) > 30
    assert effective_rank(line) == pytest.approx(1.0, abs=0.05)
    assert alignment(spread, spread) == 0.0
    assert alignment(spread, -spread) == pytest.approx(4.0)
    assert uniformity(constant) == pytest.approx(0.0, abs=1e-5)
    assert uniformity(spread) < -3
    assert uniformity(spread[:1]) == 0.0


@pytest.mark.parametrize(
    ("std", "rank", "others", "words"),
    [
        (0.9, 60, {}, "Healthy"),
        (0.9, 60, {"teacher_entropy": 0.6, "marginal_entropy": 0.9, "prototypes_used": 90.0, "z_std": 0.6}, "Healthy"),
        (0.9, 60, {"z_std": 0.01}, "Collapsed: every image gets nearly the same projection .* predictor"),
        (0.9, 60, {"z_std": 0.9, "z_rank": 1.4}, "Dimensional collapse: the projections .* 1.4 dimensions .* stop-gradient"),
        (0.9, 60, {"z_std": 0.9, "embedding_std": 0.01}, "Collapsed: projections shrink to a point .* variance term"),
        (0.001, 60, {}, "Collapsed: every image .* stop-gradient"),
        (0.7, 1.2, {}, "Dimensional collapse: .* 1.2 of 256"),
        (float("nan"), 60, {}, "Broken"),
        (
            0.9,
            60,
            {"teacher_entropy": 0.999, "marginal_entropy": 0.999, "prototypes_used": 250.0},
            "Collapsed: the teacher is uniform .* sharpening",
        ),
        (0.9, 60, {"teacher_entropy": 0.2, "marginal_entropy": 1.0, "prototypes_used": 2.0}, "Healthy"),  # of two
        (
            0.9,
            60,
            {"teacher_entropy": 0.0, "marginal_entropy": 0.1, "prototypes_used": 2.0},
            "Collapsed: .* same few prototypes .* centering",
        ),
    ],
)
def test_every_kind_of_collapse_is_named_with_its_likely_cause(std, rank, others, words):
    assert re.match(words, verdict({"feature_std": std, "effective_rank": rank, **others}, 256, 2000))


def test_one_image_is_too_few_for_a_verdict():
    assert verdict({"feature_std": 0.0, "effective_rank": 1.0}, 256, 1).startswith("Unclear")


def test_features_that_are_no_numbers_are_measured_and_named():
    h = torch.randn(50, 8)
    h[3, 2] = torch.nan
    found = measure(h, h, h)
    assert verdict(found, 8, 50).startswith("Broken")

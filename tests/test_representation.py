"""RankMe, spectrum and CKA against what they are by definition, and at their extremes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_zoo.collapse.health import measure
from ssl_zoo.collapse.representation import cka_matrix, linear_cka, rankme, representation_health, spectrum
from ssl_zoo.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(dim, seed=0):
    return torch.linalg.qr(randn(dim, dim, seed=seed))[0]


@pytest.mark.parametrize("shape", [(50, 8), (5, 30)])
def test_rankme_is_the_paper_s_formula(shape):
    h = randn(*shape) + 0.5
    s = np.linalg.svd(h.numpy(), compute_uv=False)
    p = s / s.sum() + 1e-7
    assert rankme(h) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-10)


def test_rankme_is_not_centred():
    h = randn(400, 6) + 100
    assert rankme(h) < 1.5 < 5 < rankme(h - h.mean(0))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme_of_equal_singular_values_is_their_number(rank):
    h = orthogonal(40)[:, :rank] @ orthogonal(16, seed=1)[:rank]
    assert rankme(h) == pytest.approx(rank, rel=1e-4)  # but for the paper's 1e-7


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 20), st.integers(1, 20), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_rankme_lies_between_one_and_the_rank_and_knows_no_scale_or_rotation(n, dim, rank, scale, seed):
    h = randn(n, rank, seed=seed) @ randn(rank, dim, seed=seed + 1)
    found = rankme(h)
    assert 0.999 < found < min(n, dim, rank) * 1.001
    assert rankme(scale * h @ orthogonal(dim, seed)) == pytest.approx(found, rel=1e-6)


def test_spectrum_is_numpy_s():
    h = randn(60, 7) * torch.arange(1, 8) + 3
    singular, std = spectrum(h.float())
    centred = h.float().double().numpy() - h.float().double().numpy().mean(0)
    np.testing.assert_allclose(singular, np.linalg.svd(centred, compute_uv=False), rtol=1e-10)
    np.testing.assert_allclose(std, np.sort(centred.std(0))[::-1], rtol=1e-10)
    assert [len(v) for v in spectrum(randn(4, 9))] == [4, 9]


def gram_cka(x, y):
    """By definition: HSIC of the centred N x N Gram matrices."""
    n = len(x)
    c = np.eye(n) - 1 / n
    k, l = (c @ (v @ v.T) @ c for v in (x, y))
    return (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())


def gram_cka_debiased(x, y):
    """By definition: the unbiased estimates of HSIC, as a mean over quadruples would give them."""

    def hsic(k, l):
        n = len(k)
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
        sums = k.sum() * l.sum() / ((n - 1) * (n - 2))
        return (np.trace(k @ l) + sums - 2 / (n - 2) * (k @ l).sum()) / (n * (n - 3))

    k, l = x @ x.T, y @ y.T
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


@pytest.mark.parametrize(("debiased", "brute"), [(False, gram_cka), (True, gram_cka_debiased)])
def test_cka_in_feature_space_is_that_of_gram_matrices(debiased, brute):
    x = randn(20, 5) + 2
    y = torch.cat([x[:, :2] ** 2, randn(20, 9, seed=1)], dim=1) - 7
    assert linear_cka(x, y, debiased) == pytest.approx(brute(x.numpy(), y.numpy()), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 40), st.integers(1, 12), st.integers(1, 12), st.floats(1e-4, 1e4), st.integers(0, 99))
def test_cka_is_a_likeness_that_knows_no_rotation_scale_or_shift(n, d1, d2, scale, seed):
    x, y = randn(n, d1, seed=seed), randn(n, d2, seed=seed + 1)
    found = linear_cka(x, y)
    assert -1e-12 <= found <= 1 + 1e-12
    assert linear_cka(y, x) == pytest.approx(found, rel=1e-9)
    assert linear_cka(scale * x @ orthogonal(d1, seed) + 5, y) == pytest.approx(found, rel=1e-6, abs=1e-9)
    assert linear_cka(x, -scale * x @ orthogonal(d1, seed)) == pytest.approx(1.0)


def test_only_debiased_cka_of_unrelated_wide_features_is_zero():
    x, y = randn(60, 500), randn(60, 500, seed=1)
    assert linear_cka(x, y) > 0.8
    assert linear_cka(x, y, debiased=True) == pytest.approx(0.0, abs=0.05)
    assert linear_cka(x, x, debiased=True) == pytest.approx(1.0)


def test_cka_refuses_what_it_cannot_compare():
    with pytest.raises(UserError, match="features of the same images, not of 3 and 4"):
        linear_cka(randn(3, 2), randn(4, 2))
    with pytest.raises(UserError, match="at least 4 images, not 3"):
        linear_cka(randn(3, 2), randn(3, 2), debiased=True)
    assert math.isnan(linear_cka(randn(9, 2), torch.ones(9, 2)))


def test_the_matrix_of_cka_holds_every_pair():
    features = {"a": randn(30, 4), "b": randn(30, 6, seed=1), "c": 2 * randn(30, 4)}
    found = cka_matrix(features)
    assert found["names"] == ["a", "b", "c"]
    matrix = np.array(found["matrix"])
    np.testing.assert_allclose(matrix, matrix.T)
    np.testing.assert_allclose(np.diag(matrix), 1)
    assert matrix[0, 1] == pytest.approx(linear_cka(features["a"], features["b"]))
    assert matrix[0, 2] == pytest.approx(1)


def test_representation_health_holds_everything():
    h, h1, h2 = randn(40, 6).float(), randn(10, 6, seed=1).float(), randn(10, 6, seed=2).float()
    found = representation_health(h, h1, h2)
    assert {k: found[k] for k in ("feature_std", "effective_rank", "alignment", "uniformity")} == measure(h, h1, h2)
    assert found["rankme"] == rankme(h)
    assert (found["singular_values"], found["dim_std"]) == tuple(v.tolist() for v in spectrum(h))


def test_features_that_are_no_numbers_have_no_rank():
    h = randn(40, 6)
    h[3, 2] = torch.inf
    found = representation_health(h, h, h)
    assert math.isnan(found["rankme"])
    assert [len(found[k]) for k in ("singular_values", "dim_std")] == [6, 6]
    assert all(map(math.isnan, found["singular_values"] + found["dim_std"]))

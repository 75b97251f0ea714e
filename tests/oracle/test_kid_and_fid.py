"""KID and FID against a naive double loop, a matrix root, and torchmetrics on the same features."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.kid import poly_mmd

from cmrfed.evaluation.fidelity.distances import fid_of, half_sample_interval, kid, kid_of, subset_size


def naive_kid(x, y):
    size = x.shape[1]

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / size + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return rng.normal(0, 1, (40, 7)), rng.normal(0.4, 1.3, (40, 7))


def test_kid_is_the_naive_double_loop(features):
    x, y = features[0][:9], features[1][:12]
    assert kid_of(x, y) == pytest.approx(naive_kid(x, y), rel=1e-12)


def test_kid_is_that_of_torchmetrics(features):
    def matrix(a, b):
        return (torch.from_numpy(a) @ torch.from_numpy(b).T / a.shape[1] + 1) ** 3

    x, y = features
    assert kid_of(x, y) == pytest.approx(float(_torchmetrics_mmd(matrix(x, x), matrix(x, y), matrix(y, y))), rel=1e-10)
    assert kid_of(x, y) == pytest.approx(float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))), rel=1e-6)


def _torchmetrics_mmd(xx, xy, yy):
    from torchmetrics.image.kid import maximum_mean_discrepancy

    return maximum_mean_discrepancy(xx, xy, yy)


def test_kid_over_subsets_is_unbiased_and_repeatable():
    rng = np.random.default_rng(1)
    same = [kid(rng.normal(size=(60, 5)), rng.normal(size=(60, 5)), 10, np.random.default_rng(i)) for i in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(60)
    x, y = rng.normal(size=(30, 4)), rng.normal(1, 1, (30, 4))
    again = [kid(x, y, 20, np.random.default_rng(5)) for _ in range(2)]
    assert again[0] == again[1] > 0


@pytest.mark.parametrize(("n", "m", "size"), [(40, 60, 20), (4000, 3000, 500), (5, 100, 2)])
def test_subsets_fit_both_sets(n, m, size):
    assert subset_size(n, m) == size


@pytest.mark.parametrize("count", [40, 5])  # more and fewer than the 7 dimensions
def test_fid_is_the_formula_with_a_matrix_root(features, count):
    x, y = features[0][:count], features[1][:count]
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(a @ b).real if count > 7 else _root_of_product(a, b)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)
    assert fid_of(x, y) == pytest.approx(expected, rel=1e-6)


def _root_of_product(a, b):
    """Has the trace of the root of ``a @ b``, also where both are singular."""
    values, vectors = np.linalg.eigh(a)
    half = vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T
    return np.diag(np.sqrt(np.maximum(np.linalg.eigvalsh(half @ b @ half), 0)))


def test_fid_of_a_set_with_itself_is_zero(features):
    assert fid_of(features[0], features[0]) == pytest.approx(0, abs=1e-9)


def test_fid_of_shifted_normals_is_the_squared_shift():
    x = np.random.default_rng(0).normal(size=(300, 3))
    assert fid_of(x, x + np.array([1.0, 2.0, 0.0])) == pytest.approx(5, rel=1e-9)


def test_half_samples_spread_as_new_samples_do():
    """The interval of a mean difference has the width that theory gives: 2 * 1.96 * sqrt(1/n + 1/m)."""
    rng = np.random.default_rng(3)
    x, y, owners = rng.normal(size=(200, 1)), rng.normal(size=(200, 1)), np.arange(200)
    gap = float(x.mean() - y.mean())
    low, high = half_sample_interval(gap, lambda a, b: float(a.mean() - b.mean()), (x, owners), (y, owners), 2000, rng)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(2 / 200), rel=0.15)
    assert low < gap < high


def test_too_few_patients_give_no_interval():
    x, owners = np.ones((10, 1)), np.repeat([0, 1], 5)
    assert half_sample_interval(0, kid_of, (x, owners), (x, owners), 5, np.random.default_rng(0)) == (None, None)

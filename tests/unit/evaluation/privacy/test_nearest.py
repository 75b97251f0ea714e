import numpy as np
import pytest

from cmrfed.evaluation.privacy.nearest import neighbours


def slow(queries, others, owners):
    patients = np.unique(owners)
    return np.array(
        [[min(np.sqrt(((q - o) ** 2).mean()) for o in others[owners == p]) for p in patients] for q in queries]
    )


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_blocks_agree_with_the_slow_loop(shift):
    rng = np.random.default_rng(0)
    others, owners = rng.normal(size=(60, 40)) + shift, rng.permutation(np.repeat(list("abcdef"), 10))
    queries = np.concatenate([rng.normal(size=(600, 40)) + shift, others[:5], others[:5] + 1e-6])
    found, expected = neighbours(queries, others, owners), slow(queries, others, owners)
    np.testing.assert_allclose(found.distance, expected, rtol=1e-4, atol=1e-12)
    named = others[found.row.ravel()].reshape(*found.row.shape, -1)
    np.testing.assert_allclose(np.sqrt(((queries[:, None] - named) ** 2).mean(-1)), expected, rtol=1e-4, atol=1e-12)
    assert (owners[found.row] == found.patients).all()


def test_copies_are_at_no_distance_at_all():
    rng = np.random.default_rng(1)
    others = rng.normal(size=(30, 500))
    assert (neighbours(others, others, np.arange(30).astype(str)).nearest()[0] == 0).all()

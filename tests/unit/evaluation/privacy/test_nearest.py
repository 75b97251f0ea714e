import numpy as np
import pytest

from cmrfed.evaluation.privacy.nearest import Points, neighbours


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


@pytest.mark.parametrize(("block", "wide"), [(3, 1), (5, 2), (100, 8)])
def test_both_ways_are_found_in_one_search(monkeypatch, block, wide):
    monkeypatch.setattr("cmrfed.evaluation.privacy.nearest.BLOCK", block)
    monkeypatch.setattr("cmrfed.evaluation.privacy.nearest.WIDE", wide)
    rng = np.random.default_rng(2)
    one = Points(rng.normal(size=(23, 7)).astype(np.float32), rng.choice(list("abcdef"), 23))
    two = Points(np.concatenate([rng.normal(size=(30, 7)), one.vectors[:4]]), rng.choice(list("xyzw"), 34))
    for a, b in ((one, two), (two, one), (one, one)):
        np.testing.assert_allclose(a.to(b).distance, slow(a.vectors, b.vectors, b.owners), rtol=1e-4, atol=1e-7)
        assert (b.owners[a.to(b).row] == a.to(b).patients).all()
    others = [slow(one.vectors[[i]], one.vectors[w], one.owners[w]).min() for i, w in enumerate(_others(one.owners))]
    np.testing.assert_allclose(one.to_other_patients(), others, rtol=1e-4)


def _others(owners):
    return [owners != owner for owner in owners]


def test_a_search_is_kept_until_it_is_forgotten():
    rng = np.random.default_rng(3)
    one, two = (Points(rng.normal(size=(6, 4)), np.repeat(["a", "b"], 3)) for _ in range(2))
    assert one.to(two) is one.to(two)
    kept = two.to(one)
    one.forget()
    assert two.to(one) is not kept

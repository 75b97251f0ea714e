import math

import numpy as np
import pytest

from cmrfed.evaluation.privacy.black_box import Cloud, adversarial, further
from cmrfed.evaluation.privacy.membership import Claim, Scores, auc, broken, roc, tpr_at
from cmrfed.evaluation.privacy.nearest import Points


def drawn(seed, members=17, others=23, shift=0.7):
    rng = np.random.default_rng(seed)
    return Scores(np.round(rng.normal(shift, 1, members), 1), np.round(rng.normal(0, 1, others), 1))


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_pairs_that_are_in_order(seed):
    s = drawn(seed)
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in s.members for b in s.others]
    found = auc(s)
    assert found.value == pytest.approx(sum(pairs) / len(pairs))
    assert found.low < found.value < found.high


@pytest.mark.parametrize("seed", range(5))
def test_the_area_under_the_curve_is_the_auc(seed):
    s = drawn(seed)
    assert np.trapezoid(*roc(s.members, s.others)[::-1]) == pytest.approx(auc(s).value)


@pytest.mark.parametrize("fpr", [0.05, 0.1, 0.3])
def test_rates_are_those_of_the_best_threshold(fpr):
    s = drawn(3)
    allowed = [t for t in np.concatenate([s.members - 1e-9, s.others]) if (s.others > t).mean() <= fpr]
    assert tpr_at(s, fpr).value == max((s.members > t).mean() for t in allowed)


def test_rates_by_hand():
    s = Scores(np.array([4.0, 3, 2, 0]), np.array([3.5, 1, 1, 1, 1, 1, 1, 1, 1, 0]))
    assert tpr_at(s, 0.0).value == 0.25
    assert tpr_at(s, 0.1).value == 0.75


def test_an_interval_covers_as_often_as_it_says():
    truth = 0.5 * (1 + math.erf(0.7 / 2))
    rng, inside = np.random.default_rng(0), 0
    for _ in range(100):
        found = auc(Scores(rng.normal(0.7, 1, 30), rng.normal(0, 1, 30)))
        inside += found.low <= truth <= found.high
    assert inside >= 87


def test_adversarial_accuracy_by_hand():
    real = Cloud.whole(Points(np.array([[0.0], [1.0], [5.0]]), np.array(["a", "b", "c"])))
    synthetic = Cloud.whole(Points(np.array([[0.1], [9.0], [9.5]]), np.array(["x", "y", "z"])))
    of_real, of_synthetic = further(real, synthetic)
    assert of_real.tolist() == [0, 0, 0], "1 is nearer to 0.1 than to 0; 5 is as far from 9 as from 1"
    assert of_synthetic.tolist() == [0, 1, 1]
    members = Cloud.whole(Points(np.array([[0.1], [9.0], [9.6]]), np.array(["m", "n", "o"])))
    found = adversarial("pixels", synthetic, members, real, np.random.default_rng(0))
    assert found.value == pytest.approx((0 + 2 / 3) / 2 - (0 + 0) / 2)


def test_the_ceiling_is_both_bounds():
    claim = Claim(1.0, 0.05)
    fpr = np.linspace(0, 1, 11)
    for f, top in zip(fpr, claim.ceiling(fpr), strict=True):
        allowed = [
            t
            for t in np.linspace(0, 1, 2001)
            if t <= math.e * f + 0.05 + 1e-12 and 1 - f <= math.e * (1 - t) + 0.05 + 1e-12
        ]
        assert top == pytest.approx(max(allowed), abs=1e-3)
    assert Claim(1e6, 0.0).ceiling(np.array([0.0, 0.5])).tolist() == [0, 1]


def test_a_claim_that_does_not_hold_is_found_and_one_that_holds_is_not():
    rng = np.random.default_rng(0)
    apart = Scores(rng.normal(4, 1, 60), rng.normal(0, 1, 60))
    assert broken(apart, Claim(1.0, 0.01))
    assert broken(Scores(-apart.members, -apart.others), Claim(1.0, 0.01)), "an inverted attack tells as much"
    assert broken(apart, Claim(8.0, 0.01)) is None, "60 patients cannot refute ε = 8"
    flukes = [broken(Scores(rng.normal(size=60), rng.normal(size=60)), Claim(0.0, 0.0)) for _ in range(100)]
    assert sum(f is not None for f in flukes) <= 5

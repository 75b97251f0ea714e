import numpy as np
import pytest

from cmrfed.evaluation.anatomy.comparison import differing_metric, holm, permutation_p


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_samples_of_one_distribution_seldom_differ():
    random = np.random.default_rng(0)
    p = np.array([permutation_p(*random.normal(size=(2, 15)), draws=99, seed=i) for i in range(100)])
    assert 0.01 <= (p <= 0.05).mean() <= 0.12
    assert p.min() > 0


def test_a_shift_is_found_and_named_and_its_reference_is_the_training_set():
    random = np.random.default_rng(1)
    held, trained = ({n: random.normal(size=30) for n in ("LV area", "RV area")} for _ in range(2))
    made = {"LV area": random.normal(3, 1, 30), "RV area": trained["RV area"]}
    found = differing_metric(made, trained, held, 999)
    assert found.value == 0.5
    assert found.reference == 0
    assert "LV area (p " in found.detail
    assert "RV area" not in found.detail


def test_nothing_to_compare_is_said():
    assert "two patients" in differing_metric({}, {}, {}, 99).unavailable

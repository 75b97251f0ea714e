"""Precision, recall, density and coverage against loops over their definitions."""

import numpy as np
import pytest

from cmrfed.evaluation.fidelity.precision_recall import memberships


def reach(points, i, k):
    return sorted(np.linalg.norm(points[i] - p) for j, p in enumerate(points) if j != i)[k - 1]


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_loops(seed):
    random = np.random.default_rng(seed)
    real, made, k = random.normal(size=(25, 4)), 0.8 * random.normal(size=(21, 4)) + 0.5, 3
    around_real = [reach(real, i, k) for i in range(len(real))]
    around_made = [reach(made, j, k) for j in range(len(made))]
    inside = np.array([[np.linalg.norm(r - m) < around_real[i] for m in made] for i, r in enumerate(real)])
    reached = np.array([[np.linalg.norm(r - m) < around_made[j] for j, m in enumerate(made)] for r in real])
    found = {name: values.mean() for name, values in memberships(real, made, k).items()}
    assert found == {
        "precision": pytest.approx(np.mean([inside[:, j].any() for j in range(len(made))])),
        "recall": pytest.approx(np.mean([row.any() for row in reached])),
        "density": pytest.approx(inside.sum() / (k * len(made))),
        "coverage": pytest.approx(np.mean([row.any() for row in inside])),
    }

"""Shapes of discs and ellipses, whose numbers are known, and sets that are compared by patients."""

import numpy as np
import pytest

from cmrfed.core.artifacts import read_json, write_json
from cmrfed.evaluation.anatomy.shapes import shape_of
from cmrfed.figures.shapes import distance, groups, ks
from cmrfed.figures.study import read_runs
from tests.generator_world import blob_cohort
from tests.unit.figures.study_world import write_run


def ellipse(a: float, b: float, size: int = 96) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    return (x / a) ** 2 + (y / b) ** 2 < 1


@pytest.mark.parametrize(("a", "b"), [(30, 30), (40, 20), (36, 12)])
def test_discs_and_ellipses_have_the_shape_of_theory(a, b):
    found = shape_of(ellipse(a, b))
    ramanujan = np.pi * (3 * (a + b) - np.sqrt((3 * a + b) * (a + 3 * b)))
    assert found["area"] == pytest.approx(np.pi * a * b, rel=0.01)
    assert found["eccentricity"] == pytest.approx(np.sqrt(1 - (b / a) ** 2), abs=0.02)
    assert found["roundness"] == pytest.approx(4 * np.pi * np.pi * a * b / ramanujan**2, rel=0.05)
    assert found["solidity"] > 0.96


def test_the_distance_is_in_standard_deviations_of_the_real_patients():
    real = np.array([1.0, 3.0])
    assert distance(real, real) == 0
    assert distance(real + 5, real) == pytest.approx(5)
    assert np.isnan(distance(real, np.ones(3)))


def test_the_largest_gap_between_two_distributions():
    real = np.array([1.0, 2.0, 3.0, 4.0])
    assert ks(real, real) == 0
    assert ks(real + 10, real) == 1
    assert ks(real + 2, real) == pytest.approx(0.5)


def test_runs_that_drew_the_same_masks_are_one_set(tmp_path):
    folders = [write_run(tmp_path / name, name) for name in ("DDPM", "FM")]
    for folder in folders:
        record = read_json(folder / "run.json")
        record["experiment"]["evaluation"]["anatomy"]["minimum_area_px"] = 4
        write_json(folder / "run.json", record)
    runs = read_runs(folders)
    found = groups(runs, blob_cohort(tmp_path / "real"))
    assert [group.label for group in found] == ["Real", "DDPM, FM"]
    assert {len(values) for values in found[0].shapes.values()} == {4}
    assert {len(values) for values in found[1].shapes.values()} == {2}

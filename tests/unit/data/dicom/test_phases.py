"""ED and ES by a curve over the heart beat; the curve by masks, and by motion where there are none."""

import numpy as np
import pytest

from cmrfed.core.errors import DataError
from cmrfed.data.dicom.phases import areas_by_masks, areas_by_motion, find_phases
from cmrfed.data.labels import Label
from tests.dicom_studies import contraction, phantom_cine


def apart(first: int, second: int, phases: int) -> int:
    """Phases between two, round the heart beat."""
    return min((first - second) % phases, (second - first) % phases)


def curve(phases: int, ejected: float, start: float) -> np.ndarray:
    return np.array([1 - ejected * contraction((t / phases + start) % 1) for t in range(phases)])


@pytest.mark.parametrize("phases", [10, 20, 25, 40])
def test_phases_of_known_curves_under_noise(phases):
    rng, near = np.random.default_rng(phases), []
    for _ in range(200):
        ejected, start = rng.uniform(0.2, 0.7), rng.uniform()
        truth = curve(phases, ejected, start)
        found = find_phases(truth * (1 + rng.normal(0, 0.01, phases)), "truth")
        near.append((apart(found.ed, int(truth.argmax()), phases), apart(found.es, int(truth.argmin()), phases)))
    ed, es = np.array(near).T * min(1, 25 / phases)
    assert (ed <= 1).mean() >= 0.95
    assert (es <= 2).mean() >= 0.95


def test_a_flat_curve_is_not_believed():
    with pytest.raises(DataError, match=r"hardly changes.*Got: 5%"):
        find_phases(curve(100, 0.05, 0.2), "truth")


def test_an_area_that_is_unknown_at_a_phase_is_not_believed():
    with pytest.raises(DataError, match="unknown at some phase"):
        find_phases(np.array([1.0, np.nan] * 10), "truth")


def test_a_curve_that_is_largest_at_another_time_is_not_believed():
    area = np.ones(20)
    area[10], area[11], area[9] = 0.5, 0.6, 0.6
    area[12:16] = 1.8
    with pytest.raises(DataError, match="largest at another time"):
        find_phases(area, "truth")


def test_areas_by_masks_count_the_cavity():
    masks = np.zeros((3, 2, 4, 4), np.uint8)
    masks[0, 0, :2], masks[1, 0, 0], masks[2, 1, 0] = Label.LV, Label.LV, Label.RV
    assert areas_by_masks(masks.astype(np.float32), lambda image: image.astype(np.uint8), 1.5).tolist() == [12, 6, 0]


@pytest.mark.parametrize("number", [0, 2])
def test_phases_of_phantom_cines(number):
    start = 0.0 if number == 0 else 0.4
    cine = phantom_cine(number, 12, start, 96, 12)
    count = len(cine.images)
    since_r = (np.arange(count) / count + start) % 1
    by_masks = areas_by_masks(np.arange(count)[:, None], lambda t: cine.masks[t[0]])
    by_motion = areas_by_motion(cine.images.astype(np.float32), cine.spacing_mm[0])
    for found in (find_phases(by_masks, "masks"), find_phases(by_motion, "motion", since_r)):
        assert apart(found.ed, int(cine.volume_ml.argmax()), count) <= 1
        assert apart(found.es, int(cine.volume_ml.argmin()), count) <= 1


def test_what_does_not_move_is_not_believed():
    with pytest.raises(DataError, match="nothing moves"):
        areas_by_motion(np.ones((12, 4, 32, 32), np.float32), 1.4)

"""A mask is laid on its image by both affines, by the greys where one is lost, or not at all."""

import nibabel as nib
import numpy as np
import pytest

from cmrfed.core.errors import DataError
from cmrfed.data.geometry.affine import Grid, grid_of
from cmrfed.data.geometry.overlay import contrast, lay
from tests.unit.data.geometry.test_affine import STORAGES, heart, oblique, stored

IMAGE, MASK = heart()


def grid(shape, affine) -> Grid:
    return grid_of(nib.Nifti1Image(np.zeros(shape, np.uint8), affine), "x")


def laid(mask, affine, on=None):
    return lay(mask, grid(mask.shape, affine), IMAGE, grid(IMAGE.shape, oblique() if on is None else on), "mask.nii")


def moved(steps, affine=None) -> np.ndarray:
    affine = oblique() if affine is None else affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(steps, float)
    return affine


@pytest.mark.parametrize("order", STORAGES[::7])
def test_a_mask_without_affine_is_taken_as_stored_or_turned_by_the_greys(order):
    mask, _ = stored(MASK, np.eye(4), *order)
    if mask.shape != IMAGE.shape and sorted(mask.shape) != sorted(IMAGE.shape):
        pytest.skip("not this shape")
    got, notes = laid(mask, None)
    assert np.array_equal(got, MASK) or contrast(IMAGE, got, 2) > contrast(IMAGE, MASK, 2) - 0.05
    assert "by their affines" in notes[0]


def test_a_mask_that_lost_its_affine_fits_as_it_is_stored():
    for lost in (None, np.eye(4), np.diag([-1.4, -1.6, 8, 1]), np.diag([1.4, 1.6, 8, 1])):
        got, notes = laid(MASK, lost)
        assert np.array_equal(got, MASK)
        assert "stored order, which fits the greys" in notes[0]


def test_a_mask_that_fits_nowhere_is_refused():
    noise = np.random.default_rng(0).permutation(MASK.ravel()).reshape(MASK.shape)
    with pytest.raises(DataError, match="neither do the greys"):
        laid(noise, None)
    with pytest.raises(DataError, match="does not fit its image"):
        laid(MASK[:-1], None)


def test_fewer_slices_lie_where_the_affine_says():
    for first in (0, 2):
        part = MASK[..., first : first + 3]
        got, notes = laid(part, moved((0, 0, first)))
        assert np.array_equal(got[..., first : first + 3], part)
        assert np.count_nonzero(got) == np.count_nonzero(part)
        assert "covers a part of its image" in notes[0]


def test_a_cropped_mask_lies_where_the_affine_says():
    part = MASK[:-2, 2:-1]
    assert np.array_equal(laid(part, moved((0, 2, 0)))[0], MASK)


def test_fewer_slices_with_the_origin_of_the_whole_are_refused():
    with pytest.raises(DataError, match="fits the greys better elsewhere"):
        laid(MASK[..., 1:4], oblique())


@pytest.mark.parametrize("steps", [(4, 0, 0), (0, -5, 0), (0, 0, 1), (200, 0, 0)])
def test_a_mask_that_lies_beside_its_image_is_refused(steps):
    with pytest.raises(DataError, match="differ in geometry"):
        laid(MASK, moved(steps))


def test_part_of_a_voxel_is_rounded_and_said():
    got, notes = laid(MASK, moved((0.4, -0.3, 0)))
    assert np.array_equal(got, MASK)
    assert "part of a voxel" in notes[0]
    assert laid(MASK, moved((0.01, 0, 0)))[1] == ()


@pytest.mark.parametrize("other", [oblique((2.8, 3.2, 8.0)), oblique(roll=10), np.diag([-2.8, -1.6, 8, 1])])
def test_other_voxels_are_refused(other):
    with pytest.raises(DataError, match=r"differ in geometry \(affine\); voxels of"):
        laid(MASK, other)

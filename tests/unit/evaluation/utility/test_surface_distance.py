import numpy as np
import pytest

from cmrfed.evaluation.utility.surface_distance import surface_distance


def ball(radius, centre, shape=(31, 41, 41)):
    grid = np.indices(shape).transpose(1, 2, 3, 0)
    return np.linalg.norm(grid - np.array(centre), axis=-1) <= radius


def test_the_same_region_has_no_distance():
    assert surface_distance(ball(8, (15, 20, 20)), ball(8, (15, 20, 20)), (1, 1, 1)) == (0, 0)


def test_concentric_spheres_are_as_far_apart_as_their_radii():
    value = surface_distance(ball(6, (15, 20, 20)), ball(11, (15, 20, 20)), (2.0, 2.0, 2.0))
    assert value.hd95 == pytest.approx(10, abs=1.0)
    assert value.assd == pytest.approx(10, abs=1.0)


@pytest.mark.parametrize(("axis", "spacing_axis"), [(0, 2), (1, 0), (2, 1)])
def test_a_thin_plate_is_moved_by_mm_along_each_axis(axis, spacing_axis):
    plate = np.zeros((12, 12, 12), bool)
    index = [slice(None)] * 3
    index[axis] = 4
    plate[tuple(index)] = True
    spacing = (1.5, 2.5, 9.0)
    value = surface_distance(plate, np.roll(plate, 3, axis), spacing)
    assert value == pytest.approx((3 * spacing[spacing_axis],) * 2)


def test_a_missed_or_invented_structure_is_as_far_as_anything_in_the_volume():
    nothing, drawn = np.zeros((3, 4, 5), bool), np.zeros((3, 4, 5), bool)
    drawn[1, 1, 1] = True
    diagonal = np.linalg.norm([3 * 10, 4 * 1, 5 * 2])
    assert surface_distance(nothing, drawn, (1, 2, 10)) == pytest.approx((diagonal, diagonal))
    assert surface_distance(drawn, nothing, (1, 2, 10)) == pytest.approx((diagonal, diagonal))
    assert surface_distance(nothing, nothing, (1, 2, 10)) is None

"""Surface distances against their definition: all pairs of surface voxels."""

import numpy as np
import pytest

from cmrfed.evaluation.utility.surface_distance import surface_distance


def surface_points(region, spacing):
    """Voxels with a face neighbour outside, one by one, in mm."""
    padded, steps = np.pad(region, 1), (spacing[2], spacing[0], spacing[1])
    out = []
    for z, y, x in np.argwhere(padded):
        near = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
        if not all(padded[z + a, y + b, x + c] for a, b, c in near):
            out.append((z * steps[0], y * steps[1], x * steps[2]))
    return np.array(out)


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_all_pairs(seed):
    random = np.random.default_rng(seed)
    found, truth = (random.random((4, 9, 11)) < level for level in (0.2, 0.5))
    found[1:3, 2:7, 2:8] = True
    spacing = (1.4, 1.7, 8.0)
    a, b = surface_points(found, spacing), surface_points(truth, spacing)
    pairs = np.linalg.norm(a[:, None] - b[None], axis=-1)
    there, back = pairs.min(1), pairs.min(0)
    value = surface_distance(found, truth, spacing)
    assert value.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert value.assd == pytest.approx((there.sum() + back.sum()) / (len(there) + len(back)))

"""The grouped sub-samples against the obvious computation, one sub-sample after the other."""

from dataclasses import replace

import numpy as np
import pytest

from cmrfed.data.labels import Label, Phase
from cmrfed.data.phantom.anatomy import ANGLES, angle_index, draw_heart
from cmrfed.data.phantom.render import DITHER, SUB, SUB_Z, SubGrid, _points, draw_plan, labels_at, mask_slice
from cmrfed.data.phantom.signal import site_style

BOX = (slice(64, 104), slice(56, 112))


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(4)
    heart = draw_heart("NOR", rng)
    plan = draw_plan(heart, site_style(1), rng)
    grid = SubGrid.of(BOX)
    k = len(plan.z_mm) // 2
    return heart.phases[Phase.ED], plan, grid, k, _points(heart.phases[Phase.ED], plan, k, grid, grid.positions(plan))


def place(plan, row: int, column: int, sub_row: int, sub_column: int) -> tuple[float, float]:
    """Coordinates of a sub-sample in mm, by extrapolating from the first pixel."""
    r, c = row + (sub_row + 0.5) / SUB - 0.5, column + (sub_column + 0.5) / SUB - 0.5
    return tuple(float(g[0, 0] + r * (g[1, 0] - g[0, 0]) + c * (g[0, 1] - g[0, 0])) for g in (plan.x, plan.y))


def test_every_sub_sample_stands_where_it_should(scene):
    ventricles, plan, grid, k, points = scene
    cx, cy = ventricles.centre(float(plan.z_mm[k]))
    height, width = (side.stop - side.start for side in BOX)
    rng = np.random.default_rng(0)
    for _ in range(200):
        row, column = rng.integers(height), rng.integers(width)
        for sub_row, sub_column in np.ndindex(SUB, SUB):
            at = grid.rank[SUB * sub_row + sub_column, row, column]
            group, member = np.unravel_index(at, points.x.shape)
            x, y = place(plan, BOX[0].start + row, BOX[1].start + column, sub_row, sub_column)
            assert points.x[group, member] == pytest.approx(x + plan.shifts[k, 0] - cx, abs=1e-3)
            assert points.y[group, member] == pytest.approx(y + plan.shifts[k, 1] - cy, abs=1e-3)
            assert grid.pixel[group, member] == row * width + column
            step = (5 * (SUB * row + sub_row) + 3 * (SUB * column + sub_column)) % DITHER
            assert group == step
            for i in range(SUB_Z):
                z = plan.z_mm[k] + plan.slice_mm * ((i + (step + 0.5) / DITHER) / SUB_Z - 0.5)
                assert points.z[i, group, 0] == pytest.approx(z, abs=1e-4)


def test_tables_by_angle_and_height_give_what_each_sub_sample_alone_gives(scene):
    ventricles, _, _, _, points = scene
    shape = points.rv.shape
    x, y, z = (np.broadcast_to(a, shape) for a in (points.x, points.y, points.z))
    endo, epi = ventricles.radii(angle_index(x, y), z)
    assert np.allclose(points.endo, endo, atol=1e-4)
    assert np.allclose(points.epi, epi, atol=1e-4)
    assert np.allclose(points.rv, ventricles.rv_distance(x, y, z), atol=1e-3)


def test_shares_and_means_are_those_of_a_loop_over_pixels(scene):
    grid = scene[2]
    rng = np.random.default_rng(1)
    values = rng.normal(size=(SUB_Z, *grid.order.shape)).astype(np.float32)
    height, width = (side.stop - side.start for side in BOX)
    sums, counts = np.zeros(height * width), np.zeros(height * width)
    for i in range(SUB_Z):
        for group, member in np.ndindex(grid.order.shape):
            sums[grid.pixel[group, member]] += values[i, group, member]
            counts[grid.pixel[group, member]] += values[i, group, member] > 0
    each = SUB_Z * SUB**2
    assert grid.means(values) == pytest.approx(sums.reshape(height, width) / each, abs=1e-5)
    assert grid.shares(values > 0) == pytest.approx(counts.reshape(height, width) / each)


def test_structures_never_overlap_and_the_mask_is_their_majority(scene):
    ventricles, plan, grid, _, points = scene
    found = labels_at(ventricles, points)
    assert sum(where.astype(int) for where in found.values()).max() == 1
    mask = mask_slice(ventricles, points, grid, plan.x.shape)
    for label, where in found.items():
        share = np.zeros(plan.x.shape)
        share[BOX] = grid.shares(where)
        assert mask[share > 0.5].tolist() == [label] * int((share > 0.5).sum())
        assert not (mask[share == 0] == label).any()
    assert not mask[: BOX[0].start].any()
    assert set(np.unique(mask)) == {int(label) for label in Label}


@pytest.mark.parametrize("group", ["NOR", "RV", "HCM"])
def test_the_scale_of_a_right_ventricle_is_where_its_volume_is_reached(group):
    ventricles = draw_heart(group, np.random.default_rng(2)).phases[Phase.ES]
    scales, voxel = ventricles._rv_scales(56, 24)
    for volume in (40.0, 90.0, 150.0):
        scale = ventricles.rv_scale_of(volume)
        assert np.count_nonzero(scales < scale) * voxel == pytest.approx(volume, abs=voxel)
    assert ventricles.rv_scale_of(1e6) == np.inf


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.3])
def test_a_point_is_within_the_right_ventricle_from_its_scale_on(scale):
    ventricles = replace(draw_heart("NOR", np.random.default_rng(3)).phases[Phase.ED], rv_scale=scale)
    rng = np.random.default_rng(5)
    x, y = rng.uniform(-90, 40, (2, 4000))
    z = rng.uniform(0, ventricles.bottom_mm, 4000)
    body, tract = ventricles._rv_parts(x, y, z)
    near = np.abs(ventricles.rv_distance(x, y, z)) < 1e-3
    reached = (body < scale) | (tract < min(scale, 1.1))
    assert np.array_equal(reached[~near], (ventricles.rv_distance(x, y, z) < 0)[~near])
    assert angle_index(np.array(-1.0), np.array(-1e-9)) == ANGLES // 2

"""The grouped sub-samples against the obvious computation, one sub-sample after the other."""

from dataclasses import replace

import numpy as np
import pytest

from cmrfed.data.labels import Label, Phase
from cmrfed.data.phantom import render
from cmrfed.data.phantom.anatomy import ANGLES, GROUPS, angle_index, draw_heart
from cmrfed.data.phantom.render import (
    DITHER,
    SUB,
    SUB_Z,
    SubGrid,
    _Plane,
    _Points,
    _Reach,
    draw_detail,
    draw_plan,
    labels_at,
    mask_slice,
    tissue_signals,
)
from cmrfed.data.phantom.signal import site_style

BLOCK = DITHER // SUB


def scene_of(group: str, seed: int):
    rng = np.random.default_rng(seed)
    heart = draw_heart(group, rng)
    return heart, draw_plan(heart, site_style(1), rng), draw_detail(rng)


@pytest.fixture(scope="module")
def scene():
    heart, plan, _ = scene_of("NOR", 4)
    blocks = np.zeros((plan.x.shape[0] // BLOCK, plan.x.shape[1] // BLOCK), bool)
    blocks[16:26, 14:28] = True
    blocks[20, 18] = False
    k = len(plan.z_mm) // 2
    plane = _Plane.of(SubGrid.of(blocks), plan, k, heart.centre(float(plan.z_mm[k])))
    return heart.phases[Phase.ED], plan, k, _Points.of(heart.phases[Phase.ED], plan, k, plane)


def place(plan, row: int, column: int, sub_row: int, sub_column: int) -> tuple[float, float]:
    """Coordinates of a sub-sample in mm, by extrapolating from the first pixel."""
    r, c = row + (sub_row + 0.5) / SUB - 0.5, column + (sub_column + 0.5) / SUB - 0.5
    return tuple(float(g[0, 0] + r * (g[1, 0] - g[0, 0]) + c * (g[0, 1] - g[0, 0])) for g in (plan.x, plan.y))


def sub_samples(grid: SubGrid, pixel: int, block: int):
    """Group and member of the sub-samples of a pixel: an image of sub-samples, numbered, as `of_pixels` lays it out."""
    numbers = np.arange(grid.rows.size).reshape(grid.rows.shape)
    return np.argwhere(grid.of_pixels(numbers) == numbers[pixel, block])


def test_every_sub_sample_stands_where_it_should(scene):
    ventricles, plan, k, points = scene
    grid, plane = points.plane.grid, points.plane
    cx, cy = ventricles.centre(float(plan.z_mm[k]))
    rng = np.random.default_rng(0)
    for _ in range(100):
        pixel, block = rng.integers(grid.rows.shape[0]), rng.integers(grid.rows.shape[1])
        row, column = int(grid.rows[pixel, block]), int(grid.columns[pixel, block])
        found = set()
        for group, member in sub_samples(grid, pixel, block):
            (sub,) = (
                (i, j)
                for i, j in np.ndindex(SUB, SUB)
                if np.allclose(
                    np.array(place(plan, row, column, i, j)) + plan.shifts[k] - (cx, cy),
                    (plane.x[group, member], plane.y[group, member]),
                    atol=1e-3,
                )
            )
            found.add(sub)
            step = (5 * (SUB * row + sub[0]) + 3 * (SUB * column + sub[1])) % DITHER
            assert group == step
            for i in range(SUB_Z):
                z = plan.z_mm[k] + plan.slice_mm * ((i + (step + 0.5) / DITHER) / SUB_Z - 0.5)
                assert points.z[i, group, 0] == pytest.approx(z, abs=1e-4)
        assert found == set(np.ndindex(SUB, SUB))


def test_tables_by_angle_and_height_give_what_each_sub_sample_alone_gives(scene):
    ventricles, _, _, points = scene
    x, y, z = (np.broadcast_to(a, points.rv.shape) for a in (points.plane.x, points.plane.y, points.z))
    endo, epi = ventricles.radii(angle_index(x, y), z)
    assert np.allclose(points.endo, endo, atol=1e-4)
    assert np.allclose(points.epi, epi, atol=1e-4)
    assert np.allclose(points.rv, ventricles.rv_distance(x, y, z), atol=1e-3)
    assert np.allclose(points.plane.radius, np.hypot(points.plane.x, points.plane.y))


def test_counts_are_those_of_a_loop_over_pixels(scene):
    grid = scene[3].plane.grid
    rng = np.random.default_rng(1)
    where = rng.random((SUB_Z, *scene[3].plane.x.shape)) < 0.4
    counts = grid.counts(where)
    assert counts.shape == grid.rows.shape
    for pixel, block in rng.integers(grid.rows.shape, size=(50, 2)):
        assert counts[pixel, block] == sum(where[:, g, m].sum() for g, m in sub_samples(grid, pixel, block))


def test_structures_never_overlap_and_the_mask_is_their_majority(scene):
    ventricles, plan, _, points = scene
    grid = points.plane.grid
    found = labels_at(ventricles, points)
    assert sum(where.astype(int) for where in found.values()).max() == 1
    mask = mask_slice(ventricles, points, plan.x.shape)
    for label, where in found.items():
        counts = np.zeros(plan.x.shape)
        counts[grid.rows, grid.columns] = grid.counts(where)
        most = counts > SUB_Z * SUB**2 / 2
        assert mask[most].tolist() == [label] * int(most.sum())
        assert not (mask[counts == 0] == label).any()
    assert not mask[: grid.rows.min()].any()
    assert set(np.unique(mask)) == {int(label) for label in Label}


@pytest.mark.parametrize("group", GROUPS)
def test_a_heart_lies_within_the_blocks_that_are_computed(group, monkeypatch):
    heart, plan, detail = scene_of(group, len(group))
    signals = tissue_signals(site_style(1), np.random.default_rng(0))
    around = np.full(plan.x.shape, 0.3, np.float32)
    reach, k = render._reach, len(plan.z_mm) // 2

    def everywhere(*args):
        return _Reach(np.ones_like(reach(*args).blocks), reach(*args).corner)

    fast = render._scan_slice(heart, plan, k, detail, around, signals)
    monkeypatch.setattr(render, "_reach", everywhere)
    slow = render._scan_slice(heart, plan, k, detail, around, signals)
    for phase, (image, mask) in fast.items():
        assert np.array_equal(mask, slow[phase][1])
        assert np.count_nonzero(np.abs(image - slow[phase][0]) > 1e-5) <= 2


def test_the_centre_is_the_same_in_both_phases():
    heart = draw_heart("DCM", np.random.default_rng(1))
    for z in (-10.0, 20.0, 70.0, 120.0):
        assert heart.phases[Phase.ES].centre(z) == heart.phases[Phase.ED].centre(z) == heart.centre(z)


@pytest.mark.parametrize("group", ["NOR", "RV", "HCM"])
def test_the_scale_of_a_right_ventricle_is_where_its_volume_is_reached(group):
    ventricles = draw_heart(group, np.random.default_rng(2)).phases[Phase.ES]
    scales, voxel = ventricles._rv_scales(56, 24)
    for volume in (40.0, 90.0, 150.0):
        scale = ventricles.rv_scale_of(volume)
        assert np.count_nonzero(scales < scale) * voxel == pytest.approx(volume, abs=voxel)
    assert ventricles.rv_scale_of(1e6) == np.inf
    count = np.count_nonzero(scales < ventricles.rv_scale)
    assert ventricles.rv_volume_ml(56, 24) == pytest.approx(count * voxel, abs=2 * voxel)


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

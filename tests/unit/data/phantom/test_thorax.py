"""Layers of the surroundings against the obvious computation, on every pixel of the slice."""

import numpy as np
import pytest

from cmrfed.data.phantom.signal import site_style, tissue_signals
from cmrfed.data.phantom.thorax import INK_MM, Blob, Canvas, _displaced, draw_thorax

PIXEL_MM = 1.5


@pytest.fixture(scope="module")
def grid():
    """Coordinates of a turned slice: x and y, float32 (H, W)."""
    v, u = (np.mgrid[:60, :72] - 30.0) * PIXEL_MM
    return tuple(a.astype(np.float32) for a in (u * np.cos(0.4) + v * np.sin(0.4), v * np.cos(0.4) - u * np.sin(0.4)))


@pytest.fixture(scope="module")
def thorax():
    rng = np.random.default_rng(3)
    return draw_thorax(90.0, 45.0, 40.0, tissue_signals(site_style(0), rng), rng)


def slowly(image: np.ndarray, blob: Blob, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    cut = 1 - ((z - blob.centre[2]) / blob.axes[2]) ** 2
    if cut <= 0.02:
        return image
    a, b = blob.axes[0] * cut**0.5, blob.axes[1] * cut**0.5
    dx, dy = x - blob.centre[0], y - blob.centre[1]
    u, v = dx * np.cos(blob.turn) + dy * np.sin(blob.turn), dy * np.cos(blob.turn) - dx * np.sin(blob.turn)
    distance = (np.hypot(u / a, v / b) - 1) * min(a, b)
    image = image + np.clip(0.5 - distance / PIXEL_MM, 0, 1) * (blob.signal - image)
    return image * (1 - (1 - blob.rim) * np.exp(-((distance / INK_MM) ** 2)))


@pytest.mark.parametrize("z", [-20.0, 0.0, 40.0, 300.0])
def test_blobs_are_those_of_one_after_the_other_on_the_whole_slice(grid, thorax, z):
    canvas, image = Canvas(*grid, PIXEL_MM), np.zeros_like(grid[0])
    blobs = (*thorax.vessels, *thorax.organs)
    canvas.blobs(blobs, z)
    for blob in blobs:
        image = slowly(image, blob, *grid, z)
    assert np.abs(canvas.image - image).max() < 0.06, "ink ends at the bounding box, two pixels beyond the outline"
    assert np.abs(canvas.image - image).mean() < 1e-3
    assert canvas.image.any() == (z < 300)
    canvas.blobs((), z)


def test_outlines_are_displaced_by_the_sum_of_waves(grid, thorax):
    x, y = grid
    moved = _displaced(thorax, x, y, 25.0)
    for found, place, waves in ((moved[0], x, thorax.wiggle[::2]), (moved[1], y, thorax.wiggle[1::2])):
        slow = place + sum(a * np.sin(2 * np.pi * (fx * x + fy * y) + phase + 25.0 / 30) for a, fx, fy, phase in waves)
        assert np.allclose(found, slow, atol=1e-3)
        assert found.dtype == np.float32

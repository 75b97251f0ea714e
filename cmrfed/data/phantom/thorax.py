"""What surrounds the heart in a short-axis picture: chest wall, lung, diaphragm, abdomen, great vessels.

The frame is that of the heart (see anatomy), in mm. Shapes are blended with soft edges of one pixel, which is
the partial volume of the plane.
"""

import math
from dataclasses import dataclass

import numpy as np

from cmrfed.data.phantom.signal import Tissue

INK_MM = 1.3
"""Half-width of the dark line between fat and water, which cancel in a shared voxel of bSSFP."""
RIB_MARGIN_MM = 8.0
"""How far beyond a rib its outline can be seen."""

Box = tuple[slice, slice]
"""Rows and columns of a slice."""
WHOLE: Box = (slice(None), slice(None))


@dataclass(frozen=True)
class Blob:
    """An ellipsoid organ: centre and semi-axes in mm, in-plane turn in radians, signal, and a rim or none."""

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    turn: float
    signal: float
    rim: float = 1.0
    """Factor on the signal at its edge (a wall or chemical-shift line); 1 is none."""


@dataclass(frozen=True)
class Thorax:
    """A patient's surroundings; ``length_mm`` is the heart's, heights are shares of it."""

    length_mm: float
    wall_base_mm: float
    wall_apex_mm: float
    wall_bend: float
    wall_slope: float
    fat_mm: float
    muscle_mm: float
    fat_grain: float
    back_mm: float
    half_height_mm: float
    diaphragm_base_mm: float
    diaphragm_apex_mm: float
    diaphragm_slope: float
    diaphragm_bend: float
    liver_edge_mm: float
    paunch_signal: float
    front_fat_mm: float
    front_fat_y_mm: float
    front_fat_span_mm: float
    wiggle: np.ndarray
    """(6, 4): amplitude in mm, x and y frequency per mm, phase of the displacement of all outlines."""
    organs: tuple[Blob, ...]
    vessels: tuple[Blob, ...]
    ribs: tuple[Blob, ...]


def _organs(signals: np.ndarray, depth: float, diaphragm: float, rng: np.random.Generator) -> tuple[Blob, ...]:
    """Stomach, spleen, bowel, kidney: ellipsoids below the diaphragm, of any signal between fluid and air."""
    blobs = []
    for _ in range(int(rng.integers(9, 22))):
        size = rng.uniform(7, 30)
        kind = rng.choice(
            [Tissue.ORGAN, Tissue.MUSCLE, Tissue.LIVER, Tissue.FLUID, Tissue.LUNG], p=[0.3, 0.15, 0.15, 0.3, 0.1]
        )
        blobs.append(
            Blob(
                (rng.uniform(-20, 120), diaphragm + rng.uniform(0, 75), rng.uniform(0, 1.2) * depth),
                (size, size * rng.uniform(0.5, 1.0), rng.uniform(20, 60)),
                rng.uniform(0, np.pi),
                float(signals[kind]) * rng.uniform(0.6, 1.5),
                rng.uniform(0.25, 0.9),
            )
        )
    for _ in range(int(rng.integers(0, 40))):
        size = float(np.clip(rng.gamma(2.0, 1.1), 1, 6))
        place = (rng.uniform(-90, 110), diaphragm + rng.uniform(4, 90), rng.uniform(0, 1.2) * depth)
        signal = float(signals[rng.choice([Tissue.RV_BLOOD, Tissue.FAT, Tissue.LUNG])]) * rng.uniform(0.5, 1.1)
        blobs.append(Blob(place, (size * rng.uniform(1, 3), size, rng.uniform(5, 20)), rng.uniform(0, np.pi), signal))
    return tuple(blobs)


def _vessels(signals: np.ndarray, depth: float, rng: np.random.Generator) -> tuple[Blob, ...]:
    """Descending aorta, oesophagus, and many small lung vessels, larger and denser near the hilum."""
    blood = float(signals[Tissue.LV_BLOOD])
    x, y, radius = rng.uniform(35, 75), rng.uniform(22, 58), rng.uniform(8, 13)
    blobs = [
        Blob(
            (x, y, -10.0), (radius, radius * rng.uniform(0.9, 1.6), rng.uniform(50, 150)), rng.uniform(0, 3), blood, 0.4
        )
    ]
    for _ in range(int(rng.integers(2, 9))):
        size = rng.uniform(4, 13)
        place = (rng.uniform(38, 95), rng.uniform(-55, 40), rng.uniform(-0.4, 0.15) * depth)
        axes = (size * rng.uniform(1, 2), size, rng.uniform(12, 40))
        blobs.append(Blob(place, axes, rng.uniform(0, np.pi), blood * rng.uniform(0.3, 1.15), rng.uniform(0.3, 1)))
    for _ in range(int(rng.integers(90, 300))):
        reach, angle = rng.gamma(2.5, 16.0) + 44, rng.uniform(-2.3, 0.8)
        size = float(np.clip(rng.gamma(2.0, 0.75), 0.7, 4.5))
        place = (reach * np.cos(angle), reach * np.sin(angle), rng.uniform(-0.3, 1.2) * depth)
        axes = (size * rng.uniform(1, 2.2), size, rng.uniform(3, 14))
        blobs.append(Blob(place, axes, rng.uniform(0, np.pi), blood * rng.uniform(0.4, 1.4)))
    return tuple(blobs)


def _ribs(signals: np.ndarray, depth: float, rng: np.random.Generator) -> tuple[Blob, ...]:
    """Ribs as ovals at regular distances along the front wall; x is the depth in the wall, not the picture's x."""
    start, gap = rng.uniform(-140, -100), rng.uniform(26, 38)
    size = rng.uniform(4, 7)
    bone = float(signals[Tissue.BONE])
    return tuple(
        Blob(
            (rng.normal(0.5, 0.1), start + k * gap, 0.5 * depth),
            (size, size * 1.3, 400),
            rng.uniform(-0.4, 0.4),
            bone,
            0.3,
        )
        for k in range(10)
    )


def draw_thorax(
    length_mm: float, reach_mm: float, below_mm: float, signals: np.ndarray, rng: np.random.Generator
) -> Thorax:
    """Draw the surroundings of a heart.

    Args:
        length_mm: Length of the heart.
        reach_mm: How far it extends towards the front of the chest, from the LV's centre.
        below_mm: How far it extends towards the diaphragm.
        signals: Signal of each tissue.
        rng: Random stream.
    """
    low = below_mm + rng.uniform(-8, 6)
    frequencies = rng.normal(0, 0.007, (6, 2))
    return Thorax(
        length_mm=length_mm,
        wall_base_mm=reach_mm + rng.uniform(-6, 10),
        wall_apex_mm=rng.uniform(16, 45),
        wall_bend=rng.uniform(1.0, 2.4),
        wall_slope=rng.normal(0.05, 0.22),
        fat_mm=float(np.clip(rng.lognormal(2.6, 0.65), 3, 55)),
        muscle_mm=rng.uniform(5, 16),
        fat_grain=rng.uniform(0.05, 0.25),
        back_mm=rng.uniform(95, 150),
        half_height_mm=rng.uniform(130, 220),
        diaphragm_base_mm=low,
        diaphragm_apex_mm=rng.uniform(0.15, 0.75) * low,
        diaphragm_slope=rng.normal(0.02, 0.16),
        diaphragm_bend=rng.uniform(-0.0005, 0.003),
        liver_edge_mm=rng.normal(18, 28),
        paunch_signal=float(signals[rng.choice([Tissue.FAT, Tissue.ORGAN, Tissue.LIVER], p=[0.5, 0.3, 0.2])])
        * rng.uniform(0.6, 1.0),
        front_fat_mm=float(np.clip(rng.gamma(1.8, 10.0), 0, 45)),
        front_fat_y_mm=rng.normal(12, 25),
        front_fat_span_mm=rng.uniform(30, 75),
        wiggle=np.column_stack([rng.normal(0, 1.8, 6), frequencies, rng.uniform(0, 2 * np.pi, 6)]).astype(np.float32),
        organs=_organs(signals, length_mm, low, rng),
        vessels=_vessels(signals, length_mm, rng),
        ribs=_ribs(signals, length_mm, rng),
    )


class Canvas:
    """A slice that layers are blended onto: float32 (H, W), with coordinates in mm that are affine in the pixels."""

    def __init__(self, x: np.ndarray, y: np.ndarray, pixel_mm: float) -> None:
        self.x, self.y, self.pixel_mm = x, y, pixel_mm
        self.image = np.zeros(x.shape, np.float32)
        self._origin = np.array([x[0, 0], y[0, 0]], float)
        steps = [[grid[1, 0] - grid[0, 0], grid[0, 1] - grid[0, 0]] for grid in (x, y)]
        self._to_pixels = np.linalg.inv(np.array(steps, float))

    def fill(self, distance: np.ndarray, signal: float | np.ndarray, ink: float = 0.0, box: Box = WHOLE) -> None:
        """Blend a region in.

        Args:
            distance: Signed mm (negative inside), of the pixels in ``box``.
            signal: What the region has.
            ink: Darkens its outline (0..1).
            box: Rows and columns that it can reach.
        """
        image = self.image[box]
        image += np.clip(0.5 - distance / self.pixel_mm, 0, 1) * (signal - image)
        if ink:
            image *= 1 - ink * np.exp(-((distance / INK_MM) ** 2))

    def around(self, centre: tuple[float, float], reach_mm: float) -> Box | None:
        """Rows and columns of the square of half-width ``reach_mm`` about a place; None where the slice has none."""
        middle = self._to_pixels @ (np.array(centre) - self._origin)
        half = np.abs(self._to_pixels).sum(1) * reach_mm
        low, high = np.maximum(np.ceil(middle - half), 0), np.minimum(np.floor(middle + half) + 1, self.image.shape)
        if (low >= high).any():
            return None
        return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))

    def blob(self, blob: Blob, z: float) -> None:
        """Blend an ellipsoid in where the plane cuts it, inside its bounding box only."""
        cut = 1 - ((z - blob.centre[2]) / blob.axes[2]) ** 2
        if cut <= 0.02:
            return
        a, b = blob.axes[0] * cut**0.5, blob.axes[1] * cut**0.5
        box = self.around(blob.centre[:2], max(a, b) + 2 * self.pixel_mm)
        if box is None:
            return
        dx, dy = self.x[box] - blob.centre[0], self.y[box] - blob.centre[1]
        cos, sin = math.cos(blob.turn), math.sin(blob.turn)
        distance = (np.hypot((dx * cos + dy * sin) / a, (dy * cos - dx * sin) / b) - 1) * min(a, b)
        self.fill(distance, blob.signal, 1 - blob.rim, box)


def _displaced(thorax: Thorax, x: np.ndarray, y: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    waves = [
        amplitude * np.sin(2 * np.pi * (fx * x + fy * y) + phase + z / 30) for amplitude, fx, fy, phase in thorax.wiggle
    ]
    return x + sum(waves[::2]), y + sum(waves[1::2])


def paint_thorax(
    thorax: Thorax, x: np.ndarray, y: np.ndarray, z: float, pixel_mm: float, signals: np.ndarray, grain: np.ndarray
) -> np.ndarray:
    """Signal of the surroundings in one slice.

    Args:
        thorax: The patient's surroundings.
        x: float32 (H, W), mm in the heart's frame.
        y: The same.
        z: Height of the slice in mm.
        pixel_mm: Width of the soft edges.
        signals: Signal of each tissue.
        grain: float32 (H, W), texture with unit standard deviation.

    Returns:
        float32 (H, W), signal relative to blood.
    """
    share = float(np.clip(z / thorax.length_mm, -0.3, 1.2))
    xw, yw = _displaced(thorax, x, y, z)
    canvas = Canvas(x, y, pixel_mm)
    advance = math.copysign(abs(share) ** thorax.wall_bend, share)
    inner = -thorax.wall_base_mm + advance * (thorax.wall_base_mm - thorax.wall_apex_mm)
    depth = xw - inner - thorax.wall_slope * yw - 0.0022 * yw**2
    skin = -(depth + thorax.fat_mm + thorax.muscle_mm)
    flank = np.abs(yw) - thorax.half_height_mm
    back = xw - thorax.back_mm
    body = np.maximum(np.maximum(skin, flank), back - thorax.muscle_mm - thorax.fat_mm)
    canvas.fill(body, signals[Tissue.FAT] * (1 + thorax.fat_grain * grain))
    muscle = np.maximum(-(depth + thorax.muscle_mm), np.maximum(flank + thorax.fat_mm, back - thorax.muscle_mm))
    canvas.fill(muscle, signals[Tissue.MUSCLE] * (1.1 + 2 * thorax.fat_grain * grain), ink=0.7)
    _paint_ribs(thorax, canvas, depth, yw)
    cavity = np.maximum(-depth, back)
    canvas.fill(cavity, signals[Tissue.LUNG] * (1 + 0.2 * grain), ink=0.3)
    for vessel in thorax.vessels:
        canvas.blob(vessel, z)
    lens = 1 - ((yw - thorax.front_fat_y_mm) / thorax.front_fat_span_mm) ** 2
    pad = depth - thorax.front_fat_mm * (0.4 + 1.2 * max(share, 0)) * lens - 2.5 * grain
    canvas.fill(np.maximum(-depth, pad), signals[Tissue.FAT] * (0.85 + 0.13 * grain), ink=0.4)
    _paint_abdomen(thorax, canvas, (xw, yw), depth, z, signals, grain)
    return canvas.image


def _paint_ribs(thorax: Thorax, canvas: Canvas, depth: np.ndarray, y: np.ndarray) -> None:
    for rib in thorax.ribs:
        reach = max(rib.axes[:2]) + RIB_MARGIN_MM
        near = (np.abs(y - rib.centre[1]) < reach) & (np.abs(depth + rib.centre[0] * thorax.muscle_mm) < reach)
        rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
        if not len(rows):
            continue
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        middle = (depth[box] + rib.centre[0] * thorax.muscle_mm) / rib.axes[0]
        distance = (np.hypot(middle, (y[box] - rib.centre[1]) / rib.axes[1]) - 1) * rib.axes[0]
        canvas.fill(distance, rib.signal, 1 - rib.rim, box)


def _paint_abdomen(
    thorax: Thorax,
    canvas: Canvas,
    warped: tuple[np.ndarray, np.ndarray],
    depth: np.ndarray,
    z: float,
    signals: np.ndarray,
    grain: np.ndarray,
) -> None:
    """Liver towards the front, the rest of the abdomen behind it, both below the diaphragm."""
    x, y = warped
    share = z / thorax.length_mm
    level = thorax.diaphragm_base_mm + share * (thorax.diaphragm_apex_mm - thorax.diaphragm_base_mm)
    dome = level + thorax.diaphragm_slope * x + thorax.diaphragm_bend * (x - 20) ** 2 - y
    below = np.maximum(np.maximum(dome, -depth), x - thorax.back_mm)
    before = canvas.image.copy()
    canvas.fill(below, thorax.paunch_signal * (1 + 0.15 * grain), ink=0.5)
    large = [organ for organ in thorax.organs if organ.rim < 1]
    for organ in large:
        canvas.blob(organ, z)
    edge = x - thorax.liver_edge_mm + 0.5 * (y - level) - 25 * share
    canvas.fill(np.maximum(below, edge), signals[Tissue.LIVER] * (1 + 0.15 * grain), ink=0.35)
    for organ in thorax.organs[len(large) :]:
        canvas.blob(organ, z)
    outside = np.clip(0.5 + below / canvas.pixel_mm, 0, 1)
    canvas.image += outside * (before - canvas.image)

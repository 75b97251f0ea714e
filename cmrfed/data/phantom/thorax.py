"""What surrounds the heart in a short-axis picture: chest wall, lung, diaphragm, abdomen, great vessels.

The frame is that of the heart (see anatomy), in mm. Shapes are blended with soft edges of one pixel, which is
the partial volume of the plane.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cmrfed.data.phantom.signal import Tissue

INK_MM = 1.3
"""Half-width of the dark line between fat and water, which cancel in a shared voxel of bSSFP."""
RIB_MARGIN_MM = 8.0
"""How far beyond a rib its outline can be seen."""
RIB_STEP = 4
"""Every how many pixels is looked for it."""

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
        self.pixel_mm = pixel_mm
        self.image = np.zeros(x.shape, np.float32)
        self._origin = np.array([x[0, 0], y[0, 0]], float)
        self._steps = np.array([[grid[1, 0] - grid[0, 0], grid[0, 1] - grid[0, 0]] for grid in (x, y)], float)
        self._to_pixels = np.linalg.inv(self._steps)

    def fill(self, distance: np.ndarray, signal: float | np.ndarray, ink: float = 0.0, box: Box = WHOLE) -> None:
        """Blend a region in.

        Args:
            distance: Signed mm (negative inside), of the pixels in ``box``.
            signal: What the region has.
            ink: Darkens its outline (0..1).
            box: Rows and columns that it can reach.
        """
        image = self.image[box]
        image += self._share(distance) * (signal - image)
        if ink:
            image *= 1 - np.float32(ink) * _line(distance)

    def _share(self, distance: np.ndarray) -> np.ndarray:
        """What a region covers of pixels at a signed distance in mm from its outline: 0..1."""
        share = distance * np.float32(-1 / self.pixel_mm)
        share += np.float32(0.5)
        np.maximum(share, 0, out=share)
        return np.minimum(share, 1, out=share)

    def blobs(self, blobs: Sequence[Blob], z: float) -> None:
        """Blend ellipsoids in, one after the other, where the plane cuts them: inside their bounding boxes only.

        Most boxes are small, so the pixels of all of them are computed together, and only blended one by one.
        """
        table = np.array([(*b.centre, *b.axes, b.turn, b.signal, b.rim) for b in blobs]).reshape(-1, 9)
        cut = 1 - ((z - table[:, 2]) / table[:, 5]) ** 2
        semi = table[:, 3:5] * np.sqrt(np.maximum(cut, 0))[:, None]
        middle = (table[:, :2] - self._origin) @ self._to_pixels.T
        half = (semi.max(1) + 2 * self.pixel_mm)[:, None] * np.abs(self._to_pixels).sum(1)
        low = np.maximum(np.ceil(middle - half), 0).astype(int)
        high = np.minimum(np.floor(middle + half) + 1, self.image.shape).astype(int)
        seen = (cut > 0.02) & (low < high).all(1)
        if not seen.any():
            return
        self._ellipses(table[seen, 6:], middle[seen], semi[seen], low[seen], high[seen])

    def _ellipses(
        self, look: np.ndarray, middle: np.ndarray, semi: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> None:
        """Blend N ellipses in.

        Args:
            look: (N, 3): turn, signal and rim.
            middle: (N, 2): row and column of their middle.
            semi: (N, 2): semi-axes in mm.
            low: (N, 2): first row and column of their boxes.
            high: (N, 2): those behind the last.
        """
        turn, signal, rim = look.T
        sides = high - low
        sizes = sides.prod(1)
        ends = np.cumsum(sizes)

        def each(values: np.ndarray) -> np.ndarray:
            """The value of its blob for each pixel."""
            return np.repeat(values.astype(np.float32), sizes)

        number = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
        row, column = np.divmod(number, np.repeat(sides[:, 1], sizes))
        width = len(self.image[0])
        at = np.repeat(low[:, 0] * width + low[:, 1], sizes) + row * width + column
        cos, sin = np.cos(turn), np.sin(turn)
        steps = np.array([[cos, sin], [-sin, cos]]).transpose(2, 0, 1) / semi[:, :, None] @ self._steps
        start = np.einsum("nij,nj->ni", steps, low - middle)
        row, column = row.astype(np.float32), column.astype(np.float32)
        along, across = (each(steps[:, i, 0]) * row + each(steps[:, i, 1]) * column + each(start[:, i]) for i in (0, 1))
        distance = (np.sqrt(along * along + across * across) - 1) * each(semi.min(1))
        share, ink = self._share(distance), 1 - each(1 - rim) * _line(distance)
        gain, kept = share * each(signal) * ink, (1 - share) * ink
        image = self.image.reshape(-1)
        for end, size in zip(ends.tolist(), sizes.tolist(), strict=True):
            one = slice(end - size, end)
            image[at[one]] = image[at[one]] * kept[one] + gain[one]


def _line(distance: np.ndarray) -> np.ndarray:
    """How dark the line between fat and water is at a distance in mm from it: 0..1."""
    line = distance * np.float32(1 / INK_MM)
    line *= line
    np.negative(line, out=line)
    return np.exp(line, out=line)


def _displaced(thorax: Thorax, x: np.ndarray, y: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates displaced by waves of z: even ones along x, odd ones along y.

    The sine of a sum is two products, and coordinates are affine in the pixels: rows and columns are taken apart.
    """
    amplitude, fx, fy, phase = (part[:, None] for part in thorax.wiggle.T)
    by_row = 2 * np.pi * (fx * x[:, 0] + fy * y[:, 0]) + phase + z / 30
    by_column = 2 * np.pi * (fx * (x[0] - x[0, 0]) + fy * (y[0] - y[0, 0]))
    rows = amplitude * np.stack([np.sin(by_row), np.cos(by_row)])
    columns = np.stack([np.cos(by_column), np.sin(by_column)])
    moved = (np.concatenate(rows[:, i::2]).T @ np.concatenate(columns[:, i::2]) for i in (0, 1))
    return x + next(moved), y + next(moved)


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
    canvas.blobs(thorax.vessels, z)
    lens = 1 - ((yw - thorax.front_fat_y_mm) / thorax.front_fat_span_mm) ** 2
    pad = depth - thorax.front_fat_mm * (0.4 + 1.2 * max(share, 0)) * lens - 2.5 * grain
    canvas.fill(np.maximum(-depth, pad), signals[Tissue.FAT] * (0.85 + 0.13 * grain), ink=0.4)
    _paint_abdomen(thorax, canvas, (xw, yw), depth, z, signals, grain)
    return canvas.image


def _paint_ribs(thorax: Thorax, canvas: Canvas, depth: np.ndarray, y: np.ndarray) -> None:
    rough = np.s_[::RIB_STEP, ::RIB_STEP]
    for rib in thorax.ribs:
        in_wall = rib.centre[0] * thorax.muscle_mm
        reach = max(rib.axes[:2]) + RIB_MARGIN_MM + RIB_STEP * canvas.pixel_mm
        near = (np.abs(y[rough] - rib.centre[1]) < reach) & (np.abs(depth[rough] + in_wall) < reach)
        rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
        if not len(rows):
            continue
        box = (
            slice(RIB_STEP * rows[0], RIB_STEP * (rows[-1] + 1)),
            slice(RIB_STEP * columns[0], RIB_STEP * (columns[-1] + 1)),
        )
        along, across = (depth[box] + in_wall) / rib.axes[0], (y[box] - rib.centre[1]) / rib.axes[1]
        distance = (np.sqrt(along * along + across * across) - 1) * rib.axes[0]
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
    canvas.blobs(large, z)
    edge = x - thorax.liver_edge_mm + 0.5 * (y - level) - 25 * share
    canvas.fill(np.maximum(below, edge), signals[Tissue.LIVER] * (1 + 0.15 * grain), ink=0.35)
    canvas.blobs(thorax.organs[len(large) :], z)
    outside = np.clip(0.5 + below / canvas.pixel_mm, 0, 1)
    canvas.image += outside * (before - canvas.image)

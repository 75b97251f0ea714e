"""From geometry to slices: label fractions and signal of the heart, set into its surroundings."""

import math
from dataclasses import dataclass, replace

import numpy as np

from cmrfed.data.labels import Label, Phase
from cmrfed.data.phantom.anatomy import ANGLES, Heart, Ventricles, angle_index
from cmrfed.data.phantom.signal import ScannerStyle, Tissue, coil_field, receive, texture_tile, tissue_signals
from cmrfed.data.phantom.thorax import Thorax, draw_thorax, paint_thorax

SUB = 2
"""Sub-samples along each in-plane axis of a pixel."""
SUB_Z = 3
"""Sub-samples through the thickness of a slice."""
DITHER = 8
"""Further heights between them, by place in the plane."""
MARGIN_MM = 14.0
"""How far beyond its ventricles a lean heart can reach."""
LV_OFFSET_MM = 16.0
"""From the middle of the heart, which is planned to the middle of the picture, to the centre of the LV."""


@dataclass(frozen=True)
class Detail:
    """Individual fine structure of a heart: papillary muscles, trabeculae, fat, and textures to cut from."""

    papillary: tuple[tuple[float, float, float], ...]
    """Angle, relative distance from the centre, radius in mm."""
    trabeculae: float
    rv_trabeculae: float
    rv_wall_mm: float
    flow: float
    """Standard deviation of the signal within the blood, from flow."""
    fat_mm: float
    fat_phase: tuple[float, float]
    coarse: np.ndarray
    fine: np.ndarray


@dataclass(frozen=True)
class Plan:
    """Where the slices lie: heights and thickness in mm, pixel size, and the pixel grid in the heart's frame."""

    z_mm: np.ndarray
    slice_mm: float
    pixel_mm: float
    x: np.ndarray
    y: np.ndarray
    shifts: np.ndarray
    """(Z, 2) in mm: each slice is its own breath-hold."""


def draw_detail(rng: np.random.Generator) -> Detail:
    """Draw the fine structure of a patient's heart."""
    first = rng.uniform(-0.2, 0.5)
    second = first + rng.uniform(1.4, 2.2)
    return Detail(
        papillary=tuple((a, rng.uniform(0.55, 0.78), rng.uniform(3.5, 7.5)) for a in (first - 0.9, second)),
        trabeculae=rng.uniform(0.05, 1.1),
        rv_trabeculae=rng.uniform(0.0, 1.4),
        rv_wall_mm=rng.uniform(1.0, 3.2),
        flow=rng.uniform(0.03, 0.11),
        fat_mm=float(np.clip(rng.gamma(1.5, 2.2), 0.2, 12)),
        fat_phase=(rng.uniform(0, 6.3), rng.uniform(0, 6.3)),
        coarse=texture_tile((256, 256), 4.0, rng),
        fine=texture_tile((256, 256), 1.3, rng),
    )


def draw_plan(heart: Heart, style: ScannerStyle, rng: np.random.Generator) -> Plan:
    """Plan the stack: from about the base plane to just beyond the apex, centred roughly on the heart."""
    start = rng.uniform(-0.05, 0.75) * style.slice_mm
    end = heart.phases[Phase.ED].apex_mm + rng.uniform(-0.6, 0.75) * style.slice_mm
    count = int(np.ceil((end - start) / style.slice_mm))
    turn = np.deg2rad(rng.normal(58, 18) if rng.random() < style.axial_share else rng.normal(0, 9))
    pixel = style.spacing_mm * rng.normal(1, 0.02)
    rows, columns = style.matrix_px
    middle = (columns * rng.normal(0.46, 0.035), rows * rng.normal(0.49, 0.045))
    v, u = np.mgrid[:rows, :columns].astype(np.float32)
    towards_rv = heart.shape.rv_angle + turn
    u = (u - middle[0]) * pixel + LV_OFFSET_MM * np.cos(towards_rv)
    v = (v - middle[1]) * pixel + LV_OFFSET_MM * np.sin(towards_rv)
    x, y = u * np.cos(turn) + v * np.sin(turn), -u * np.sin(turn) + v * np.cos(turn)
    shifts = rng.normal(0, rng.choice([0.4, 1.6], p=[0.75, 0.25]), (count, 2))
    return Plan(
        start + np.arange(count) * style.slice_mm,
        style.slice_mm,
        float(pixel),
        x.astype(np.float32),
        y.astype(np.float32),
        shifts,
    )


@dataclass(frozen=True)
class SubGrid:
    """Sub-samples of a box of pixels, in groups of equal height.

    Heights are dithered in plane (`DITHER` steps), so a slice has SUB_Z × DITHER heights in all. What depends on height
    alone is computed once a height: arrays are (SUB_Z, DITHER, 1) by height, (DITHER, M) in plane, and broadcast.
    """

    box: tuple[slice, slice]
    size: tuple[int, int]
    """Height and width of the box, in sub-samples."""
    order: np.ndarray
    """(DITHER, M): where each sub-sample lies in the box, as an index into (SUB*H, SUB*W)."""
    rank: np.ndarray
    """(SUB * SUB, H, W): where the sub-samples of each pixel lie in ``order``."""
    pixel: np.ndarray
    """(DITHER, M): its pixel, as an index into (H, W)."""

    @classmethod
    def of(cls, box: tuple[slice, slice]) -> "SubGrid":
        """Group the sub-samples of a box whose height and width are multiples of DITHER / SUB pixels."""
        height, width = (SUB * (side.stop - side.start) for side in box)
        rows, columns = np.mgrid[:height, :width]
        order = np.argsort(((5 * rows + 3 * columns) % DITHER).ravel(), kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        pixel = ((rows // SUB) * (width // SUB) + columns // SUB).ravel()[order]
        groups = (DITHER, -1)
        tall, wide = height // SUB, width // SUB
        by_pixel = rank.reshape(tall, SUB, wide, SUB).transpose(1, 3, 0, 2).reshape(SUB**2, tall, wide)
        return cls(box, (height, width), order.reshape(groups), by_pixel, pixel.reshape(groups))

    def heights(self, middle_mm: float, slice_mm: float) -> np.ndarray:
        """Heights of the groups in a slice: float32 (SUB_Z, DITHER, 1), mm."""
        dither = (np.arange(DITHER)[:, None] + 0.5) / DITHER
        return (middle_mm + slice_mm * ((np.arange(SUB_Z)[:, None, None] + dither) / SUB_Z - 0.5)).astype(np.float32)

    def positions(self, plan: "Plan") -> tuple[np.ndarray, np.ndarray]:
        """In-plane coordinates of the sub-samples: float32 (DITHER, M) each, mm in the heart's frame."""
        offset = ((np.arange(SUB) + 0.5) / SUB - 0.5).astype(np.float32)
        rows, columns = (np.tile(offset, side // SUB) for side in self.size)
        out = []
        for grid in (plan.x, plan.y):
            fine = np.repeat(np.repeat(grid[self.box], SUB, 0), SUB, 1)
            fine += rows[:, None] * (grid[1, 0] - grid[0, 0]) + columns * (grid[0, 1] - grid[0, 0])
            out.append(fine.ravel()[self.order])
        return out[0], out[1]

    def of_pixels(self, values: np.ndarray) -> np.ndarray:
        """Give each sub-sample the value of its pixel: (H, W) => (DITHER, M)."""
        return values.ravel()[self.pixel]

    def shares(self, where: np.ndarray) -> np.ndarray:
        """Share of each pixel's sub-samples that are true: (SUB_Z, DITHER, M) => float32 (H, W)."""
        return self._sums(where.sum(0, dtype=np.uint8)).astype(np.float32) / (SUB_Z * SUB**2)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Mean over each pixel's sub-samples: float32 (SUB_Z, DITHER, M) => (H, W)."""
        return self._sums(values.sum(0)) / (SUB_Z * SUB**2)

    def _sums(self, values: np.ndarray) -> np.ndarray:
        return np.take(values, self.rank).sum(0, dtype=values.dtype)


def _cut(tile: np.ndarray, roll: int, height: int, width: int) -> np.ndarray:
    """Cut a piece of a periodic texture."""
    rows, columns = (np.arange(height) + roll) % tile.shape[0], (np.arange(width) + roll // 2) % tile.shape[1]
    return tile[rows[:, None], columns]


@dataclass(frozen=True)
class _Points:
    """The sub-samples of a slice with what the tissue rules need; ``middle_mm`` is the height of the slice's middle."""

    middle_mm: float
    z: np.ndarray
    """(SUB_Z, DITHER, 1)."""
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    index: np.ndarray
    """(DITHER, M) each, as x and y: from the centre of the left ventricle."""
    endo: np.ndarray
    epi: np.ndarray
    rv: np.ndarray
    """(SUB_Z, DITHER, M) each, mm."""

    def by_angle(self, table: np.ndarray) -> np.ndarray:
        """Look a function of angle and height up: (SUB_Z, DITHER, ANGLES) => (SUB_Z, DITHER, M)."""
        flat = self.index + ANGLES * np.arange(DITHER, dtype=np.int16)[:, None]
        return np.take(table.reshape(SUB_Z, -1), flat, axis=1)


def _points(ventricles: Ventricles, plan: Plan, k: int, grid: SubGrid, plane: tuple[np.ndarray, np.ndarray]) -> _Points:
    """The sub-samples of slice ``k``; ``plane`` is `SubGrid.positions`."""
    middle = float(plan.z_mm[k])
    x, y = (p + np.float32(s - c) for p, s, c in zip(plane, plan.shifts[k], ventricles.centre(middle), strict=True))
    z = grid.heights(middle, plan.slice_mm)
    nothing = np.empty(0, np.float32)
    points = _Points(middle, z, x, y, np.hypot(x, y), angle_index(x, y), nothing, nothing, nothing)
    endo, epi = (points.by_angle(table) for table in ventricles.radii(np.arange(ANGLES), z))
    return replace(points, endo=endo, epi=epi, rv=ventricles.rv_distance(x, y, z))


def labels_at(ventricles: Ventricles, points: _Points) -> dict[Label, np.ndarray]:
    """Where each structure lies, as annotators draw it: label => bool (SUB_Z, DITHER, M); nowhere two.

    Muscles inside the cavity count as cavity; the base is all of a slice or none of it, by its middle.
    """
    shape = ventricles.shape
    above_tip = points.z < ventricles.bottom_mm
    below_base = points.middle_mm >= ventricles.base_mm
    lv, wall = points.radius < points.endo, points.radius < points.epi
    rv = (points.rv < 0) & ~wall & above_tip
    if shape.open_base:
        ahead = np.cos(points.index * np.float32(2 * np.pi / ANGLES) - shape.rv_angle - 0.9) > 0.86
        wall = wall & ~(ahead & (ventricles.height(points.z) < 0.09) & ~lv)
    lv = lv & above_tip & below_base
    return {
        Label.LV: lv,
        Label.MYO: wall & above_tip & below_base & ~lv,
        Label.RV: rv & (points.middle_mm >= ventricles.base_mm + shape.rv_base_mm),
    }


@dataclass(frozen=True)
class _Tissues:
    """Where each tissue lies: bool (SUB_Z, DITHER, M) each; all else within the pericardium is fat."""

    inside: np.ndarray
    muscle: np.ndarray
    myocardium: np.ndarray
    rv_blood: np.ndarray
    lv_blood: np.ndarray


def _tissues(ventricles: Ventricles, detail: Detail, points: _Points, coarse: np.ndarray, fine: np.ndarray) -> _Tissues:
    """Tissue of every sub-sample.

    Above the base plane the same outlines show atria: blood within thin walls, without a label.
    """
    above = bool(np.median(points.z) < ventricles.base_mm)
    share = np.clip(ventricles.height(points.z), -0.3, 1.3)
    epi = points.endo + 2.5 if above else points.epi
    beyond = points.radius - epi
    gap = np.minimum(beyond, points.rv - detail.rv_wall_mm)
    fat = _fat(ventricles, detail, points, share) + (0.7 * coarse - 0.6)
    fat += (2.6 + 1.3 * detail.fat_mm) * np.exp((np.maximum(beyond, 0) + np.maximum(points.rv, 0)) * (-1 / 7))
    fat = np.maximum(fat, 0)
    in_rv = (points.rv < 0) & (beyond >= 0)
    if not above:
        depth = np.maximum(-points.rv, 0) / (5 + 7 * detail.rv_trabeculae * (0.3 + share))
        in_rv &= coarse + 0.8 * fine <= 0.6 + 2.2 * depth
    blood = _blood_in_lv(ventricles, detail, points, coarse + 0.6 * fine, share)
    inside = (gap < fat + 1.2) & (points.z < ventricles.bottom_mm + 3)
    return _Tissues(inside, gap > fat, gap < 0, in_rv & ~blood, blood)


def _fat(ventricles: Ventricles, detail: Detail, points: _Points, share: np.ndarray) -> np.ndarray:
    """Thickness of the fat around the heart by angle and height, in mm: lumps, and a ring in the groove at the base."""
    angle = (np.arange(ANGLES) * (2 * np.pi / ANGLES)).astype(np.float32)
    side = 0.45 + 0.55 * np.cos(angle - ventricles.shape.rv_angle - 0.5 * math.sin(detail.fat_phase[0]))
    lumps = side * (
        0.8 + 0.5 * np.sin(2 * angle + detail.fat_phase[0]) + 0.5 * np.sin(5 * angle + detail.fat_phase[1] + 2 * share)
    )
    return points.by_angle(detail.fat_mm * (lumps + np.exp(-np.abs(share + 0.02) / 0.12)))


def _blood_in_lv(
    ventricles: Ventricles, detail: Detail, points: _Points, rough: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """Where the cavity holds blood: not in papillary muscles nor in the trabeculae along the wall."""
    blood = points.radius < points.endo
    where = np.nonzero(blood)
    plane, height = where[1:], (where[0], where[1], np.zeros_like(where[0]))
    relative = points.radius[plane] / np.maximum(points.endo[where], 0.1)
    share, rough = share[height], rough[plane]
    squeeze = min(max(18 / max(ventricles.endo_mm, 6.0), 0.45), 1.5)
    wall_share = (relative - 1) * (5.0 / squeeze) + 1.1 * detail.trabeculae * (0.35 + share) + 0.6 * rough
    free = (wall_share < 0.75) | (share < 0.1)
    for place, out, size in detail.papillary:
        out_mm = ventricles.endo_mm * out * np.clip(1.25 - 0.6 * share, 0.5, 1.1)
        thick = size * math.sqrt(squeeze / 0.7) * np.sqrt(np.clip(1 - ((share - 0.5) / 0.33) ** 2, 0, 1))
        muscle = np.hypot(points.x[plane] - out_mm * math.cos(place), points.y[plane] - out_mm * math.sin(place))
        free &= muscle >= thick * (1 + 0.3 * rough)
    blood[where] = free
    return blood


def _heart_box(heart: Heart, plan: Plan, k: int, margin_mm: float) -> tuple[slice, slice] | None:
    """The box of pixels that the heart can reach in slice ``k``, as `SubGrid` wants it; None where it reaches none."""
    step = DITHER // SUB
    middle = float(plan.z_mm[k])
    coarse = np.s_[step // 2 :: step, step // 2 :: step]
    near = np.zeros(plan.x[coarse].shape, bool)
    for ventricles in heart.phases.values():
        x, y = (
            (grid[coarse] + np.float32(shift - centre)).ravel()
            for grid, shift, centre in zip((plan.x, plan.y), plan.shifts[k], ventricles.centre(middle), strict=True)
        )
        z = (middle + plan.slice_mm * np.array([-0.5, 0, 0.5], np.float32))[:, None]
        widest = ventricles.radii(np.arange(ANGLES), z)[1].max()
        outer = np.minimum(np.hypot(x, y) - widest, ventricles.rv_distance(x, y, z).min(0))
        near |= (outer < margin_mm + step * plan.pixel_mm).reshape(near.shape)
    if not near.any():
        return None
    sides = (np.flatnonzero(near.any(axis)) for axis in (1, 0))
    rows, columns = (slice(int(side[0]) * step, (int(side[-1]) + 1) * step) for side in sides)
    return rows, columns


def mask_slice(ventricles: Ventricles, points: _Points, grid: SubGrid, shape: tuple[int, int]) -> np.ndarray:
    """Majority label of one slice over the whole picture: uint8 of ``shape``."""
    found = labels_at(ventricles, points)
    shares = {label: grid.shares(where) for label, where in found.items()}
    shares[Label.BACKGROUND] = 1 - np.sum(list(shares.values()), axis=0)
    mask = np.zeros(shape, np.uint8)
    mask[grid.box] = np.stack([shares[label] for label in Label]).argmax(0)
    return mask


def _surroundings(heart: Heart, plan: Plan, thorax: Thorax, detail: Detail, signals: np.ndarray) -> list[np.ndarray]:
    rows, columns = plan.x.shape
    drift = heart.phases[Phase.ED].centre
    slices = []
    for k, z in enumerate(plan.z_mm):
        grain = _cut(detail.coarse, 37 * k, rows, columns)
        cx, cy = drift(float(z))
        x, y = plan.x + plan.shifts[k, 0] - cx, plan.y + plan.shifts[k, 1] - cy
        slices.append(
            paint_thorax(thorax, x.astype(np.float32), y.astype(np.float32), float(z), plan.pixel_mm, signals, grain)
        )
    return slices


def render(
    heart: Heart, style: ScannerStyle, rng: np.random.Generator
) -> tuple[Plan, dict[Phase, tuple[np.ndarray, np.ndarray]]]:
    """Scan a heart.

    Args:
        heart: Geometry of both phases.
        style: The site's way to scan.
        rng: Random stream for position, fine structure, surroundings and noise.

    Returns:
        The plan of the slices, and per phase image float32 (Z, H, W), non-negative, and mask uint8 (Z, H, W).
    """
    plan, detail, signals = draw_plan(heart, style, rng), draw_detail(rng), tissue_signals(style, rng)
    ed = heart.phases[Phase.ED]
    reach = ed.epi_mm * (0.82 + ed.rv_scale * heart.shape.rv_axes[0])
    thorax = draw_thorax(ed.bottom_mm, reach, ed.epi_mm * 1.15, signals, rng)
    around = _surroundings(heart, plan, thorax, detail, signals)
    coil = coil_field(plan.x, plan.y, style.coil_falloff * rng.uniform(0.5, 1.5), rng)
    slices = [_scan_slice(heart, plan, k, detail, around[k], signals) for k in range(len(plan.z_mm))]
    scans = {}
    for phase in heart.phases:
        images, masks = zip(*(each[phase] for each in slices), strict=True)
        scans[phase] = receive(np.stack(images) * coil, style, rng), np.stack(masks)
    return plan, scans


def _scan_slice(
    heart: Heart, plan: Plan, k: int, detail: Detail, around: np.ndarray, signals: np.ndarray
) -> dict[Phase, tuple[np.ndarray, np.ndarray]]:
    """Set the heart into its surroundings in slice ``k``: signal and mask of both phases, (H, W) each."""
    box = _heart_box(heart, plan, k, max(MARGIN_MM, 6 + 2.8 * detail.fat_mm))
    if box is None:
        return dict.fromkeys(heart.phases, (around, np.zeros(around.shape, np.uint8)))
    grid = SubGrid.of(box)
    plane = grid.positions(plan)
    scans = {}
    for phase, ventricles in heart.phases.items():
        points = _points(ventricles, plan, k, grid, plane)
        share, heart_signal = _heart_signal(ventricles, detail, points, grid, signals, 7 * k + 3 * int(phase))
        image = around.copy()
        image[box] = around[box] * (1 - share) + heart_signal
        scans[phase] = image, mask_slice(ventricles, points, grid, around.shape)
    return scans


def _heart_signal(
    ventricles: Ventricles, detail: Detail, points: _Points, grid: SubGrid, signals: np.ndarray, roll: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the heart covers of each pixel, and its signal: tissues averaged over sub-samples, textured; (H, W) each."""
    h, w = (side // SUB for side in grid.size)
    coarse, fine = (_cut(tile, roll, h, w) for tile in (detail.coarse, detail.fine))
    tissues = _tissues(ventricles, detail, points, grid.of_pixels(coarse), grid.of_pixels(fine))
    signal = np.where(tissues.muscle, signals[Tissue.MUSCLE], signals[Tissue.FAT])
    for where, tissue in (
        (tissues.myocardium, Tissue.MYOCARDIUM),
        (tissues.rv_blood, Tissue.RV_BLOOD),
        (tissues.lv_blood, Tissue.LV_BLOOD),
    ):
        np.copyto(signal, signals[tissue], where=where)
    blood = grid.shares(tissues.lv_blood | tissues.rv_blood)
    flow = detail.flow * (_cut(detail.coarse, roll + 11, h, w) + 0.5 * fine)
    return grid.shares(tissues.inside), grid.means(signal * tissues.inside) * (1 + flow * (0.5 + blood))

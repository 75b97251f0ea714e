"""From geometry to slices: label fractions and signal of the heart, set into its surroundings."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter1d

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
NEAR_ANGLES = 21
"""Directions, of ANGLES, over which the fat of a block of pixels is looked for."""
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


_SIDE = DITHER // SUB
"""Height and width in pixels of a block: the smallest square in which all heights occur equally often."""
_AT = np.mgrid[:DITHER, :DITHER].reshape(2, -1)
_ORDER = np.argsort((5 * _AT[0] + 3 * _AT[1]) % DITHER, kind="stable")
_SUB_AT = _AT[:, _ORDER].reshape(2, DITHER, DITHER)
"""Row and column within its block, in sub-samples, of each sub-sample of a group: (2, DITHER, members)."""
_PIXEL = _SUB_AT[0] // SUB * _SIDE + _SUB_AT[1] // SUB
"""Its pixel within the block: (DITHER, members)."""
_RANK = np.argsort(_PIXEL.ravel(), kind="stable").reshape(_SIDE**2, SUB**2).T
"""The sub-samples of each pixel, as indices into (DITHER * members): (SUB * SUB, pixels of a block)."""


@dataclass(frozen=True)
class SubGrid:
    """Sub-samples of B blocks of pixels, in groups of equal height.

    Heights are dithered in plane (`DITHER` steps), so a slice has SUB_Z × DITHER heights in all. What depends on height
    alone is computed once a height: arrays are (SUB_Z, DITHER, 1) by height, (DITHER, M) in plane, and broadcast, with
    M = DITHER · B. Pixels are (P, B), with the P of a block first.
    """

    rows: np.ndarray
    columns: np.ndarray
    """(P, B): the pixels' places in the picture."""

    @classmethod
    def of(cls, blocks: np.ndarray) -> "SubGrid":
        """The grid of the blocks that are true: (H / 4, W / 4)."""
        row, column = np.nonzero(blocks)
        within = np.arange(_SIDE**2)[:, None]
        return cls(_SIDE * row + within // _SIDE, _SIDE * column + within % _SIDE)

    def heights(self, middle_mm: float, slice_mm: float) -> np.ndarray:
        """Heights of the groups in a slice: float32 (SUB_Z, DITHER, 1), mm."""
        dither = (np.arange(DITHER)[:, None] + 0.5) / DITHER
        return (middle_mm + slice_mm * ((np.arange(SUB_Z)[:, None, None] + dither) / SUB_Z - 0.5)).astype(np.float32)

    def positions(self, plan: "Plan") -> tuple[np.ndarray, np.ndarray]:
        """In-plane coordinates of the sub-samples: float32 (DITHER, M) each, mm in the heart's frame."""
        row, column = ((at + 0.5) / SUB - 0.5 for at in _SUB_AT)
        out = []
        for grid in (plan.x, plan.y):
            steps = row * (grid[1, 0] - grid[0, 0]) + column * (grid[0, 1] - grid[0, 0])
            fine = steps.astype(np.float32)[:, :, None] + grid[self.rows[0], self.columns[0]]
            out.append(fine.reshape(DITHER, -1))
        return out[0], out[1]

    def of_pixels(self, values: np.ndarray) -> np.ndarray:
        """Give each sub-sample the value of its pixel: (P, B) => (DITHER, M)."""
        return values[_PIXEL].reshape(DITHER, -1)

    def counts(self, where: np.ndarray) -> np.ndarray:
        """How many of each pixel's sub-samples are true: bool (SUB_Z, DITHER, M) => uint8 (P, B)."""
        by_place = where.sum(0, dtype=np.uint8).reshape(DITHER**2, -1)
        return by_place[_RANK].sum(0, dtype=np.uint8)


def _texture(tile: np.ndarray, roll: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A periodic texture at places in the picture."""
    return tile[(rows + roll) % tile.shape[0], (columns + roll // 2) % tile.shape[1]]


@dataclass(frozen=True)
class _Plane:
    """The sub-samples of a slice in plane, from the centre of the left ventricle: (DITHER, M) each, as `SubGrid`."""

    grid: SubGrid
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    index: np.ndarray
    """Of their angle, plus ANGLES times their group: where they lie in the table of a height."""

    @classmethod
    def of(cls, grid: SubGrid, plan: Plan, k: int, centre: tuple[float, float]) -> "_Plane":
        """The plane of slice ``k``."""
        x, y = (p + np.float32(s - c) for p, s, c in zip(grid.positions(plan), plan.shifts[k], centre, strict=True))
        index = angle_index(x, y) + ANGLES * np.arange(DITHER, dtype=np.int16)[:, None]
        return cls(grid, x, y, np.sqrt(x * x + y * y), index.astype(np.intp))

    @property
    def angle(self) -> np.ndarray:
        """In radians, as the tables have it."""
        return (self.index % ANGLES).astype(np.float32) * np.float32(2 * np.pi / ANGLES)


@dataclass(frozen=True)
class _Points:
    """The sub-samples of a slice with what the tissue rules need; ``middle_mm`` is the height of the slice's middle."""

    middle_mm: float
    z: np.ndarray
    """(SUB_Z, DITHER, 1)."""
    plane: _Plane
    endo: np.ndarray
    epi: np.ndarray
    rv: np.ndarray
    """(SUB_Z, DITHER, M) each, mm."""

    @classmethod
    def of(cls, ventricles: Ventricles, plan: Plan, k: int, plane: _Plane) -> "_Points":
        """The sub-samples of slice ``k``."""
        middle = float(plan.z_mm[k])
        z = plane.grid.heights(middle, plan.slice_mm)
        endo, epi = (_by_angle(table, plane) for table in ventricles.radii(np.arange(ANGLES), z))
        return cls(middle, z, plane, endo, epi, ventricles.rv_distance(plane.x, plane.y, z))


def _by_angle(table: np.ndarray, plane: _Plane) -> np.ndarray:
    """Look a function of angle and height up: (SUB_Z, DITHER, ANGLES) => (SUB_Z, DITHER, M)."""
    return np.take(table.reshape(SUB_Z, -1), plane.index, axis=1)


def labels_at(ventricles: Ventricles, points: _Points) -> dict[Label, np.ndarray]:
    """Where each structure lies, as annotators draw it: label => bool (SUB_Z, DITHER, M); nowhere two.

    Muscles inside the cavity count as cavity; the base is all of a slice or none of it, by its middle.
    """
    shape, plane = ventricles.shape, points.plane
    above_tip = points.z < ventricles.bottom_mm
    below_base = points.middle_mm >= ventricles.base_mm
    lv, wall = plane.radius < points.endo, plane.radius < points.epi
    rv = (points.rv < 0) & ~wall & above_tip
    if shape.open_base:
        ahead = np.cos(plane.angle - shape.rv_angle - 0.9) > 0.86
        wall = wall & ~(ahead & (ventricles.height(points.z) < 0.09) & ~lv)
    lv = lv & above_tip & below_base
    return {
        Label.LV: lv,
        Label.MYO: wall & above_tip & below_base & ~lv,
        Label.RV: rv & (points.middle_mm >= ventricles.base_mm + shape.rv_base_mm),
    }


def _tissues(
    ventricles: Ventricles, detail: Detail, points: _Points, coarse: np.ndarray, fine: np.ndarray
) -> dict[Tissue, np.ndarray]:
    """Tissue of every sub-sample within the pericardium: bool (SUB_Z, DITHER, M) each, nowhere two.

    Above the base plane the same outlines show atria: blood within thin walls, without a label.
    """
    above = bool(np.median(points.z) < ventricles.base_mm)
    share = np.clip(ventricles.height(points.z), -0.3, 1.3)
    beyond = points.plane.radius - (points.endo + 2.5 if above else points.epi)
    gap = np.minimum(beyond, points.rv - detail.rv_wall_mm)
    fat = _fat(ventricles, detail, points, share, beyond)
    fat += 0.7 * coarse - 0.6
    np.maximum(fat, 0, out=fat)
    in_rv = (points.rv < 0) & (beyond >= 0)
    if not above:
        depth = np.maximum(-points.rv, 0)
        depth *= 2.2 / (5 + 7 * detail.rv_trabeculae * (0.3 + share))
        in_rv &= coarse + 0.8 * fine <= 0.6 + depth
    lv_blood = _blood_in_lv(ventricles, detail, points, coarse + 0.6 * fine, share)
    rv_blood = in_rv & ~lv_blood
    inside = (gap < fat + 1.2) & (points.z < ventricles.bottom_mm + 3)
    wall = inside & ~(lv_blood | rv_blood)
    myocardium = wall & (gap < 0)
    rest = wall & ~myocardium
    muscle = rest & (gap > fat)
    return {
        Tissue.LV_BLOOD: lv_blood & inside,
        Tissue.RV_BLOOD: rv_blood & inside,
        Tissue.MYOCARDIUM: myocardium,
        Tissue.MUSCLE: muscle,
        Tissue.FAT: rest & ~muscle,
    }


def _fat_by_angle(ventricles: Ventricles, detail: Detail, share: np.ndarray) -> np.ndarray:
    """Thickness of the fat by angle and height, in mm: lumps, and a ring in the groove at the base."""
    angle = (np.arange(ANGLES) * (2 * np.pi / ANGLES)).astype(np.float32)
    side = 0.45 + 0.55 * np.cos(angle - ventricles.shape.rv_angle - 0.5 * math.sin(detail.fat_phase[0]))
    lumps = side * (
        0.8 + 0.5 * np.sin(2 * angle + detail.fat_phase[0]) + 0.5 * np.sin(5 * angle + detail.fat_phase[1] + 2 * share)
    )
    return detail.fat_mm * (lumps + np.exp(-np.abs(share + 0.02) / 0.12))


def _fat(ventricles: Ventricles, detail: Detail, points: _Points, share: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    """Thickness of the fat around each sub-sample, in mm: more in the grooves between the ventricles."""
    groove = np.maximum(beyond, 0)
    groove += np.maximum(points.rv, 0)
    groove *= -1 / 7
    np.exp(groove, out=groove)
    groove *= 2.6 + 1.3 * detail.fat_mm
    groove += _by_angle(_fat_by_angle(ventricles, detail, share), points.plane)
    return groove


def _blood_in_lv(
    ventricles: Ventricles, detail: Detail, points: _Points, rough: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """Where the cavity holds blood: not in papillary muscles nor in the trabeculae along the wall."""
    plane = points.plane
    blood = plane.radius < points.endo
    where = np.flatnonzero(blood)
    place, height = where % plane.x.size, where // plane.x.shape[1]
    rough, x, y = rough.ravel()[place], plane.x.ravel()[place], plane.y.ravel()[place]
    relative = plane.radius.ravel()[place] / np.maximum(points.endo.ravel()[where], 0.1)
    squeeze = min(max(18 / max(ventricles.endo_mm, 6.0), 0.45), 1.5)
    webs = 1.1 * detail.trabeculae * (0.35 + share.ravel())
    wall_share = (relative - 1) * (5.0 / squeeze) + webs[height] + 0.6 * rough
    free = (wall_share < 0.75) | (share.ravel() < 0.1)[height]
    for angle, out, size in detail.papillary:
        out_mm = ventricles.endo_mm * out * np.clip(1.25 - 0.6 * share.ravel(), 0.5, 1.1)
        thick = size * math.sqrt(squeeze / 0.7) * np.sqrt(np.clip(1 - ((share.ravel() - 0.5) / 0.33) ** 2, 0, 1))
        dx = x - (out_mm * math.cos(angle))[height]
        dy = y - (out_mm * math.sin(angle))[height]
        free &= np.sqrt(dx * dx + dy * dy) >= thick[height] * (1 + 0.3 * rough)
    blood.ravel()[where] = free
    return blood


@dataclass(frozen=True)
class _Reach:
    """Blocks of pixels that a heart can reach in a slice, and the corner of a box about them for its textures."""

    blocks: np.ndarray
    """bool (H / 4, W / 4)."""
    corner: tuple[int, int]
    """Row and column."""


def _reach(heart: Heart, detail: Detail, plan: Plan, k: int) -> _Reach | None:
    """Where the heart with its fat can be in slice ``k``, by the middle of each block; None where it is nowhere."""
    middle = float(plan.z_mm[k])
    at = np.s_[_SIDE // 2 :: _SIDE, _SIDE // 2 :: _SIDE]
    centre = heart.centre(middle)
    x, y = (
        grid[at].ravel() + np.float32(shift - c)
        for grid, shift, c in zip((plan.x, plan.y), plan.shifts[k], centre, strict=True)
    )
    radius, index = np.sqrt(x * x + y * y), angle_index(x, y)
    z = (middle + plan.slice_mm * np.array([-0.5, 0, 0.5], np.float32))[:, None]
    block_mm = _SIDE * plan.pixel_mm
    box, blocks = np.zeros(x.shape, bool), np.zeros(x.shape, bool)
    for ventricles in heart.phases.values():
        widest = ventricles.radii(np.arange(ANGLES), z)[1].max()
        outer = np.minimum(radius - widest, ventricles.rv_distance(x, y, z).min(0))
        box |= outer < max(MARGIN_MM, 6 + 2.8 * detail.fat_mm) + block_mm
        lumps = _fat_by_angle(ventricles, detail, np.clip(ventricles.height(z), -0.3, 1.3)).max(0)
        thickest = maximum_filter1d(lumps, NEAR_ANGLES, mode="wrap")[index]
        groove = (2.6 + 1.3 * detail.fat_mm) * np.exp(-2 / 7 * np.maximum(outer, 0))
        blocks |= outer < thickest + groove + 0.7 * detail.coarse.max() - 0.6 + 1.2 + block_mm
    shape = plan.x[at].shape
    box, blocks = box.reshape(shape), (blocks & box).reshape(shape)
    if not blocks.any():
        return None
    return _Reach(blocks, (_SIDE * int(box.any(1).argmax()), _SIDE * int(box.any(0).argmax())))


def mask_slice(ventricles: Ventricles, points: _Points, shape: tuple[int, int]) -> np.ndarray:
    """Majority label of one slice over the whole picture: uint8 of ``shape``; of equals the lowest."""
    grid = points.plane.grid
    counts = {label: grid.counts(where) for label, where in labels_at(ventricles, points).items()}
    best = SUB_Z * SUB**2 - sum(counts.values(), np.zeros((), np.uint8))
    found = np.zeros_like(best)
    for label in sorted(counts):
        more = counts[label] > best
        found[more] = label
        best = np.maximum(best, counts[label])
    mask = np.zeros(shape, np.uint8)
    mask[grid.rows, grid.columns] = found
    return mask


def _surroundings(heart: Heart, plan: Plan, thorax: Thorax, detail: Detail, signals: np.ndarray) -> list[np.ndarray]:
    rows, columns = (np.arange(size) for size in plan.x.shape)
    slices = []
    for k, z in enumerate(plan.z_mm):
        grain = _texture(detail.coarse, 37 * k, rows[:, None], columns)
        x, y = (
            grid + np.float32(shift - c)
            for grid, shift, c in zip((plan.x, plan.y), plan.shifts[k], heart.centre(float(z)), strict=True)
        )
        slices.append(paint_thorax(thorax, x, y, float(z), plan.pixel_mm, signals, grain))
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
    reach = _reach(heart, detail, plan, k)
    if reach is None:
        return dict.fromkeys(heart.phases, (around, np.zeros(around.shape, np.uint8)))
    grid = SubGrid.of(reach.blocks)
    plane = _Plane.of(grid, plan, k, heart.centre(float(plan.z_mm[k])))
    rows, columns = grid.rows - reach.corner[0], grid.columns - reach.corner[1]
    scans = {}
    for phase, ventricles in heart.phases.items():
        points = _Points.of(ventricles, plan, k, plane)
        roll = 7 * k + 3 * int(phase)
        coarse, fine, flow = (
            _texture(tile, roll + turn, rows, columns)
            for tile, turn in ((detail.coarse, 0), (detail.fine, 0), (detail.coarse, 11))
        )
        share, signal = _heart_signal(ventricles, detail, points, signals, coarse, fine, flow)
        image = around.copy()
        image[grid.rows, grid.columns] = around[grid.rows, grid.columns] * (1 - share) + signal
        scans[phase] = image, mask_slice(ventricles, points, around.shape)
    return scans


def _heart_signal(
    ventricles: Ventricles,
    detail: Detail,
    points: _Points,
    signals: np.ndarray,
    coarse: np.ndarray,
    fine: np.ndarray,
    flow: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """What the heart covers of each pixel, and its signal: tissues averaged over sub-samples, textured; (P, B) each."""
    grid = points.plane.grid
    tissues = _tissues(ventricles, detail, points, grid.of_pixels(coarse), grid.of_pixels(fine))
    shares = {tissue: grid.counts(where).astype(np.float32) / (SUB_Z * SUB**2) for tissue, where in tissues.items()}
    every = np.stack(list(shares.values()))
    signal = np.tensordot(signals[list(shares)], every, 1)
    blood = shares[Tissue.LV_BLOOD] + shares[Tissue.RV_BLOOD]
    return every.sum(0), signal * (1 + detail.flow * (flow + 0.5 * fine) * (0.5 + blood))

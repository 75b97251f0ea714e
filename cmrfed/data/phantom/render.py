"""From geometry to slices: label fractions and signal of the heart, set into its surroundings."""

from dataclasses import dataclass

import numpy as np

from cmrfed.data.labels import Label, Phase
from cmrfed.data.phantom.anatomy import ANGLES, Heart, Ventricles, angle_index
from cmrfed.data.phantom.signal import ScannerStyle, Tissue, coil_field, receive, texture_tile, tissue_signals
from cmrfed.data.phantom.thorax import Thorax, draw_thorax, paint_thorax

SUB = 2
"""Sub-samples along each in-plane axis of a pixel."""
SUB_Z = 3
"""Sub-samples through the thickness of a slice."""
MARGIN_MM = 14.0
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


def _sub_grid(plan: Plan, k: int, box: tuple[slice, slice], centre: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """Coordinates (SUB_Z, SUB*H, SUB*W) of the sub-samples of a box of pixels, from the LV's centre."""
    x, y = plan.x[box] + plan.shifts[k, 0] - centre[0], plan.y[box] + plan.shifts[k, 1] - centre[1]
    step_c = (plan.x[0, 1] - plan.x[0, 0], plan.y[0, 1] - plan.y[0, 0])
    step_r = (plan.x[1, 0] - plan.x[0, 0], plan.y[1, 0] - plan.y[0, 0])
    offset = ((np.arange(SUB) + 0.5) / SUB - 0.5).astype(np.float32)
    rows, columns = np.tile(offset, x.shape[0])[:, None], np.tile(offset, x.shape[1])[None]
    x, y = (np.repeat(np.repeat(a, SUB, 0), SUB, 1) for a in (x, y))
    x, y = x + rows * step_r[0] + columns * step_c[0], y + rows * step_r[1] + columns * step_c[1]
    dither = ((5 * np.arange(x.shape[0])[:, None] + 3 * np.arange(x.shape[1])[None]) % 8 + 0.5) / 8
    z = plan.z_mm[k] + plan.slice_mm * ((np.arange(SUB_Z)[:, None, None] + dither) / SUB_Z - 0.5)
    return x[None], y[None], z.astype(np.float32)


def _cut(tile: np.ndarray, roll: int, height: int, width: int) -> np.ndarray:
    """Cut a piece of a periodic texture."""
    rows, columns = (np.arange(height) + roll) % tile.shape[0], (np.arange(width) + roll // 2) % tile.shape[1]
    return tile[rows[:, None], columns]


def _pixels(sub: np.ndarray) -> np.ndarray:
    """Average sub-samples (SUB_Z, SUB*H, SUB*W) over pixels and thickness: (H, W)."""
    flat = sub.mean(0, dtype=np.float32)
    return flat.reshape(flat.shape[0] // SUB, SUB, flat.shape[1] // SUB, SUB).mean((1, 3))


@dataclass(frozen=True)
class _Points:
    """Sub-samples with what the tissue rules need: all broadcast to (SUB_Z, SUB*H, SUB*W)."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    radius: np.ndarray
    index: np.ndarray
    endo: np.ndarray
    epi: np.ndarray
    rv: np.ndarray


def _points(ventricles: Ventricles, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> _Points:
    index = angle_index(x, y)
    endo, epi = ventricles.radii(index, z)
    radius = np.broadcast_to(np.hypot(x, y), np.broadcast_shapes(x.shape, z.shape))
    return _Points(x, y, z, radius, index, endo, epi, ventricles.rv_distance(x, y, z).astype(np.float32))


def labels_at(ventricles: Ventricles, points: _Points, plane_mm: float) -> np.ndarray:
    """Canonical label of every sub-sample, as annotators draw it.

    Muscles inside the cavity count as cavity; the base is all of a slice or none of it, by its middle ``plane_mm``.
    """
    shape = ventricles.shape
    in_lv = (plane_mm >= ventricles.base_mm) & (points.z < ventricles.bottom_mm)
    lv, wall = points.radius < points.endo, points.radius < points.epi
    if shape.open_base:
        ahead = np.cos(points.index * (2 * np.pi / ANGLES) - shape.rv_angle - 0.9) > 0.86
        wall = wall & ~(ahead & (ventricles.height(points.z) < 0.09) & ~lv)
    rv = (points.rv < 0) & (points.radius >= points.epi) & (points.z < ventricles.bottom_mm)
    rv &= plane_mm >= ventricles.base_mm + shape.rv_base_mm
    labels = np.where(in_lv & lv, Label.LV, np.where(in_lv & wall, Label.MYO, np.where(rv, Label.RV, Label.BACKGROUND)))
    return labels.astype(np.uint8)


def _tissues(ventricles: Ventricles, detail: Detail, points: _Points, roll: int) -> tuple[np.ndarray, np.ndarray]:
    """Tissue of every sub-sample and whether it lies within the pericardium.

    Above the base plane the same outlines show atria: blood within thin walls, without a label.
    """
    h, w = points.radius.shape[1] // SUB, points.radius.shape[2] // SUB
    fine, coarse = (
        np.repeat(np.repeat(_cut(t, roll, h, w), SUB, 0), SUB, 1)[None] for t in (detail.fine, detail.coarse)
    )
    above = np.broadcast_to(np.median(points.z) < ventricles.base_mm, points.radius.shape)
    epi = np.where(above, points.endo + 2.5, points.epi)
    gap = np.minimum(points.radius - epi, points.rv - detail.rv_wall_mm)
    notch = np.exp(-np.maximum(points.radius - epi, 0) / 7 - np.maximum(points.rv, 0) / 7)
    angle = points.index * (2 * np.pi / ANGLES)
    share = np.clip(ventricles.height(points.z), -0.3, 1.3)
    side = 0.45 + 0.55 * np.cos(angle - ventricles.shape.rv_angle - 0.5 * np.sin(detail.fat_phase[0]))
    lumps = side * (
        0.8 + 0.5 * np.sin(2 * angle + detail.fat_phase[0]) + 0.5 * np.sin(5 * angle + detail.fat_phase[1] + 2 * share)
    )
    groove = np.exp(-np.abs(share + 0.02) / 0.12)
    fat = detail.fat_mm * (lumps + groove) + (2 + detail.fat_mm) * 1.3 * notch + 0.7 * coarse - 0.6
    fat = np.maximum(fat, 0)
    tissue = np.full(points.radius.shape, Tissue.FAT, np.uint8)
    tissue[gap > fat] = Tissue.MUSCLE
    tissue[gap < 0] = Tissue.MYOCARDIUM
    depth = np.maximum(-points.rv, 0) / (5 + 7 * detail.rv_trabeculae * (0.3 + share))
    rv_rough = coarse + 0.8 * fine > 0.6 + 2.2 * depth
    tissue[(points.rv < 0) & (points.radius >= epi) & (~rv_rough | above)] = Tissue.RV_BLOOD
    tissue[_blood_in_lv(ventricles, detail, points, coarse + 0.6 * fine, share)] = Tissue.LV_BLOOD
    return tissue, gap < fat + 1.2


def _blood_in_lv(
    ventricles: Ventricles, detail: Detail, points: _Points, rough: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """Where the cavity holds blood: not in papillary muscles nor in the trabeculae along the wall."""
    relative = points.radius / np.maximum(points.endo, 0.1)
    squeeze = np.clip(18 / max(ventricles.endo_mm, 6.0), 0.45, 1.5)
    wall_share = (relative - 1) * 5.0 / squeeze + 1.1 * detail.trabeculae * (0.35 + share) + 0.6 * rough
    blood = (relative < 1) & ((wall_share < 0.75) | (share < 0.1))
    for place, out, size in detail.papillary:
        out_mm = ventricles.endo_mm * out * np.clip(1.25 - 0.6 * share, 0.5, 1.1)
        thick = size * np.sqrt(np.clip(1 - ((share - 0.5) / 0.33) ** 2, 0, 1)) * np.sqrt(squeeze / 0.7)
        muscle = np.hypot(points.x - out_mm * np.cos(place), points.y - out_mm * np.sin(place))
        blood &= muscle >= thick * (1 + 0.3 * rough)
    return blood


def _heart_box(heart: Heart, plan: Plan) -> tuple[slice, slice]:
    """The box of pixels that holds the heart in every slice."""
    near = np.zeros(plan.x.shape, bool)
    for ventricles in heart.phases.values():
        for z in np.linspace(ventricles.base_mm, ventricles.bottom_mm, 5):
            x, y = (p - c for p, c in zip((plan.x, plan.y), ventricles.centre(float(z)), strict=True))
            outer = np.minimum(np.hypot(x, y) - 1.15 * ventricles.epi_mm, ventricles.rv_distance(x, y, z))
            near |= outer < MARGIN_MM
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def mask_slice(ventricles: Ventricles, plan: Plan, k: int, box: tuple[slice, slice]) -> tuple[np.ndarray, _Points]:
    """Majority label of slice ``k`` over the whole grid: uint8 (H, W), and the sub-samples in the box."""
    points = _points(ventricles, *_sub_grid(plan, k, box, ventricles.centre(float(plan.z_mm[k]))))
    labels = labels_at(ventricles, points, float(plan.z_mm[k]))
    shares = np.stack([_pixels(labels == label) for label in Label])
    mask = np.zeros(plan.x.shape, np.uint8)
    mask[box] = shares.argmax(0)
    return mask, points


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
    box = _heart_box(heart, plan)
    coil = coil_field(plan.x, plan.y, style.coil_falloff * rng.uniform(0.5, 1.5), rng)
    scans = {}
    for phase, ventricles in heart.phases.items():
        images, masks = [], []
        for k in range(len(plan.z_mm)):
            mask, points = mask_slice(ventricles, plan, k, box)
            image = around[k].copy()
            image[box] = _heart_signal(ventricles, detail, points, around[k][box], signals, 7 * k + 3 * int(phase))
            images.append(image * coil)
            masks.append(mask)
        scans[phase] = receive(np.stack(images), style, rng), np.stack(masks)
    return plan, scans


def _heart_signal(
    ventricles: Ventricles, detail: Detail, points: _Points, around: np.ndarray, signals: np.ndarray, roll: int
) -> np.ndarray:
    """Signal of the box: tissues averaged over sub-samples, textured, set into the surroundings."""
    tissue, inside = _tissues(ventricles, detail, points, roll)
    below = np.broadcast_to(points.z < ventricles.bottom_mm + 3, inside.shape)
    inside = inside & below
    share = _pixels(inside)
    mine = _pixels(signals[tissue] * inside)
    blood = _pixels((tissue == Tissue.LV_BLOOD) | (tissue == Tissue.RV_BLOOD))
    h, w = share.shape
    flow = detail.flow * (_cut(detail.coarse, roll + 11, h, w) + 0.5 * _cut(detail.fine, roll, h, w))
    return around * (1 - share) + mine * (1 + flow * (0.5 + blood))

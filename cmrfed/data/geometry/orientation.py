"""The view of a whole patient: slices from base to apex, and, where the affine is lost, which way the heart lies.

What an affine says has been done when a volume is read (:mod:`cmrfed.data.geometry.affine`). Here the masks and greys
of both phases are asked together: for the order of slices always, for the arrangement in plane only where the affine
does not know the patient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from cmrfed.data.geometry.affine import Frame
from cmrfed.data.labels import Label
from cmrfed.data.sources.raw import RawArrays

UNSURE_GROWTH = 0.02
"""Change of the drawn area a slice, summed over ED and ES, below which the order is in doubt (70 ACDC patients: 0.096
and more; 45 Sunnybrook patients: one of 0.005, a dilated apex, the others 0.03 and more)."""
RIGHT_VENTRICLE_DEG = (-50.0, 68.0)
"""Where the RV may lie as seen from the LV, in degrees above the left: 70 ACDC patients lie between -47 and 64."""
USUAL_DEG = 5.0
"""The middle of that range; quarter turns bring the RV nearest to it."""
SURE_DEG = 35.0
"""How far from there the RV may lie without a quarter turn being possible."""
QUARTER = "; a quarter turn is not ruled out"
OTHERWISE_DEG = 110.0
"""How far from there the RV contradicts an affine that knows the patient."""
LEAST_TAIL, LEAST_SLOPE, LEAST_LUNG = 0.15, 0.03, 0.3
"""Least size of each of the three signs of :func:`signs_of_mirroring` that counts (the 5th percentile of 70 ACDC
patients is 0.18, 0.03 and 0.58)."""


@dataclass(frozen=True)
class Signs:
    """What tells a heart from its mirror image; each is positive for a heart that is shown as it is.

    tail: skewness of the RV's pixels across the line from RV to LV; the outflow tract is a tail to the anterior side.
    slope: how far the RV's centre moves to the inferior side from base to apex, in heart sizes.
    lung: how much darker the surroundings beyond the RV are on the anterior side (lung) than on the inferior (liver),
    in standard deviations.
    """

    tail: float
    slope: float
    lung: float

    @property
    def mirrored(self) -> bool:
        """All three say that this is the mirror image."""
        return self.tail < -LEAST_TAIL and self.slope < -LEAST_SLOPE and self.lung < -LEAST_LUNG

    @property
    def upright(self) -> bool:
        """At least two say that it is not."""
        return (self.tail > LEAST_TAIL) + (self.slope > LEAST_SLOPE) + (self.lung > LEAST_LUNG) >= 2


def orient(raw: Sequence[RawArrays]) -> tuple[list[RawArrays], tuple[str, ...]]:
    """Bring all volumes of a patient into one view, by the masks and greys of all phases; see the module.

    The heart is larger at the base: the order of slices is turned when its drawn area grows along them (slope of a
    least-squares line over the drawn slices, summed over the phases). Where the area hardly changes, or there are no
    masks, the affine's order is kept.

    Returns:
        The volumes, and notes on what had to be turned or is not assured.
    """
    volumes, notes = _by_slices(raw)
    if all(r.frame is Frame.PATIENT for r in raw):
        return volumes, (*notes, *_contradiction(volumes))
    volumes, more = _in_plane(volumes)
    return volumes, (*notes, *more)


# --- order of slices --------------------------------------------------------------------------
def _by_slices(raw: Sequence[RawArrays]) -> tuple[list[RawArrays], tuple[str, ...]]:
    masks, known = [r.mask for r in raw if r.mask is not None], all(r.base_first for r in raw)
    if not masks:
        return list(raw), () if known else ("no mask: slices in the order of the file, base first is not assured",)
    growth = sum(_growth(mask) for mask in masks)
    if abs(growth) < UNSURE_GROWTH:
        doubt = ("the drawn area hardly changes along the slices: base first is not assured",)
        volumes = list(raw) if growth <= 0 or known else [_changed(r, lambda a: a[::-1]) for r in raw]
        return volumes, () if known else doubt
    if growth < 0:
        return list(raw), ()
    said = "slices turned: the affine says base first, but the drawn area says apex first"
    note = said if known else "slices turned: the file begins at the apex"
    return [_changed(r, lambda a: a[::-1]) for r in raw], (note,)


def _growth(mask: np.ndarray) -> float:
    """Change of the drawn area from slice to slice, as a share of the largest area."""
    area = np.count_nonzero(mask, axis=(1, 2))
    drawn = np.flatnonzero(area)
    return float(np.polyfit(drawn, area[drawn], 1)[0] / area.max()) if len(drawn) > 1 else 0.0


# --- in plane ---------------------------------------------------------------------------------
def _in_plane(raw: list[RawArrays]) -> tuple[list[RawArrays], tuple[str, ...]]:
    """Turn a patient whose affine does not know the patient, by the place of the RV and the signs of mirroring.

    The stored arrangement is kept where it can be right. Otherwise a mirror image is undone and the quarter turn taken
    that brings the RV nearest to USUAL_DEG, which is sure only within SURE_DEG of it. 70 ACDC patients stored in each
    of eight arrangements without an affine: all 70 are kept as they are; mirrored or turned by 180 degrees, 56 to 60
    come back; transposed or turned by 90 degrees, 38 to 56. All but 2 to 6 of the others carry a note of doubt.
    """
    lost = any(r.frame is Frame.LOST for r in raw)
    kept = "the header does not say how the heart lies: "
    angle = ventricle_angle(raw)
    if angle is None:
        return raw, (f"{kept}stored order kept, without a right ventricle to tell by",) if lost else ()
    signs = signs_of_mirroring(raw)
    if signs.mirrored:
        raw = [_changed(r, lambda a: a[:, :, ::-1]) for r in raw]
        angle = 180 - angle
    low, high = RIGHT_VENTRICLE_DEG
    off = (angle - USUAL_DEG + 180) % 360 - 180
    quarters = 0 if low <= off + USUAL_DEG <= high and not signs.mirrored else round(off / 90) % 4
    if quarters:
        raw = [_changed(r, lambda a: np.rot90(a, quarters, (1, 2)), swap=quarters % 2 == 1) for r in raw]
    doubt = QUARTER if abs((off + 45) % 90 - 45) > SURE_DEG else ""
    changed = [*(["mirrored"] if signs.mirrored else []), *([f"turned by {90 * quarters}°"] if quarters else [])]
    if changed:
        return raw, (f"{kept}{' and '.join(changed)}, by the right ventricle and its surroundings{doubt}",)
    if not lost:
        return raw, ()
    doubt = QUARTER if abs(off) > SURE_DEG else ""
    sure = "which the right ventricle and its surroundings fit" if signs.upright else "a mirror image is not ruled out"
    return raw, (f"{kept}stored order kept, {sure}{doubt}",)


def lies_otherwise(raw: Sequence[RawArrays]) -> bool:
    """Whether the RV is drawn where the lateral wall should be."""
    angle = ventricle_angle(raw)
    return angle is not None and abs((angle - USUAL_DEG + 180) % 360 - 180) > OTHERWISE_DEG


def _contradiction(raw: Sequence[RawArrays]) -> tuple[str, ...]:
    if not lies_otherwise(raw):
        return ()
    return ("the affine does not fit the heart: the right ventricle lies on the side of the lateral wall",)


def ventricle_angle(raw: Sequence[RawArrays]) -> float | None:
    """Direction from the LV's to the RV's centre in degrees: 0 to the left, 90 up; None where one is not drawn."""
    steps = []
    for mask in (r.mask for r in raw if r.mask is not None):
        if not (mask == Label.RV).any() or not (mask == Label.LV).any():
            return None
        steps.append(_centre(mask, Label.RV) - _centre(mask, Label.LV))
    if not steps:
        return None
    row, column = np.mean(steps, axis=0)
    return float(np.degrees(np.arctan2(-row, -column)))


def _centre(mask: np.ndarray, label: Label) -> np.ndarray:
    return np.array([axis.mean() for axis in np.nonzero(mask == label)[1:]])


def signs_of_mirroring(raw: Sequence[RawArrays]) -> Signs:
    """Measure what tells a heart from its mirror image, whatever its rotation.

    70 ACDC patients: tail is positive in 68, slope in 67, lung in 69; all three in 66, none in no patient. Signs that
    can be measured for a heart that is drawn, base first, with both ventricles.
    """
    found = [_signs(r.image, r.mask) for r in raw if r.mask is not None]
    tail, slope, lung = np.nan_to_num(np.mean(found, axis=0))
    return Signs(float(tail), float(slope), float(lung))


def _signs(image: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    lv, rv = _centre(mask, Label.LV), _centre(mask, Label.RV)
    right = (lv - rv) / max(float(np.linalg.norm(lv - rv)), 1e-9)
    down = np.array([right[1], -right[0]])
    size = float(np.sqrt(np.count_nonzero(mask, axis=(1, 2)).max()))
    across = (np.argwhere(mask == Label.RV)[:, 1:] - lv) @ down / size
    tail = -float(((across - across.mean()) ** 3).mean() / max(float(across.std()) ** 3, 1e-9))
    levels = [(z, (np.argwhere(m == Label.RV).mean(0) - lv) @ down / size) for z, m in enumerate(mask) if _both(m)]
    slope = 0.0
    if len(levels) > 2:
        places, heights = np.array(levels).T
        slope = float(np.polyfit(np.linspace(0, 1, len(places)), heights, 1)[0])
    return tail, slope, _lung(image, mask, lv, right, down, size)


def _both(mask: np.ndarray) -> bool:
    return bool(np.count_nonzero(mask == Label.RV) > 10 and np.count_nonzero(mask == Label.LV) > 5)


def _lung(
    image: np.ndarray, mask: np.ndarray, lv: np.ndarray, right: np.ndarray, down: np.ndarray, size: float
) -> float:
    """Sample the smoothed mean of the drawn slices on 17 x 17 points, 1.65 heart sizes to each side of the LV."""
    mean = image[mask.any(axis=(1, 2))].mean(axis=0)
    smooth = ndimage.gaussian_filter(mean, 0.15 * size)
    steps = np.linspace(-1.65, 1.65, 17) * size
    along, across = np.meshgrid(steps, steps)
    places = lv[:, None, None] + along * right[:, None, None] + across * down[:, None, None]
    grey = ndimage.map_coordinates(smooth, places, order=1, mode="nearest")
    spread = float(grey.std())
    return float((grey[-4:, :7].mean() - grey[:4, :7].mean()) / spread) if spread > 0 else 0.0


def _changed(raw: RawArrays, change: Callable[[np.ndarray], np.ndarray], *, swap: bool = False) -> RawArrays:
    """A volume with image and mask changed alike; ``swap`` exchanges the row and column spacing."""
    mask = None if raw.mask is None else np.ascontiguousarray(change(raw.mask))
    spacing = raw.spacing_mm
    if swap and spacing is not None:
        spacing = (spacing[1], spacing[0], spacing[2])
    return replace(raw, image=np.ascontiguousarray(change(raw.image)), mask=mask, spacing_mm=spacing)

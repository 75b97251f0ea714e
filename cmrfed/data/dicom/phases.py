"""End-diastole and end-systole of a cine, by the cavity's area over the phases of the heart beat."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cmrfed.core.errors import DataError
from cmrfed.data.labels import Label

Segment = Callable[[np.ndarray], np.ndarray]
"""Draws masks: image float32 (Z, H, W), any range => uint8 (Z, H, W), canonical labels."""
LEAST_CHANGE = 0.1
"""Least relative change of the area from ED to ES that is believed."""
SYSTOLE = (0.2, 0.55)
"""How long before ES ED may lie, in heart beats: systole takes a third of a slow beat, half of a fast one."""
NEAR_LARGEST = 0.03
"""Of phases whose area is that near to the largest, in strokes, the last before ES is ED: the heart fills slowly, and
begins to contract at once."""
NEAR_R_WAVE = 0.25
"""Where the curve is rough and the time since the R wave is known: of phases that near to the largest, in strokes, the
one nearest to the R wave is ED."""
MOST_ELSEWHERE = 0.3
"""How much smaller, in strokes, the area before ES may be than the largest of all phases."""
SMOOTHING = 1 / 20
"""Standard deviation of the smoothing over time, as a share of the heart beat."""
LEAST_MOTION = 0.5
"""Share of the strongest motion above which a pixel belongs to what moves."""


@dataclass(frozen=True)
class HeartBeat:
    """ED and ES of a cine, with what they were told by.

    area: (T,), of one heart beat; in mm² where the method gives an area. ed, es: indices of phases. by: the method.
    """

    area: tuple[float, ...]
    ed: int
    es: int
    by: str


def find_phases(area: np.ndarray, by: str, since_r: np.ndarray | None = None) -> HeartBeat:
    """ES where the area is smallest, ED where it is largest before, after a light smoothing round the heart beat.

    ED is looked for within `SYSTOLE` before ES, since the area hardly changes in the last part of diastole. Where the
    curve is rough, as that of :func:`areas_by_motion`, the R wave decides between phases of nearly equal areas.

    Args:
        area: (T,) positive, at equal steps of one heart beat.
        by: The method that measured it.
        since_r: (T,) time since the R wave in heart beats, from 0 to 1, of a rough curve.

    Raises:
        DataError: The area hardly changes, or is not finite: which phase is which is not assured.
    """
    area = np.asarray(area, float)
    if not np.isfinite(area).all() or area.max() <= 0:
        raise DataError("the cavity's area is unknown at some phase", got=by, expected="an area above 0 at every phase")
    smooth = ndimage.gaussian_filter1d(area, max(SMOOTHING * len(area), 0.3), mode="wrap")
    change = 1 - smooth.min() / smooth.max()
    if change < LEAST_CHANGE:
        raise DataError(
            "ED and ES cannot be told: the cavity's area hardly changes over the heart beat",
            got=f"{change:.0%}, by {by}",
            expected=f"at least {LEAST_CHANGE:.0%}",
            do="check whether the series is a cine, or give masks",
        )
    es = int(smooth.argmin())
    before = np.arange(max(1, round(SYSTOLE[0] * len(area))), max(2, round(SYSTOLE[1] * len(area))) + 1)
    systole = smooth[(es - before) % len(area)]
    stroke = smooth.max() - smooth.min()
    near = systole >= systole.max() - (NEAR_LARGEST if since_r is None else NEAR_R_WAVE) * stroke
    order = np.arange(len(before)) if since_r is None else _from_r_wave(since_r)[(es - before) % len(area)]
    ed = (es - int(before[np.argmin(np.where(near, order, np.inf))])) % len(area)
    if systole.max() < smooth.max() - MOST_ELSEWHERE * stroke:
        raise DataError(
            "ED and ES cannot be told: the cavity is largest at another time of the heart beat than before ES",
            got=f"largest {(es - int(smooth.argmax())) % len(area) / len(area):.0%} of a beat before ES, by {by}",
            expected=f"{SYSTOLE[0]:.0%} to {SYSTOLE[1]:.0%}",
            do="give masks",
        )
    return HeartBeat(tuple(float(v) for v in area), ed, es, by)


def _from_r_wave(since_r: np.ndarray) -> np.ndarray:
    return np.minimum(since_r % 1, 1 - since_r % 1)


def areas_by_masks(images: np.ndarray, segment: Segment, pixel_mm2: float = 1.0) -> np.ndarray:
    """The LV cavity's area at every phase, summed over slices, in mm²: (T,).

    Args:
        images: (T, Z, H, W).
        segment: Draws the masks of one phase.
        pixel_mm2: Area of a pixel.
    """
    return np.array([np.count_nonzero(segment(phase) == Label.LV) * pixel_mm2 for phase in images], float)


def areas_by_motion(images: np.ndarray, pixel_mm: float) -> np.ndarray:
    """The area of bright blood within what moves, at every phase, in mm²: (T,); for where there are no masks.

    The heart is where the first two harmonics over the heart beat are strong (Lin, Cowan and Young, MICCAI 2006): their
    amplitude, smoothed, under a Gaussian prior about the middle. In the slices of the middle half of the stack pixels
    above Otsu's threshold between blood and muscle are counted, where the motion is at least `LEAST_MOTION` of its
    maximum. Both ventricles count; they contract together.

    Args:
        images: (T, Z, H, W), bright blood.
        pixel_mm: Side of a pixel.

    Raises:
        DataError: Nothing moves.
    """
    count, depth, height, width = images.shape
    inner = slice(depth // 4, depth - depth // 4) if depth >= 4 else slice(0, depth)
    middle = images[:, inner]
    spectrum = np.abs(np.fft.rfft(middle - middle.mean(0), axis=0)[1:3]).sum(0)
    sigma = 4.0 / pixel_mm
    motion = ndimage.gaussian_filter(spectrum, (0, sigma, sigma))
    axes = [(np.arange(n) - (n - 1) / 2) / (0.2 * n) for n in (height, width)]
    motion = motion * np.exp(-0.5 * (axes[0][:, None] ** 2 + axes[1][None] ** 2))
    if not motion.max() > 0:
        raise DataError("nothing moves over the phases of the series", do="check whether it is a cine")
    area = np.zeros(count)
    for z in range(middle.shape[1]):
        region = motion[z] > LEAST_MOTION * motion[z].max()
        labels, _ = ndimage.label(region)
        region = labels == labels[np.unravel_index(int(motion[z].argmax()), region.shape)]
        values = middle[:, z, region]
        area += (values > _otsu(values)).sum(axis=1)
    return area * pixel_mm**2


def _otsu(values: np.ndarray) -> float:
    """The threshold that separates values into two classes with the largest variance between them (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins=128)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(centres[int(np.nanargmax(between))])

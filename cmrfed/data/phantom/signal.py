"""Tissue contrast of a balanced steady-state free precession (bSSFP) cine, and what the scanner adds to it.

Relaxation times are round literature values (Stanisz et al., Magn Reson Med 2005; Bojorquez et al., Magn Reson
Imaging 2017); the steady state is that of Scheffler & Lehnhardt, Eur Radiol 2003;13:2409-2418.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from scipy import fft

NOISE_BLUR_PX = 0.45
"""Noise of neighbouring pixels is correlated."""


class Tissue(IntEnum):
    """What a point of the phantom is made of."""

    AIR = 0
    LV_BLOOD = 1
    RV_BLOOD = 2
    MYOCARDIUM = 3
    FAT = 4
    LIVER = 5
    LUNG = 6
    MUSCLE = 7
    FLUID = 8
    BONE = 9
    ORGAN = 10


# tissue: (proton density, T1 in ms at 1.5 T, T1 in ms at 3 T, T2 in ms)
RELAXATION = {
    Tissue.AIR: (0.0, 1000.0, 1000.0, 50.0),
    Tissue.LV_BLOOD: (0.95, 1450.0, 1850.0, 270.0),
    Tissue.RV_BLOOD: (0.95, 1450.0, 1850.0, 215.0),
    Tissue.MYOCARDIUM: (0.82, 1000.0, 1200.0, 48.0),
    Tissue.FAT: (0.80, 270.0, 370.0, 85.0),
    Tissue.LIVER: (0.80, 580.0, 810.0, 42.0),
    Tissue.LUNG: (0.50, 1200.0, 1400.0, 50.0),
    Tissue.MUSCLE: (0.85, 1010.0, 1400.0, 40.0),
    Tissue.FLUID: (1.0, 2600.0, 3200.0, 500.0),
    Tissue.BONE: (0.45, 600.0, 700.0, 45.0),
    Tissue.ORGAN: (0.85, 950.0, 1200.0, 70.0),
}


@dataclass(frozen=True)
class ScannerStyle:
    """How one site scans. Angles in degrees, times in ms, lengths in mm; in-plane pixels are square."""

    field_t: float
    flip_deg: float
    tr_ms: float
    spacing_mm: float
    slice_mm: float
    matrix_px: tuple[int, int]
    """Rows and columns."""
    snr: float
    """Signal of blood over the standard deviation of one channel of the noise."""
    blur_px: float
    coil_falloff: float
    """Log sensitivity lost over 100 mm from the front of the chest."""
    axial_share: float
    """Share of patients scanned with the image axes turned towards the axial plane."""


def _spread(site: int, parameter: int, start: float) -> float:
    """Place sites evenly in [0, 1) for every parameter (additive recurrence with irrational steps)."""
    step = (0.6180339887, 0.7548776662, 0.5698402910, 0.8191725134, 0.6710436067, 0.5497004779)[parameter % 6]
    return (start + (site + 1) * step * (1 + parameter // 6)) % 1.0


def site_style(site: int, start: float = 0.0) -> ScannerStyle:
    """Scanner style of a site: neighbouring sites get clearly different ones.

    Args:
        site: Number of the site, from 0.
        start: Offset in [0, 1), from the seed.
    """
    u = [_spread(site, k, start) for k in range(10)]
    return ScannerStyle(
        field_t=3.0 if u[0] > 0.65 else 1.5,
        flip_deg=45 + 30 * u[1],
        tr_ms=2.7 + 1.2 * u[2],
        spacing_mm=round(1.36 + 0.32 * u[3], 3),
        slice_mm=(8.0, 9.0, 10.0)[int(u[4] * 3)],
        matrix_px=((192, 160), (176, 176), (184, 168), (168, 192))[int(u[5] * 4)],
        snr=22 + 45 * u[6],
        blur_px=0.2 + 0.45 * u[7],
        coil_falloff=0.4 * u[8],
        axial_share=0.15 + 0.4 * u[9],
    )


def bssfp(density: float, t1_ms: float, t2_ms: float, flip_deg: float, tr_ms: float) -> float:
    """On-resonant bSSFP steady state at TE = TR / 2 (Scheffler & Lehnhardt 2003, equation 3).

    M0 sin(a) (1 - E1) / (1 - (E1 - E2) cos(a) - E1 E2) * exp(-TE / T2), with Ei = exp(-TR / Ti).
    """
    flip = np.deg2rad(flip_deg)
    e1, e2 = np.exp(-tr_ms / t1_ms), np.exp(-tr_ms / t2_ms)
    steady = np.sin(flip) * (1 - e1) / (1 - (e1 - e2) * np.cos(flip) - e1 * e2)
    return float(density * steady * np.exp(-tr_ms / (2 * t2_ms)))


def tissue_signals(style: ScannerStyle, rng: np.random.Generator) -> np.ndarray:
    """Signal of every tissue, blood of the left ventricle = 1: float32 (len(Tissue),).

    T1, T2 and proton density vary by a few per cent from patient to patient.
    """
    signals = np.zeros(len(Tissue), np.float32)
    for tissue, (density, t1_low, t1_high, t2) in RELAXATION.items():
        t1 = t1_high if style.field_t >= 3 else t1_low
        vary = rng.lognormal(0, 0.08, 3)
        signals[tissue] = bssfp(density * min(vary[0], 1.1), t1 * vary[1], t2 * vary[2], style.flip_deg, style.tr_ms)
    signals[Tissue.LUNG] *= rng.lognormal(0, 0.35)  # depth of the breath-hold
    signals[Tissue.RV_BLOOD] *= rng.uniform(0.8, 1.15)  # inflow and oxygenation
    return signals / signals[Tissue.LV_BLOOD]


def _kernel(sigma: float, truncate: float) -> np.ndarray:
    """One half of a normal distribution's weights, from its middle on, as `scipy.ndimage.gaussian_filter` has them."""
    steps = np.arange(int(truncate * sigma + 0.5) + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    return weights / (2 * weights.sum() - 1)


def texture_tile(shape: tuple[int, int], scale_px: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth periodic noise with zero mean and unit standard deviation: float32 of ``shape``."""
    half = _kernel(scale_px, 4.0)
    gains = []
    for size in shape:
        weights = np.zeros(size)
        np.add.at(weights, np.arange(len(half)) % size, half)
        np.add.at(weights, -np.arange(1, len(half)) % size, half[1:])
        gains.append(np.fft.fft(weights).real.astype(np.float32))
    noise = fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    noise *= gains[0][:, None] * gains[1][: noise.shape[1]]
    tile = fft.irfft2(noise, s=shape)
    return np.asarray((tile - tile.mean()) / tile.std(), np.float32)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """A slice blurred as by `scipy.ndimage.gaussian_filter` with ``truncate=2.5``, in single precision: (H, W)."""
    half = _kernel(sigma, 2.5).astype(np.float32)
    reach = len(half) - 1
    height, width = image.shape
    wide = np.pad(image, reach, mode="symmetric")
    tall = half[0] * wide[reach : reach + height]
    for k in range(1, reach + 1):
        both = wide[reach - k : reach - k + height] + wide[reach + k : reach + k + height]
        both *= half[k]
        tall += both
    out = half[0] * tall[:, reach : reach + width]
    for k in range(1, reach + 1):
        both = tall[:, reach - k : reach - k + width] + tall[:, reach + k : reach + k + width]
        both *= half[k]
        out += both
    return out


def coil_field(x_mm: np.ndarray, y_mm: np.ndarray, falloff: float, rng: np.random.Generator) -> np.ndarray:
    """Receive sensitivity: falls off from the front of the chest (-x), with a random smooth tilt."""
    tilt_x, tilt_y = rng.normal(0, 0.12, 2)
    x, y = x_mm / 100, y_mm / 100
    log = -falloff * (x + 0.3) + tilt_x * x + tilt_y * y - 0.12 * y**2 + rng.normal(0, 0.05) * x * y
    return np.exp(np.clip(log, -1.5, 1.2)).astype(np.float32)


def receive(image: np.ndarray, style: ScannerStyle, rng: np.random.Generator) -> np.ndarray:
    """Blur to the scanner's sharpness and add Rician noise (Gudbjartsson & Patz, Magn Reson Med 1995).

    Args:
        image: float32 (Z, H, W), blood near 1.
        style: Gives blur and noise.
        rng: Noise stream.

    Returns:
        float32 (Z, H, W), non-negative.
    """
    noise = rng.standard_normal((2, *image.shape), dtype=np.float32)
    for channel in noise:
        for one in channel:
            one[:] = _blur(one, NOISE_BLUR_PX)
    noise *= 1 / (style.snr * noise.std())
    for k, one in enumerate(image):
        noise[0, k] += _blur(one, style.blur_px)
    noise *= noise
    noise[0] += noise[1]
    return np.sqrt(noise[0])

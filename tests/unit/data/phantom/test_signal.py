import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cmrfed.data.phantom.signal import (
    RELAXATION,
    Tissue,
    _blur,
    bssfp,
    coil_field,
    receive,
    site_style,
    texture_tile,
    tissue_signals,
)


def simulated_bssfp(t1: float, t2: float, flip_deg: float, tr: float, pulses: int = 4000) -> float:
    """Bloch simulation pulse by pulse: alternate the flip's sign, relax for TR, read at TE = TR / 2."""
    e1, e2 = np.exp(-tr / t1), np.exp(-tr / t2)
    y, z = 0.0, 1.0
    for n in range(pulses):
        a = np.deg2rad(flip_deg) * (-1) ** n
        y, z = y * np.cos(a) + z * np.sin(a), -y * np.sin(a) + z * np.cos(a)
        last = abs(y) * np.exp(-tr / (2 * t2))
        y, z = y * e2, 1 + (z - 1) * e1
    return last


@pytest.mark.parametrize("tissue", [Tissue.LV_BLOOD, Tissue.MYOCARDIUM, Tissue.FAT])
@pytest.mark.parametrize("flip_deg", [45.0, 70.0])
def test_formula_is_the_steady_state_of_a_bloch_simulation(tissue: Tissue, flip_deg: float) -> None:
    _, t1, _, t2 = RELAXATION[tissue]
    assert bssfp(1.0, t1, t2, flip_deg, 3.0) == pytest.approx(simulated_bssfp(t1, t2, flip_deg, 3.0), rel=1e-3)


def test_contrast_is_that_of_bssfp() -> None:
    for site in range(6):
        signals = tissue_signals(site_style(site), np.random.default_rng(site))
        assert signals[Tissue.LV_BLOOD] == 1
        assert signals[Tissue.AIR] == 0
        assert signals[Tissue.LUNG] < signals[Tissue.MYOCARDIUM] < 0.55 < signals[Tissue.RV_BLOOD]
        assert signals[Tissue.FAT] > 1.5 * signals[Tissue.MUSCLE]


def test_sites_scan_differently() -> None:
    styles = [site_style(site, 0.3) for site in range(5)]
    for name in ("flip_deg", "tr_ms", "spacing_mm", "snr", "blur_px"):
        assert len({round(getattr(style, name), 2) for style in styles}) == 5


def test_noise_is_rician_where_there_is_no_signal() -> None:
    style = site_style(1)
    noise = receive(np.zeros((4, 96, 96), np.float32), style, np.random.default_rng(0))
    assert noise.min() >= 0
    assert noise.mean() == pytest.approx(np.sqrt(np.pi / 2) / style.snr, rel=0.05)  # mean of a Rayleigh distribution


def test_coil_is_strongest_at_the_front_of_the_chest() -> None:
    x, y = np.meshgrid(np.linspace(-120, 120, 40), np.linspace(-120, 120, 40))
    field = coil_field(x, y, 0.9, np.random.default_rng(0))
    assert (field > 0).all()
    assert field[:, 0].mean() > 1.3 * field[:, -1].mean()


def test_texture_is_periodic_and_standardised() -> None:
    tile = texture_tile((64, 64), 3.0, np.random.default_rng(0))
    assert tile.mean() == pytest.approx(0, abs=1e-5)
    assert tile.std() == pytest.approx(1, abs=1e-5)
    assert np.abs(tile[0] - tile[-1]).mean() < 1.5 * np.abs(np.diff(tile, axis=0)).mean()


@pytest.mark.parametrize("sigma", [0.1, 0.45, 0.65, 1.3])
def test_slices_are_blurred_as_by_scipy(sigma) -> None:
    image = np.random.default_rng(0).normal(size=(31, 24)).astype(np.float32)
    assert np.allclose(_blur(image, sigma), gaussian_filter(image, sigma, truncate=2.5), atol=1e-6)


@pytest.mark.parametrize(("shape", "scale"), [((64, 48), 3.0), ((17, 9), 4.0)])
def test_texture_is_noise_smoothed_as_by_scipy(shape, scale) -> None:
    tile = texture_tile(shape, scale, np.random.default_rng(0))
    slow = gaussian_filter(np.random.default_rng(0).standard_normal(shape, dtype=np.float32), scale, mode="wrap")
    assert tile == pytest.approx((slow - slow.mean()) / slow.std(), abs=1e-4)
    assert tile.dtype == np.float32

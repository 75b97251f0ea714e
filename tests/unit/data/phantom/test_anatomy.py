from dataclasses import replace

import numpy as np
import pytest

from cmrfed.data.labels import Phase
from cmrfed.data.phantom.anatomy import ANGLES, GROUPS, Shape, Ventricles, draw_heart


def round_shape(**changes: object) -> Shape:
    plain = draw_heart("NOR", np.random.default_rng(0)).shape
    still = {"outline": np.ones(ANGLES), "septal_excess": 0.0, "infarct": (0.0, 1.0, 0.5, 0.0), "taper_power": 2.0}
    return replace(plain, **{**still, **changes})


def test_volume_of_a_half_ellipsoid_is_the_analytic_one() -> None:
    length, radius, wall = 80.0, 25.0, 8.0
    heart = Ventricles(round_shape(), 0.0, length, radius, radius + wall, wall)
    waist_free = 2 / 3 * np.pi * radius**2 * length / 1000
    whole = 2 / 3 * np.pi * (radius + wall) ** 2 * (length + wall) / 1000
    cavity, myocardium = heart.lv_volumes_ml(256, 2000)
    assert cavity == pytest.approx(
        waist_free, rel=0.02
    )  # the base narrows by 5 % of the radius, over 8 % of the length
    assert cavity < waist_free
    assert cavity + myocardium == pytest.approx(whole, rel=0.02)


def test_the_rv_without_corners_is_an_ellipse_that_shrinks_towards_the_apex() -> None:
    shape = round_shape(rv_power=2.0, rv_skew=0.0, outflow=0.0, rv_length=1.0)
    heart = Ventricles(shape, 0.0, 80.0, 25.0, 30.0, 6.0, rv_scale=0.6)
    a, b = (0.6 * 30 * axis for axis in shape.rv_axes)
    step = 0.25
    grid = np.arange(-90, 90, step)
    areas = [
        (heart.rv_distance(grid[None, :], grid[:, None], np.array(z)) < 0).sum() * step**2 for z in (0.0, 30.0, 60.0)
    ]
    assert areas[0] == pytest.approx(np.pi * a * b, rel=0.01)
    assert areas[0] > areas[1] > areas[2] > 0


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("seed", range(4))
def test_a_heart_has_the_volumes_that_were_asked_for(group: str, seed: int) -> None:
    heart = draw_heart(group, np.random.default_rng(seed))
    asked, truth = heart.physiology, heart.truth()
    assert truth["lv_edv_ml"] == pytest.approx(asked.lv_edv_ml, rel=0.01)
    assert truth["lv_ef"] == pytest.approx(asked.lv_ef, abs=0.01)
    assert truth["rv_edv_ml"] == pytest.approx(asked.rv_edv_ml, rel=0.03)
    assert truth["rv_ef"] == pytest.approx(asked.rv_ef, abs=0.03)


@pytest.mark.parametrize("group", GROUPS)
def test_the_myocardium_keeps_its_mass_and_thickens(group: str) -> None:
    heart = draw_heart(group, np.random.default_rng(5))
    truth = heart.truth()
    assert truth["myocardial_mass_es_g"] == pytest.approx(truth["myocardial_mass_ed_g"], rel=0.01)
    ed, es = heart.phases[Phase.ED], heart.phases[Phase.ES]
    assert es.endo_mm < ed.endo_mm
    assert es.epi_mm - es.endo_mm > ed.epi_mm - ed.endo_mm


def test_groups_differ_as_their_diseases_do() -> None:
    mean = {}
    for group in GROUPS:
        truths = [draw_heart(group, np.random.default_rng(seed)).truth() for seed in range(5)]
        mean[group] = {k: np.mean([t[k] for t in truths]) for k in truths[0] if k != "group"}
    assert mean["DCM"]["lv_edv_ml"] > 1.5 * mean["NOR"]["lv_edv_ml"]
    assert mean["DCM"]["lv_ef"] < 0.35 < 0.5 < mean["NOR"]["lv_ef"]
    assert mean["HCM"]["myocardial_mass_ed_g"] > 1.25 * mean["NOR"]["myocardial_mass_ed_g"]
    assert mean["RV"]["rv_edv_ml"] > 1.3 * mean["NOR"]["rv_edv_ml"]
    assert mean["MINF"]["lv_ef"] < 0.45


def test_an_infarct_moves_less_than_the_wall_across_from_it() -> None:
    heart = draw_heart("MINF", np.random.default_rng(1))
    angle, _, height, _ = heart.shape.infarct
    here = int(angle / (2 * np.pi) * ANGLES) % ANGLES
    moved = {}
    for name, index in (("infarct", here), ("remote", (here + ANGLES // 2) % ANGLES)):
        radii = [
            float(v.radii(np.array(index), np.array(v.base_mm + height * (v.apex_mm - v.base_mm)))[0])
            for v in (heart.phases[Phase.ED], heart.phases[Phase.ES])
        ]
        moved[name] = 1 - radii[1] / radii[0]
    assert moved["infarct"] < 0.6 * moved["remote"]

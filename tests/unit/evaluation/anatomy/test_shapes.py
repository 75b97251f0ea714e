from dataclasses import replace

import numpy as np
import pytest

from cmrfed.data.labels import Label
from cmrfed.evaluation.anatomy.shapes import anatomy, outline_of, ring_closed, shape_of, shapes_of_slice, valid_slice
from cmrfed.evaluation.settings import AnatomyConfig
from tests.evaluation_world import sliced


def ring(inner=8, outer=12, size=64):
    y, x = np.mgrid[:size, :size] - size / 2
    radius, mask = np.hypot(x, y), np.zeros((size, size), np.uint8)
    mask[radius < outer], mask[radius < inner] = Label.MYO, Label.LV
    return mask


def ellipse(a, b, size=64):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return (x / a) ** 2 + (y / b) ** 2 < 1


@pytest.mark.parametrize(("a", "b"), [(12, 12), (20, 10), (24, 8)])
def test_shapes_of_ellipses_are_the_analytic_ones(a, b):
    shape = shape_of(ellipse(a, b))
    assert shape["area"] == pytest.approx(np.pi * a * b, rel=0.03)
    assert shape["eccentricity"] == pytest.approx(np.sqrt(1 - (b / a) ** 2), abs=0.03)
    assert shape["solidity"] > 0.95
    ramanujan = np.pi * (3 * (a + b) - np.sqrt((3 * a + b) * (a + 3 * b)))
    assert shape["roundness"] == pytest.approx(4 * np.pi * np.pi * a * b / ramanujan**2, abs=0.08)


def test_the_myocardium_is_judged_by_its_filled_outline_and_its_own_area():
    mask = ring()
    assert outline_of(mask, Label.MYO).sum() == (mask > 0).sum()
    shapes = shapes_of_slice(mask, 20)
    assert shapes[Label.MYO, "area"] == (mask == Label.MYO).sum()
    assert shapes[Label.MYO, "solidity"] > 0.95


def test_specks_have_no_shape():
    mask = np.zeros((16, 16), np.uint8)
    mask[:2, :4] = Label.RV
    assert shapes_of_slice(mask, 20) == {}
    assert (Label.RV, "area") in shapes_of_slice(mask, 8)


def test_rings():
    closed, broken = ring(), ring()
    broken[32, 32:] = 0
    assert (ring_closed(closed), ring_closed(broken), ring_closed(np.zeros((8, 8), np.uint8))) == (True, False, None)


def test_valid_masks():
    leaking, torn, bare = ring(), ring(), ring()
    leaking[leaking == Label.MYO] = np.where(np.arange((leaking == Label.MYO).sum()) < 20, 0, Label.MYO)
    leaking[16:24, 30:34] = Label.LV
    torn[:4, :4] = Label.LV
    bare[bare == Label.MYO] = 0
    assert valid_slice(ring()) is True
    assert valid_slice(np.zeros((8, 8), np.uint8)) is None
    assert [valid_slice(mask) for mask in (leaking, torn, bare)] == [False, False, False]


def test_real_hearts_lie_nearer_than_distorted_ones(tmp_path):
    held, train, good = (sliced(tmp_path / n, range(a, a + 8), n) for n, a in (("h", 0), ("t", 20), ("g", 40)))
    flat = good.masks.copy()
    flat[:, ::2] = 0
    bad = good.take(np.arange(len(good)))
    bad.masks[:] = flat
    found = [anatomy(s, train, held, AnatomyConfig(bootstrap_draws=50)) for s in (good, bad)]
    name = "anatomy.shape-distance.lv.area"
    assert found[0].find(name).value < 1 < found[1].find(name).value
    assert found[0].find(name).low <= found[0].find(name).value <= found[0].find(name).high
    valid = [f.find("anatomy.valid-masks.synthetic").value for f in found]
    assert valid[0] > 0.9 > valid[1]
    (series,) = found[0].select_series("anatomy.shape", structure="lv", quantity="area")
    assert set(series.groups) == {"synthetic", "training", "holdout"}
    assert series.label == "LV area (pixels)"


def test_masks_are_judged_as_drawn_too_where_they_were_post_processed(tmp_path):
    held, made = sliced(tmp_path / "h", range(6), "h"), sliced(tmp_path / "s", range(10, 14), "s")
    torn = made.masks.copy()
    torn[:, :3, :3] = Label.LV
    made = replace(made, drawn=torn, post_processing="largest_component changed 3 of 9 slices")
    found = anatomy(made, held, held, AnatomyConfig(bootstrap_draws=20))
    after, before = found.find("anatomy.valid-masks.synthetic"), found.find("anatomy.valid-masks.as-drawn")
    assert after.value > 0.9
    assert before.value == 0
    assert "after largest_component changed 3 of 9 slices" in after.detail
    assert "before any post-processing" in before.detail
    assert found.find("anatomy.closed-rings.as-drawn") is not None
    plain = anatomy(replace(made, drawn=None, post_processing=""), held, held, AnatomyConfig(bootstrap_draws=20))
    assert plain.find("anatomy.valid-masks.as-drawn") is None
    assert "after" not in plain.find("anatomy.valid-masks.synthetic").detail


def test_a_structure_that_no_synthetic_patient_has_is_unavailable(tmp_path):
    held, made = sliced(tmp_path / "h", range(6), "h"), sliced(tmp_path / "s", range(10, 14), "s")
    made.masks[made.masks == Label.RV] = 0
    found = anatomy(made, held, held, AnatomyConfig(bootstrap_draws=20))
    assert "no synthetic patient has it" in found.find("anatomy.shape-distance.rv.area").unavailable

from dataclasses import replace

import numpy as np
import pytest

from cmrfed.data.labels import Label, Phase
from cmrfed.evaluation.anatomy.clinical import agreement, patient_quantities, quantities
from cmrfed.evaluation.slices import joined

BOXES = {(Phase.ED, Label.LV): 10_000, (Phase.ES, Label.LV): 4_000, (Phase.ED, Label.MYO): 8_000}


def test_boxes_of_known_volume():
    found = quantities(BOXES, (1.5, 1.5, 8.0))
    assert found["lv-edv"] == pytest.approx(180)
    assert found["lv-esv"] == pytest.approx(72)
    assert found["lv-ef"] == pytest.approx(60)
    assert found["myocardial-mass"] == pytest.approx(8_000 * 0.018 * 1.05)


def test_without_a_spacing_only_the_ejection_fraction_is_known():
    assert quantities(BOXES, None) == {"lv-ef": pytest.approx(60)}


def test_no_ejection_fraction_without_both_phases_or_without_a_cavity():
    assert "lv-ef" not in quantities({(Phase.ED, Label.LV): 5}, None)
    assert "lv-ef" not in quantities({(Phase.ED, Label.LV): 0, (Phase.ES, Label.LV): 3}, None)


def sphere(radius_mm, spacing, shape=(16, 64, 64)):
    """A sphere as LV, sampled on (Z, H, W)."""
    steps = np.array([spacing[2], spacing[0], spacing[1]])
    at = (np.indices(shape).transpose(1, 2, 3, 0) - (np.array(shape) - 1) / 2) * steps
    return np.where(np.linalg.norm(at, axis=-1) <= radius_mm, Label.LV, 0).astype(np.uint8)


def test_spheres_of_a_patient_give_their_volumes_in_ml():
    spacing = (1.5, 1.5, 5.0)
    masks = {"ED": sphere(30, spacing), "ES": sphere(20, spacing)}
    parts = [("a_b", phase, mask.astype(np.float32), mask) for phase, mask in masks.items()]
    slices = joined("x", parts, {f"a_b_{phase}": spacing for phase in masks}, masks["ED"].shape[-1])
    found = patient_quantities(slices, [Label.LV])
    volumes = [4 / 3 * np.pi * r**3 / 1000 for r in (30, 20)]
    assert found["lv-edv"] == pytest.approx([volumes[0]], rel=0.03)
    assert found["lv-esv"] == pytest.approx([volumes[1]], rel=0.03)
    assert found["lv-ef"] == pytest.approx([100 * (1 - volumes[1] / volumes[0])], abs=2)
    assert patient_quantities(replace(slices, has_mask=np.zeros(len(slices), bool)), [Label.LV]) == {}


def test_limits_of_agreement_hold_95_of_100_differences():
    differences = np.random.default_rng(0).normal(3, 5, 20_000)
    found = agreement(differences)
    inside = (differences > found.lower) & (differences < found.upper)
    assert inside.mean() == pytest.approx(0.95, abs=0.005)
    assert found.bias.low < 3.0 < found.bias.high

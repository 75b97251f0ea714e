import numpy as np
import pytest

from cmrfed.data.labels import Label, Phase
from cmrfed.evaluation.utility.contours import Scored, clinical_findings, distance_metrics, unscaled_metric
from cmrfed.evaluation.utility.segmenter import VolumeDice
from cmrfed.evaluation.utility.surface_distance import SurfaceDistance

MM = (2.0, 2.0, 5.0)
SCORED = Scored("t").arm("x")


def volume(patient, phase, found, drawn, distance=3.0, spacing=MM):
    surface = {Label.LV: SurfaceDistance(distance, distance / 3)}
    return VolumeDice(patient, phase, {Label.LV: 0.5}, (), surface, {Label.LV: (found, drawn)}, spacing)


def beats(patient, ed, es, distance=3.0, spacing=MM):
    """Both phases: (found, drawn) voxels at ED and ES."""
    return [volume(patient, Phase.ED, *ed, distance, spacing), volume(patient, Phase.ES, *es, distance, spacing)]


def test_distances_are_means_over_patients_in_mm():
    run = beats("a", (100, 100), (50, 50), 2.0) + beats("b", (100, 100), (50, 50), 4.0)
    hd95, assd = distance_metrics(Scored("holdout").arm("synthetic"), [run], [run])
    assert (hd95.value, hd95.unit, hd95.n) == (pytest.approx(3), "mm", 2)
    assert assd.value == pytest.approx(1)


def test_pixels_and_penalties_are_said():
    run = beats("a", (0, 100), (50, 0), 2.0, None)
    hd95 = distance_metrics(SCORED, [run], [run])[0]
    assert hd95.unit == "pixels"
    assert "one pixel apart" in hd95.detail
    assert "structures: 2 in 2" in hd95.detail


def test_millimetres_and_pixels_are_not_averaged():
    run = beats("a", (1, 1), (1, 1)) + beats("b", (1, 1), (1, 1), spacing=None)
    assert all("others none" in m.unavailable for m in distance_metrics(SCORED, [run], [run]))


def test_bias_of_ejection_fraction_and_volumes():
    run = [
        *beats("a", (12_000, 10_000), (4_800, 4_000)),
        *beats("b", (11_000, 10_000), (4_400, 5_000)),
        *beats("c", (0, 10_000), (100, 5_000)),
    ]
    found = clinical_findings(SCORED, [run])
    fraction, end_diastole = (m for m in found.metrics if m.quantity in ("lv-ef", "lv-edv"))
    assert fraction.value == pytest.approx(5)  # 60 - 60 and 60 - 50
    assert fraction.n == 2
    assert "1 prediction(s) without an LV cavity" in fraction.detail
    assert end_diastole.value == pytest.approx(np.mean([40, 20, -200]))
    assert found.series[0].id == "utility.ejection-fraction-error.t"
    assert found.series[0].groups["x"] == pytest.approx((0, 10))


def test_volumes_without_a_spacing_are_unavailable_once():
    run = beats("a", (12, 10), (4, 4), spacing=None) + beats("b", (12, 10), (4, 4), spacing=None)
    assert [m.id for m in clinical_findings(SCORED, [run]).metrics] == ["utility.clinical-error.x.t.lv-ef"]
    assert "spacing" in unscaled_metric(Scored("t"), [run])[0].unavailable
    assert unscaled_metric(Scored("t"), [beats("a", (1, 1), (1, 1))]) == ()

from dataclasses import replace

import numpy as np
import pytest

from cmrfed.data.labels import Label, Phase
from cmrfed.evaluation.utility import arms as module
from cmrfed.evaluation.utility.arms import (
    SegmenterBenchmark,
    _comparisons,
    _site_findings,
    patient_dice,
    site_utility,
    utility,
)
from cmrfed.evaluation.utility.contours import Scored
from cmrfed.evaluation.utility.segmenter import VolumeDice, labelled_slices
from cmrfed.segmentation.settings import SegmenterConfig
from tests.evaluation_world import cohort

SMALL = SegmenterConfig(channels=(8, 16, 32), steps=2, batch_size=8, seeds=2, precision="fp32")


def volume(patient, dice, phase=Phase.ED):
    return VolumeDice(patient, phase, dict(zip((Label.LV, Label.RV), dice, strict=True)), ())


def test_a_patient_is_the_mean_of_its_volumes_and_seeds_where_there_is_a_value():
    runs = [
        [volume("a", (0.8, None)), volume("a", (0.6, 0.5), Phase.ES), volume("b", (None, None))],
        [volume("a", (1.0, None)), volume("a", (0.8, 0.7), Phase.ES)],
    ]
    assert patient_dice(runs) == {"a": {Label.LV: pytest.approx(0.8), Label.RV: pytest.approx(0.6)}}


def test_comparisons_are_paired_over_patients():
    """Patients differ by far more than the arms: only a paired interval can be narrow."""
    base = np.linspace(0.3, 0.9, 12)
    scores = {
        arm: [[volume(f"p{i:02d}", (d + shift, d + shift)) for i, d in enumerate(base)]]
        for arm, shift in (("real", 0.0), ("synthetic", -0.06), ("both", 0.02))
    }
    ratio, gain = _comparisons(Scored("holdout"), scores)
    assert ratio.value == pytest.approx(0.9)
    assert gain.value == pytest.approx(0.02)
    assert gain.high - gain.low < 1e-9
    assert ratio.low < 0.9 < ratio.high
    assert (ratio.reference, gain.reference) == (1, 0)


def test_seeds_that_differ_widen_the_interval():
    def runs(*levels):
        return [[volume(f"p{i}", (d, d)) for i in range(8)] for d in levels]

    scores = {"real": runs(0.7, 0.8), "synthetic": runs(0.7, 0.8), "both": runs(0.75, 0.85)}
    gain = _comparisons(Scored("x"), scores)[1]
    assert gain.value == pytest.approx(0.05)
    assert gain.low < -0.02
    assert gain.high > 0.12
    assert "2 seeds" in gain.detail


def test_a_segmenter_that_finds_nothing_has_no_ratio():
    scores = {arm: [[volume("a", (0.0, 0.0)), volume("b", (0.0, 0.0))]] for arm in ("real", "synthetic", "both")}
    assert "finds nothing" in _comparisons(Scored("x"), scores)[0].unavailable


def test_what_was_not_trained_together_has_no_gain_and_the_ratio_stays():
    scores = {arm: [[volume(p, (d, d)) for p in "ab"]] for arm, d in (("real", 0.8), ("synthetic", 0.6), ("both", 0.9))}
    ratio, _ = _comparisons(Scored("x"), scores)
    alone, gain = _comparisons(Scored("x"), {arm: scores[arm] for arm in ("real", "synthetic")})
    assert alone == ratio
    assert gain.value is None
    assert "set evaluation.mixed_arm=true" in gain.unavailable


@pytest.fixture
def sets(tmp_path):
    real, made, held = (cohort(tmp_path / n, range(a, a + 4), prefix=n) for n, a in (("r", 0), ("s", 10), ("h", 20)))
    return real, labelled_slices(made), held, {"lv-only": cohort(tmp_path / "x", range(30, 33), labels=(3,))}


def test_all_arms_on_all_test_sets(sets, tmp_path):
    found = utility(*sets[:2], SegmenterBenchmark(*sets[2:], SMALL, tmp_path / "cache"))
    ids = {m.id for m in found.metrics}
    for test in ("holdout", "lv-only"):
        for arm in ("real", "synthetic", "both"):
            assert {f"utility.dice.{arm}.{test}", f"utility.dice.{arm}.{test}.lv"} <= ids
        assert f"utility.dice-ratio.synthetic.{test}" in ids
    assert "utility.dice.real.holdout.rv" in ids
    assert "utility.dice.real.lv-only.rv" not in ids
    real, made = (found.find(f"utility.dice.{arm}.holdout") for arm in ("real", "synthetic"))
    assert made.reference == real.value
    assert real.n == 4
    assert "2 seed(s)" in real.detail
    assert "missed structures" in real.detail
    (series,) = found.select_series("utility.dice-per-patient", test="holdout")
    assert len(series.groups["real"]) == 4


def test_segmenters_are_kept_and_shared(sets, tmp_path, monkeypatch):
    real, synthetic, held, _ = sets
    exam = SegmenterBenchmark(held, {}, SMALL, tmp_path / "cache")
    first = utility(real, synthetic, exam)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 6
    calls, train = [], module.train_segmenter

    def counted(*args, **kw):
        calls.append(args[3])
        return train(*args, **kw)

    monkeypatch.setattr(module, "train_segmenter", counted)
    assert utility(real, synthetic, exam) == first
    assert calls == []
    damaged = sorted((tmp_path / "cache").glob("*.safetensors"))[0]
    damaged.write_bytes(b"torn")
    assert utility(real, synthetic, exam) == first
    assert len(calls) == 1
    other = labelled_slices(held)
    utility(real, other, exam)
    assert len(calls) == 1 + 4, "a new synthetic set trains two arms again, and takes real-only from the cache"
    utility(real, synthetic, replace(exam, config=SMALL.model_copy(update={"steps": 3})))
    assert len(calls) == 5 + 6


# --- sites ----------------------------------------------------------------------------------------
def test_what_a_site_gains_is_paired_over_patients_and_averaged_over_sites():
    base = np.linspace(0.3, 0.9, 12)

    def runs(shift):
        return [[volume(f"p{i:02d}", (d + shift, d + shift)) for i, d in enumerate(base)]]

    by_arm = {"site": {"a": runs(-0.1), "b": runs(-0.2)}, "site-synthetic": {"a": runs(0.0), "b": runs(0.05)}}
    own, more, gain = _site_findings("holdout", by_arm).metrics
    assert own.value == pytest.approx(base.mean() - 0.15)
    assert more.value == pytest.approx(base.mean() + 0.025)
    assert gain.value == pytest.approx(0.175)
    assert gain.high - gain.low < 1e-9
    assert own.detail.startswith("mean over structures and sites: a 0.500, b 0.400")
    assert gain.id == "utility.dice-gain.site-synthetic.holdout"


def test_each_site_has_a_segmenter_of_its_own_patients_with_and_without_synthetic(sets, tmp_path, monkeypatch):
    real, synthetic, held, external = sets
    sites = {"a": real.select(real.patient_ids[:2]), "b": real.select(real.patient_ids[2:])}
    calls, train = [], module.train_segmenter

    def counted(images, *args, **kw):
        calls.append((len(images), kw["mixed_with"] is synthetic))
        return train(images, *args, **kw)

    monkeypatch.setattr(module, "train_segmenter", counted)
    one = SMALL.model_copy(update={"seeds": 1})
    found = site_utility(sites, synthetic, SegmenterBenchmark(held, external, one, tmp_path / "cache"))
    slices = len(labelled_slices(sites["a"]))
    assert calls == [(slices, False), (slices, True)] * 2
    assert [m.test for m in found.metrics] == ["holdout"] * 3 + ["lv-only"] * 3

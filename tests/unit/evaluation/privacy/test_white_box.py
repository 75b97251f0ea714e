"""Attacks on a generator: nothing is found in one that never learned, everything in one that learned by heart."""

import pytest
import torch

from cmrfed.core.errors import EvaluationError
from cmrfed.evaluation.privacy.membership import Claim
from cmrfed.evaluation.privacy.white_box import Probe, Slices, untrained, white_box
from tests.attack_world import FAMILIES, QUICK, aucs, learned_by_heart, textured
from tests.generator_world import ddpm, random_condition, tiny_generator


@pytest.fixture
def cohorts(tmp_path):
    return textured(tmp_path / "members", 0), textured(tmp_path / "others", 50)


@pytest.mark.parametrize("family", ["velocity", "clean"])
def test_who_was_learned_by_heart_is_found(tmp_path, family):
    """The other families: `tests/oracle/test_attack_power.py`."""
    members, others = textured(tmp_path / "members", 0), textured(tmp_path / "others", 60)
    generator = learned_by_heart(members, family, 0)
    found, control = aucs(generator, members, others), aucs(untrained(generator, 0), members, others)
    assert min(found["loss"].value, found["sima"].value) >= 0.95
    assert all(c.low < 0.5 < c.high for c in (control["loss"], control["sima"]))


def test_references_take_away_what_is_easy_for_all(tmp_path):
    members = textured(tmp_path / "members", 0)
    others = textured(tmp_path / "others", 50, smooth=range(50, 55))
    seen = [textured(tmp_path / f"r{k}", 100 * k, smooth=range(100 * k, 100 * k + 5)) for k in (1, 2)]
    references = [learned_by_heart(cohort, "noise", k, steps=150) for k, cohort in enumerate(seen, 1)]
    found = aucs(learned_by_heart(members, "noise", 0, steps=300), members, others, references)
    assert found["calibrated-loss"].value >= max(0.9, found["loss"].value + 0.2)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_noise_that_a_generator_sees_is_that_of_a_perfect_one(family, monkeypatch):
    """A network that knows the clean array answers with what its family calls for; the probe reads the noise."""
    codec, process = FAMILIES[family]
    generator = tiny_generator(codec, process)
    probe, shape = Probe(generator), (2, generator.codec.channels, generator.size, generator.size)
    clean, noise = torch.randn(shape), torch.randn(shape)
    a, s = probe.level(100)
    answers = {"epsilon": noise, "v_prediction": a * noise - s * clean, "sample": clean, "flow": noise - clean}
    kind = getattr(generator.config.process, "prediction", "flow")
    monkeypatch.setattr(generator.network, "forward", lambda *_: answers[kind])
    slices = Slices(clean, random_condition(2), torch.arange(2))
    seen = probe.noise(a * clean + s * noise, 100, slices)
    torch.testing.assert_close(seen, noise, rtol=1e-4, atol=1e-4)


def test_levels_of_flow_have_the_ratio_of_diffusion():
    flow, diffusion = Probe(tiny_generator()), Probe(tiny_generator(process=ddpm()))
    for time in (0, 25, 200):
        (a, s), (b, r) = flow.level(time), diffusion.level(time)
        assert s / a == pytest.approx(r / b)
        assert a + s == pytest.approx(1)
        assert flow.process.time_of_step(time) == pytest.approx(1000 * s)


# --- findings ---------------------------------------------------------------------------------------
def saved(tmp_path, **more):
    generator, folder = tiny_generator(**more), tmp_path / "generator"
    generator.save(folder)
    return folder


def test_every_attack_comes_with_its_control_and_what_is_missing_says_so(tmp_path, cohorts):
    claim = Claim(1.0, 0.05)
    found = white_box(saved(tmp_path), (), *cohorts, QUICK, claim)
    by_id = {m.id: m for m in found.metrics}
    assert len(by_id) == len(found.metrics)
    for attack in ("loss", "sima", "pia", "secmi"):
        assert {f"leakage.auc.{attack}.white-box", f"leakage.control.{attack}.white-box"} <= set(by_id)
    assert "give --reference twice or more" in by_id["leakage.auc.calibrated-loss.white-box"].unavailable
    assert "10 non-members allow no statement below 1/10" in by_id["leakage.tpr.white-box.fpr-1e-2"].unavailable
    assert found.select_series("leakage.ceiling")[0].groups["tpr"][0] == pytest.approx(0.05)
    assert not found.warnings, "random weights break no claim"


def test_others_who_are_in_training_by_their_images_do_not_count(tmp_path):
    members, others = textured(tmp_path / "m", 0), textured(tmp_path / "o", 50, count=9, also=[3])
    found = white_box(saved(tmp_path), (), members, others, QUICK, None)
    assert "9 members, 9 others" in found.find("leakage.auc.loss.white-box").detail


def test_too_few_patients_are_said(tmp_path):
    few = textured(tmp_path / "m", 0, count=4), textured(tmp_path / "o", 50, count=4)
    (row,) = white_box(saved(tmp_path), (), *few, QUICK, None).metrics
    assert "4 pairs of training and hold-out patients" in row.unavailable


def test_a_generator_of_another_size_or_kind_is_refused(tmp_path, cohorts):
    other = saved(tmp_path, size_px=32)
    with pytest.raises(EvaluationError, match=r"another size than the generator.*Got: 16 px\. Expected: 32 px"):
        white_box(other, (), *cohorts, QUICK, None)
    mine, masks = saved(tmp_path / "a"), saved(tmp_path / "b", codec="mask")
    with pytest.raises(EvaluationError, match="a reference generator makes something else"):
        white_box(mine, [masks], *cohorts, QUICK, None)

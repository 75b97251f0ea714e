"""Black-box attacks: copies of training patients are a leak, fresh patients are none, and a claim has a ceiling."""

from dataclasses import replace

import numpy as np
import pytest

from cmrfed.data.cohort import PatientRecord
from cmrfed.evaluation.privacy.black_box import leakage
from cmrfed.evaluation.privacy.membership import Attack as AttackOn
from cmrfed.evaluation.privacy.membership import Claim, Scores, attack_findings, excludes_chance, halves, matched
from cmrfed.evaluation.slices import slices_of_cohort
from cmrfed.evaluation.verdict import verdicts
from tests.evaluation_world import cohort

COUNT = 24
SPACES = ("pixels", "thin")
ATTACKS = ("nearest-neighbour", "neighbour-ratio", "monte-carlo-ball", "calibrated-neighbour")


def judged(found):
    """The verdict on leakage."""
    return next(verdict for verdict in verdicts(found) if verdict.axis == "leakage")


def named(sliced, name, noise=0.0, prefix=""):
    shift = np.random.default_rng(0).normal(0, noise, sliced.images.shape) if noise else 0
    owners = np.char.add(prefix, sliced.owners.astype(str))
    return replace(sliced, name=name, images=(sliced.images + shift).astype(np.float32), owners=owners)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    train = cohort(folder / "train", range(COUNT), prefix="t")
    holdout = cohort(folder / "holdout", range(100, 100 + COUNT), prefix="h")
    fresh = cohort(folder / "fresh", range(200, 200 + COUNT), prefix="f")
    return train, holdout, fresh


def attacked(real, synthetic, holdout=None, claim=None):
    train, held = real[0], holdout or real[1]
    sets = (synthetic, named(slices_of_cohort(train), "training"), named(slices_of_cohort(held), "hold-out"))
    features = {s.name: s.images.reshape(len(s), -1)[:, ::7].astype(float) for s in sets}
    return leakage(*sets, features, "thin", (train.patients, held.patients), claim)


@pytest.fixture(scope="module")
def copies(real):
    return named(slices_of_cohort(real[0]), "synthetic", noise=0.01, prefix="s")


@pytest.fixture(scope="module")
def of_copies(real, copies):
    return attacked(real, copies, claim=Claim(0.5, 0.01))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_copies_of_training_patients_are_a_leak(of_copies, attack, space):
    found = of_copies.find(f"leakage.auc.{attack}.{space}")
    assert found.value > 0.95, found
    assert excludes_chance(found.low, found.high)
    control = of_copies.find(f"leakage.control.{attack}.{space}")
    assert control.low <= 0.5 <= control.high


@pytest.mark.parametrize("space", SPACES)
def test_copies_show_in_every_measure_that_is_no_attack(of_copies, space):
    assert of_copies.find(f"leakage.adversarial-accuracy.{space}").low > 0.2
    copied = of_copies.find(f"leakage.patients-copied.{space}")
    assert copied.low > 0.5


def test_copies_break_the_claim_and_the_verdict_says_so(of_copies):
    refuted = [warning.text for warning in of_copies.warnings if warning.code == "claim-refuted"]
    assert any("the claim (ε = 0.5, δ = 0.01) does not hold against" in text for text in refuted)
    assert judged(of_copies).level == "claim-refuted"
    assert judged(of_copies).text.startswith(
        "8 of 8 membership inference attacks distinguished members from non-members: "
    )
    (ceiling,) = of_copies.select_series("leakage.ceiling")
    assert ceiling.groups["tpr"][0] == pytest.approx(0.01)


def test_fresh_patients_are_no_leak(real):
    found = attacked(real, named(slices_of_cohort(real[2]), "synthetic", prefix="s"), claim=Claim(0.5, 0.01))
    attacks = found.select("leakage.auc")
    assert len([m for m in attacks if excludes_chance(m.low, m.high)]) <= 1, "one of eight, by chance"
    for space in SPACES:
        assert found.find(f"leakage.adversarial-accuracy.{space}").low < 0
        assert found.find(f"leakage.patients-copied.{space}").low <= 0
    assert not found.warnings
    assert judged(found).level in ("some-sign", "none-found")


def test_a_verdict_counts_how_many_attacks_were_tried():
    """One of 20 attacks lies apart by chance: some sign, no more; alone it would say that members can be told."""
    level = Scores(np.arange(20.0), np.arange(20.0))
    lucky = Scores(np.arange(20.0) + 5, np.arange(20.0))
    attacks = [AttackOn(f"a{k}", "pixels", lucky if k == 0 else level, level, "c", "d") for k in range(20)]
    each = [attack_findings(attack, None) for attack in attacks]
    assert judged(each[0]).level == "identified"
    together = sum(each[1:], each[0])
    assert judged(together).level == "some-sign"
    assert judged(together).text.startswith("1 of 20 membership inference attacks")
    none = sum(each[2:], each[1])
    assert judged(none).level == "none-found"
    assert "no proof of privacy" in judged(none).text


def test_others_who_are_in_training_by_their_images_do_not_count(real, tmp_path):
    again = cohort(tmp_path / "again", [*range(100, 100 + COUNT), 3], prefix="h")
    synthetic = named(slices_of_cohort(real[2]), "synthetic", prefix="s")
    assert f"{COUNT} others" in attacked(real, synthetic, again).find("leakage.auc.nearest-neighbour.pixels").detail


def test_too_few_patients_are_said_with_what_is_needed(real, tmp_path):
    synthetic = named(slices_of_cohort(real[2]), "synthetic", prefix="s")
    (row,) = attacked(real, synthetic, cohort(tmp_path / "one", [900], prefix="h")).metrics
    assert row.value is None
    assert "hold out at least 10 patients" in row.unavailable
    found = attacked(real, synthetic)
    assert "24 non-members allow no statement below 1/24" in found.find("leakage.tpr.black-box.fpr-1e-2").unavailable
    assert found.find("leakage.tpr.nearest-neighbour.pixels.fpr-1e-1").value is not None


def test_one_synthetic_patient_is_not_a_set(real):
    whole = named(slices_of_cohort(real[2]), "synthetic")
    one = whole.take(np.flatnonzero(whole.owners == whole.patients[0]))
    (row,) = attacked(real, one).metrics
    assert "draw more" in row.unavailable


def test_an_attack_that_fails_its_control_has_no_value():
    apart, level = Scores(np.arange(10.0, 20), np.arange(10.0)), Scores(np.arange(10.0), np.arange(10.0))
    found = attack_findings(AttackOn("x", "pixels", level, apart, "an untrained generator", "d"), None)
    main, control = found.metrics
    assert main.value is None
    assert "failed its control: AUC 1.00" in main.unavailable
    assert control.value == 1
    assert main.unavailable_code == "control-failed"
    assert judged(found).level == "not-measured"
    assert "failed their control" in judged(found).text


def test_an_inverted_attack_tells_as_much():
    apart, level = Scores(np.arange(10.0), np.arange(10.0, 20)), Scores(np.arange(10.0), np.arange(10.0))
    found = attack_findings(AttackOn("x", "pixels", apart, level, "c", "d"), None)
    assert found.find("leakage.auc.x.pixels").value == 0
    assert "inverted" in found.find("leakage.auc.x.pixels").detail
    assert judged(found).level == "identified"


def test_sides_are_of_equal_size_in_each_group_and_vendor(real):
    def records(prefix, groups):
        return [PatientRecord(patient_id=f"{prefix}{i}", group=g, vendor="v") for i, g in enumerate(groups)]

    members, others = records("m", "AAAABB"), records("o", "AABBBC")
    left, right = matched(members, others, np.random.default_rng(0))
    group = {r.patient_id: r.group for r in (*members, *others)}
    assert sorted(group[n] for n in left) == sorted(group[n] for n in right) == list("AABB")
    one, two = halves(members, np.random.default_rng(0))
    assert sorted(r.group for r in one) == sorted(r.group for r in two) == list("AAB")

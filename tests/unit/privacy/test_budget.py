import math

import pytest

from cmrfed.core.errors import PrivacyError
from cmrfed.privacy.accountant import epsilon
from cmrfed.privacy.budget import LEAST_NOISE, StageCost, calibrate, noise_to_signal
from tests.unit.privacy.test_accountant import event

FULL = [StageCost(stage="mask", sampling_rate=1, steps=10), StageCost(stage="image", sampling_rate=1, steps=30)]
"""At q = 1 the accountants are quick."""


def test_all_stages_together_meet_the_target_and_hardly_undercut_it():
    plan = calibrate(FULL, 4.0, 1e-3)
    assert 3.95 < plan.total.prv <= 4.0
    assert plan.before.prv == 0
    assert [s.stage for s in plan.stages] == ["mask", "image"]
    assert all(s.alone.prv < plan.total.prv for s in plan.stages)
    assert sum(s.alone.prv for s in plan.stages) > plan.total.prv


def test_what_was_spent_before_is_part_of_the_target():
    spent = [event(5.0, 1.0, 10)]
    plan = calibrate(FULL, 4.0, 1e-3, spent=spent)
    assert plan.before == epsilon(spent, 1e-3)
    assert 3.95 < plan.total.prv <= 4.0
    assert plan.stages[0].noise_multiplier > calibrate(FULL, 4.0, 1e-3).stages[0].noise_multiplier


def test_a_stage_may_be_given_less_of_the_budget():
    costs = [FULL[0].model_copy(update={"noise_ratio": 2.0}), FULL[1]]
    mask, image = calibrate(costs, 4.0, 1e-3).stages
    assert mask.noise_multiplier == pytest.approx(2 * image.noise_multiplier)


@pytest.mark.parametrize(("patients", "q", "sigma"), [(20, 0.4, 3.28), (60, 0.133, 1.43)])
def test_known_noise_for_epsilon_four(patients, q, sigma):
    delta = patients**-1.1
    plan = calibrate([StageCost(stage="image", sampling_rate=q, steps=200)], 4.0, delta)
    assert plan.stages[0].noise_multiplier == pytest.approx(sigma, rel=0.02)


def test_a_large_target_still_has_some_noise():
    plan = calibrate([StageCost(stage="mask", sampling_rate=1, steps=1)], 400.0, 1e-3)
    assert plan.stages[0].noise_multiplier == LEAST_NOISE


def test_what_cannot_be_met_is_refused_with_what_can():
    with pytest.raises(
        PrivacyError, match=r"target of at least ε = (\S+) .* at most (\d+) steps of mask, (\d+)"
    ) as info:
        calibrate(FULL, 0.3, 1e-3, largest_noise=40.0)
    assert "spent" in str(info.value)
    words = str(info.value)
    steps = [int(words.split(" steps of " + s)[0].split()[-1]) for s in ("mask", "image")]
    shorter = [s.model_copy(update={"steps": n}) for s, n in zip(FULL, steps, strict=True)]
    assert calibrate(shorter, 0.3, 1e-3, largest_noise=40.0).total.prv <= 0.3


def test_a_budget_that_is_spent_names_no_number_of_steps():
    with pytest.raises(PrivacyError, match=r"of which 4.* was spent before") as info:
        calibrate(FULL, 3.0, 1e-3, spent=[event(5.0, 1.0, 50)])
    assert "steps of" not in str(info.value)


@pytest.mark.parametrize(
    ("stages", "target", "spent", "words"),
    [
        ([], 1.0, [], "no private stage"),
        (FULL, 0.0, [], "must be positive"),
        (FULL, 1.0, [event(unit="slice")], "no joint guarantee"),
        ([StageCost(stage="mask", sampling_rate=1, steps=1, unit="none")], 1.0, [], "no joint guarantee"),
    ],
)
def test_plans_that_make_no_sense_are_refused(stages, target, spent, words):
    with pytest.raises(PrivacyError, match=words):
        calibrate(stages, target, 1e-3, spent=spent)


def test_noise_to_signal_falls_with_patients_and_sites():
    alone = noise_to_signal(2.0, 1_700_000, 0.4, 20)
    assert alone == pytest.approx(2 * math.sqrt(1.7e6) / 8)
    assert noise_to_signal(2.0, 1_700_000, 0.4, 20, sites=4) == pytest.approx(alone / 2)
    assert noise_to_signal(2.0, 17_000, 0.4, 20) == pytest.approx(alone / 10)

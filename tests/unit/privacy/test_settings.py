"""What a recipe asks for: whole or refused, and one budget for all stages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrfed.core.errors import PrivacyError
from cmrfed.privacy.accountant import epsilon
from cmrfed.privacy.budget import calibrate_privacy
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.settings import MOST_PATIENTS, STRICT_DELTA, PrivacyConfig, PrivateTraining, strict_delta


def config(**changes: object) -> PrivacyConfig:
    return PrivacyConfig(**{"unit": "patient", "epsilon": 8.0, "declared_patients": 15, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": None}, "unit patient needs epsilon and declared_patients"),
        ({"declared_patients": None}, "unit patient needs epsilon and declared_patients"),
        ({"unit": "none"}, "epsilon is set, but unit is none"),
        ({"mask": {"sampling_rate": 0.0}}, "greater than or equal to 0.000000001"),
    ],
)
def test_half_a_promise_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_the_rule_for_delta_is_a_public_number_of_patients_to_the_minus_1_1() -> None:
    assert config().target_delta == pytest.approx(15**-1.1)
    assert config(delta=1e-3).target_delta == 1e-3
    assert config(declared_patients=2).target_delta == pytest.approx(2**-1.1)
    assert PrivacyConfig().target_delta == 1e-3, "nothing is promised, and nobody is declared"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"declared_patients": 1}, r"declared_patients is 1: nobody hides among one.*set delta"),
        ({"delta": 0.067}, r"delta 0.067 is above 1 / declared_patients = 0.0667: it would promise nothing"),
        ({"declared_patients": 2000, "delta": 1e-3}, "it would promise nothing"),
    ],
)
def test_a_delta_that_promises_nothing_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


@given(st.integers(2, MOST_PATIENTS))
def test_the_rule_for_delta_keeps_below_one_over_the_patients(declared: int) -> None:
    made = config(declared_patients=declared)
    assert 0 < strict_delta(made.target_delta) <= made.target_delta < 1 / declared
    assert strict_delta(made.target_delta) <= STRICT_DELTA


def test_both_stages_share_one_budget() -> None:
    made = config(mask={"sampling_rate": 0.5, "noise_ratio": 2.0}, image={"sampling_rate": 0.25})
    plan = calibrate_privacy(made, {"mask": 40, "image": 100})
    assert 7.8 < plan.total.prv <= 8.0
    mask, image = plan.stages
    assert mask.noise_multiplier == pytest.approx(2 * image.noise_multiplier)
    events = [
        PrivacyEvent(
            noise_multiplier=s.noise_multiplier,
            sampling_rate=s.sampling_rate,
            steps=s.steps,
            run="r",
            stage=s.stage,
            round=1,
            digest="",
        )
        for s in plan.stages
    ]
    assert epsilon(events, made.target_delta).prv == pytest.approx(plan.total.prv)


def test_a_target_out_of_reach_names_what_could_be_had() -> None:
    with pytest.raises(PrivacyError, match=r"cannot be met.*Expected: a target of at least ε = 0.83"):
        calibrate_privacy(config(epsilon=0.05, delta=1e-5), {"mask": 4000, "image": 4000})


def test_a_request_holds_what_a_site_needs_and_no_share_of_a_budget() -> None:
    asked = config(image={"noise_multiplicity": 4, "noise_ratio": 3.0}).request("image", 1.5)
    assert (asked.noise_multiplicity, asked.noise_multiplier, asked.unit, asked.declared_patients) == (
        4,
        1.5,
        "patient",
        15,
    )
    assert "noise_ratio" not in asked.model_dump()


def test_a_private_request_names_a_unit_and_has_noise() -> None:
    for wrong in ({"unit": "none"}, {"noise_multiplier": 0.0}):
        with pytest.raises(ValueError, match=r"unit none|greater than or equal to 0.01"):
            PrivateTraining(**{"unit": "patient", "noise_multiplier": 1.0, "declared_patients": 5, **wrong})

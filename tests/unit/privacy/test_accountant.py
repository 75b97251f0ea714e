import math

import numpy as np
import pytest
from pydantic import ValidationError

from cmrfed.core.errors import PrivacyError
from cmrfed.privacy import accountant, opacus_accountants
from cmrfed.privacy.accountant import Epsilon, common_unit, epsilon
from cmrfed.privacy.event import PrivacyEvent


def event(sigma=1.0, q=0.1, steps=1, unit="patient", number=0):
    return PrivacyEvent(
        noise_multiplier=sigma,
        sampling_rate=q,
        steps=steps,
        run="r",
        stage="mask",
        round=number,
        digest=str(number),
        unit=unit,
    )


def test_rounds_compose_instead_of_starting_anew():
    together = epsilon([event(steps=25, number=i) for i in range(20)], 1e-3)
    assert together.prv == pytest.approx(12.47, abs=0.01)
    assert epsilon([event(steps=25)], 1e-3).rdp == pytest.approx(2.97, abs=0.01)  # of the last round alone


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "delta", "rdp", "prv"),
    [
        (0.01, 1, 1000, 1e-5, 2.101, 1.838),
        (0.1, 1, 200, 1e-3, 8.184, 7.107),
        (0.25, 4, 500, 20**-1.1, 3.605, 2.914),
        (1, 5, 50, 1e-3, 5.420, 4.856),
    ],
)
def test_known_digits(q, sigma, steps, delta, rdp, prv):
    found = epsilon([event(sigma, q, steps)], delta)
    assert (found.rdp, found.prv) == (pytest.approx(rdp, abs=6e-4), pytest.approx(prv, abs=6e-4))


def test_nothing_spent_is_zero_and_no_noise_is_infinite():
    assert epsilon([], 1e-3) == Epsilon(1e-3, 0.0, 0.0)
    assert epsilon([event(), event(sigma=0)], 1e-3) == Epsilon(1e-3, math.inf, math.inf)


@pytest.mark.parametrize("sigma", [1e-6, 0.01, 0.05])
def test_a_loss_beyond_meaning_is_infinite(sigma):
    assert epsilon([event(sigma, 0.5, 1000)], 1e-3) == Epsilon(1e-3, math.inf, math.inf)


def test_a_tiny_loss_at_a_large_delta_is_not_negative():
    found = epsilon([event(300, 0.4)], 0.5)
    assert found == Epsilon(0.5, 0.0, 0.0)


@pytest.mark.parametrize("delta", [0, 1, -0.1, math.nan])
def test_delta_is_a_probability(delta):
    with pytest.raises(PrivacyError, match="Expected: 0 < δ < 1"):
        epsilon([], delta)


def test_grouping_only_overstates(monkeypatch):
    history = [(float(s), 0.2, 3) for s in np.random.default_rng(0).uniform(2, 3, 8)]
    exact = opacus_accountants.rdp(accountant._grouped(history), 1e-3)
    monkeypatch.setattr(accountant, "LARGEST_HISTORY", 3)
    grouped = accountant._grouped(history)
    assert len(grouped) <= 3
    assert sum(n for *_, n in grouped) == 24
    assert exact <= opacus_accountants.rdp(grouped, 1e-3) <= exact * 2


def test_rounding_costs_more_in_both_directions():
    for mechanism in [(0.7, 0.3, 2), (1.0, 1.0, 2), (3.3, 0.01, 2)]:
        for grid in (0.005, 0.5, 4.0):
            sigma, rate, steps = accountant._rounded(mechanism, grid)
            assert 0 < sigma <= mechanism[0]
            assert mechanism[1] <= rate <= 1
            assert steps == 2


def test_hundreds_of_different_noises_are_answered(monkeypatch):
    monkeypatch.setattr(accountant, "LARGEST_HISTORY", 2)
    sigmas = np.random.default_rng(1).uniform(20, 25, 300)
    found = epsilon([event(float(s), 1.0) for s in sigmas], 1e-3)
    assert epsilon([event(25, 1.0, 300)], 1e-3).prv < found.prv < epsilon([event(15, 1.0, 300)], 1e-3).prv


def test_units_that_are_mixed_give_no_guarantee():
    assert common_unit([]) == "patient"
    assert common_unit([event(), event()]) == "patient"
    assert common_unit([event(unit="slice")]) == "slice"
    assert common_unit([event(), event(unit="slice")]) == "none"


def test_an_event_without_privacy_has_no_noise():
    with pytest.raises(ValidationError, match="unit none has no noise"):
        event(unit="none")
    assert event(sigma=0, unit="none").noise_multiplier == 0

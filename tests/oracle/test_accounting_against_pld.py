"""ε against another library's privacy loss distributions (dp-accounting)."""

import itertools

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from cmrfed.privacy.accountant import epsilon
from tests.unit.privacy.test_accountant import event


def pld(history, delta):
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    for sigma, rate, steps in history:
        one = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
        accountant.compose(dp_event.SelfComposedDpEvent(one, steps))
    return accountant.get_epsilon(delta)


GRID = [
    *itertools.product([0.01, 0.1], [1.0, 2.0], [50, 500], [1e-5, 1e-3]),
    (0.4, 3.28, 200, 1e-3),
    (0.25, 4.0, 500, 20**-1.1),
    (1.0, 5.0, 50, 1e-3),
    (0.5, 0.8, 10, 1e-3),
]


@pytest.mark.parametrize(("q", "sigma", "steps", "delta"), GRID)
def test_prv_equals_pld(q, sigma, steps, delta):
    exact, found = pld([(sigma, q, steps)], delta), epsilon([event(sigma, q, steps)], delta)
    assert exact - 1e-3 <= found.prv <= exact + 0.02
    assert found.rdp >= exact


def test_stages_of_different_rate_and_noise_equal_pld():
    history = [(1.0, 0.1, 100), (2.0, 0.3, 50), (4.0, 1.0, 5)]
    exact = pld(history, 1e-3)
    assert exact <= epsilon([event(*h) for h in history], 1e-3).prv <= exact + 0.02

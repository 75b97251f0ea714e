import pytest
from opacus.accountants import PRVAccountant

from cmrfed.privacy import opacus_accountants
from cmrfed.privacy.accountant import epsilon
from tests.unit.privacy.test_accountant import event


@pytest.mark.parametrize("mechanisms", [[(1.1, 0.3, 20)], [(1.3, 0.5, 7), (2.0, 0.1, 40), (0.9, 1.0, 2)]])
def test_remembered_divergences_change_no_digit(mechanisms):
    plain = PRVAccountant()
    plain.history = sorted(mechanisms)
    events = [event(sigma, q, steps, number=i) for i, (sigma, q, steps) in enumerate(mechanisms)]
    assert epsilon(events, 1e-3).prv == pytest.approx(
        plain.get_epsilon(1e-3, eps_error=opacus_accountants.PRV_ERROR), rel=1e-9
    )


def test_divergences_are_computed_once_for_each_mechanism(monkeypatch):
    computed, original = [], opacus_accountants.rdp_analysis.compute_rdp

    def compute(**settings):
        computed.append(settings["noise_multiplier"])
        return original(**settings)

    monkeypatch.setattr(opacus_accountants.rdp_analysis, "compute_rdp", compute)
    for delta in (1e-2, 1e-3):
        epsilon([event(3.21, 0.3, 5), event(4.32, 0.3, 5)], delta)
    assert sorted(computed) == [3.21, 4.32]

"""The audit passes correct steps, whoever wrote them, and catches each planted fault."""

import math
import random

import numpy as np
import pytest
import torch

from benchmarks.audit_calibration import simulated
from cmrfed.core.errors import PrivacyError
from cmrfed.privacy.audit.canaries import make_canaries
from cmrfed.privacy.audit.checks import FALSE_ALARM, binomial_p, normal_p, squares_p
from cmrfed.privacy.audit.run import audit
from cmrfed.privacy.dpsgd import mechanism
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig, PrivateSGD
from tests.planted_faults import FAULTS, ByHand

CONFIG = MechanismConfig(clip_norm=0.5, declared_patients=40)


# --- correct steps ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sigma", "rate", "config"),
    [
        (2.0, 0.5, CONFIG),
        (0.89, 0.05, MechanismConfig(clip_norm=1e-6, declared_patients=1, precision="bf16")),
        (8.0, 1.0, MechanismConfig(clip_norm=1e6, declared_patients=5000)),
    ],
    ids=["usual", "small bound, bf16", "everybody in every step"],
)
def test_the_real_step_passes(sigma: float, rate: float, config: MechanismConfig) -> None:
    found = audit(sigma, config, sampling_rate=rate)
    assert not found.failed
    assert found.mu.theory == pytest.approx(math.sqrt(found.steps) / sigma)
    assert found.mu.lower < found.mu.value < found.mu.upper
    assert found.row("image").passed


def test_a_step_written_by_hand_passes_with_plain_sgd() -> None:
    """So nothing is asked for but what the mechanism promises: it shares no clipping, noise or sampling with ours."""
    found = audit(1.0, CONFIG, make_step=ByHand, make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    assert not found.failed


def test_the_audit_leaves_the_randomness_of_the_process_alone() -> None:
    torch.manual_seed(3)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    audit(2.0, CONFIG, sampling_rate=0.05)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


def test_settings_with_which_no_step_can_be_made_are_refused() -> None:
    with pytest.raises(PrivacyError):
        audit(1e-60, CONFIG)


# --- faults -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name: str) -> None:
    found = audit(2.0, CONFIG, make_step=FAULTS[name])
    assert not found.passed
    assert found.failed
    assert not found.row("image").passed


def test_there_are_many_kinds_of_faults() -> None:
    assert len(FAULTS) >= 100


class _Inside(PrivateSGD):
    """Faults in the project's own step."""


class HalfNoise(_Inside):
    def __init__(self, *args):
        super().__init__(*args)
        self.optimizer.noise_multiplier /= 2


class LooseBound(_Inside):
    def __init__(self, *args):
        super().__init__(*args)
        self.optimizer.max_grad_norm *= 1.1
        self.optimizer.noise_multiplier /= 1.1


class SeededNoise(_Inside):
    def __init__(self, *args):
        super().__init__(*args)
        self.optimizer.generator = torch.Generator().manual_seed(5)


@pytest.mark.parametrize("step", [HalfNoise, LooseBound, SeededNoise])
def test_a_fault_in_our_own_step_is_caught(step: type[PrivateSGD]) -> None:
    assert not audit(2.0, CONFIG, make_step=step).passed


def test_the_step_that_is_audited_is_the_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanism, "poisson_sample", lambda count, rate: list(range(0, count, 2)))
    failed = [check.name for check in audit(2.0, CONFIG).failed]
    assert any(name.startswith("sampling") for name in failed)


# --- chance -------------------------------------------------------------------------------------
@pytest.mark.parametrize("rate", [0.5, 0.05])
def test_a_perfect_mechanism_does_not_fail_by_chance(rate: float) -> None:
    """Numbers of a perfect mechanism go through all lines; the least p-values are those of chance."""
    rng = np.random.default_rng(7)
    runs = [simulated(rng, rate) for _ in range(6)]
    least = [min(check.p_value for check in checks) * len(checks) for checks in runs]
    assert min(least) > FALSE_ALARM


def test_p_values_are_uniform_or_conservative() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=20_000)
    assert np.mean(normal_p(scores) < 0.01) == pytest.approx(0.01, abs=0.003)
    totals = (rng.normal(size=(20_000, 5)) ** 2).sum(1)
    assert np.mean(squares_p(totals, 5) < 0.01) == pytest.approx(0.01, abs=0.003)
    assert np.mean(binomial_p(rng.binomial(40, 0.3, 20_000), 40, 0.3) < 0.01) < 0.012
    assert normal_p(math.nan) == squares_p(math.nan, 3) == 0


def test_a_canary_adds_its_clipped_gradient_and_a_broken_one_nothing() -> None:
    norms = {c.name: float(np.linalg.norm(c.contribution(0.5))) for c in make_canaries()}
    assert norms["1000 C in all tensors"] == pytest.approx(1, abs=1e-4)
    assert norms["1.05 C in all tensors"] == pytest.approx(1, abs=1e-4)
    assert norms["0.3 C, all of it in one draw"] == pytest.approx(0.3, abs=1e-6)
    broken = ("NaN in one draw", "infinite in one draw", "no gradient", "finite losses without a finite gradient")
    assert {norms[name] for name in broken} == {0.0}

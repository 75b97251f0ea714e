"""The audit passes the real step and catches five planted faults."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from cmrfed.errors import PrivacyError
from cmrfed.privacy.audit import FALSE_ALARM, _effect, audit
from cmrfed.privacy.clipping import record_gradient
from cmrfed.privacy.mechanism import MechanismConfig, PrivateSGD

CONFIG = MechanismConfig(clip_norm=0.5, declared_patients=40)
SURE = 0.99999
"""Of the interval, where a test asserts that it holds the truth."""


class HalfNoise(PrivateSGD):
    def __init__(self, *args):
        super().__init__(*args)
        self.optimizer.noise_multiplier /= 2


class NoNoise(PrivateSGD):
    def __init__(self, *args):
        super().__init__(*args)
        self.optimizer.noise_multiplier = 0.0


class NoClipping(PrivateSGD):
    def _add(self, gradient):
        self.optimizer.max_grad_norm = math.inf
        super()._add(gradient)
        self.optimizer.max_grad_norm = self.config.clip_norm


class BatchMeanClipping(PrivateSGD):
    """Clips the mean of the batch to C, and scales the noise as if every patient were clipped."""

    def _accumulate(self, sampled, losses_of):
        gradients = [record_gradient(losses_of(i), self.parameters)[0] for i in sampled]
        mean = torch.stack(gradients).mean(0)
        mean *= (self.config.clip_norm / mean.norm()).clamp(max=1)
        self.parameters[0].summed_grad = mean * len(sampled)


class PerSliceClipping(PrivateSGD):
    """What a loader of slices does: every draw is clipped for itself."""

    def _accumulate(self, sampled, losses_of):
        for record in sampled:
            for k in range(len(losses_of(record))):
                self._add(record_gradient(losses_of(record)[k], self.parameters))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_real_step_passes_close_to_theory(precision):
    config = MechanismConfig(clip_norm=0.5, declared_patients=40, precision=precision)
    result = audit(2.0, config, confidence=SURE)
    assert result.theory == pytest.approx(math.sqrt(10) / 2)
    assert result.passed
    assert result.lower < result.mu < result.upper
    assert result.upper > result.theory > 0.5 * result.mu


@pytest.mark.parametrize("faulty", [HalfNoise, NoNoise, NoClipping, BatchMeanClipping, PerSliceClipping])
def test_planted_faults_are_caught(faulty):
    result = audit(2.0, CONFIG, make_step=faulty)
    assert not result.passed
    assert result.at_least > result.theory
    assert result.at_least <= result.lower


def test_a_correct_step_does_not_fail_by_chance():
    """Were the 99 % interval to decide, one of 200 audits would fail; here the bound is 4.75 standard errors away."""
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(4000):
        mu, error = _effect(rng.normal(1.5, 1, 250), rng.normal(0, 1, 250))
        scores.append((mu - 1.5) / error)
    assert np.mean(np.array(scores) > norm.ppf(0.995)) == pytest.approx(0.005, abs=0.004)
    assert max(scores) < norm.ppf(1 - FALSE_ALARM)


def test_more_noise_than_promised_passes():
    class DoubleNoise(PrivateSGD):
        def __init__(self, *args):
            super().__init__(*args)
            self.optimizer.noise_multiplier *= 2

    result = audit(2.0, CONFIG, make_step=DoubleNoise, confidence=SURE)
    assert result.passed
    assert result.mu < result.theory


def test_the_public_denominator_and_the_bound_do_not_change_the_verdict():
    result = audit(1.0, MechanismConfig(clip_norm=3.0, declared_patients=7), confidence=SURE)
    assert result.passed
    assert result.upper > result.theory


def test_too_few_canaries_are_refused():
    with pytest.raises(PrivacyError, match="too few canaries"):
        audit(1.0, CONFIG, canaries=2)

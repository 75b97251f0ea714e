"""A measured check of the mechanism: canaries whose gradients are known go through the configured step itself.

Each of m canaries owns one coordinate, is present with probability ½, and asks for a gradient far beyond the bound in
its coordinate alone. At sampling rate 1 over T steps, a mechanism that keeps its word releases T·C for a present canary
and 0 for an absent one, both with noise √T·σ·C: it is μ-Gaussian-private with μ = √T/σ (arXiv 1905.02383). The μ that
the releases show has a confidence interval; where even a bound that correct code falls below once in a million audits
is above theory, the mechanism does not keep its word. This finds too little noise and wrong clipping; a pass proves
nothing about what is outside the step.
"""

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from cmrfed.errors import PrivacyError
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.mechanism import MechanismConfig, PrivateSGD, PrivateStep

MakeStep = Callable[[nn.Module, torch.optim.Optimizer, PrivacyEvent, int, MechanismConfig], PrivateStep]

LOUDNESS = 1000.0
"""A canary's gradient over the clipping bound."""

FALSE_ALARM = 1e-6
"""Probability that a correct step fails: a run that fails its audit loses its claim, so chance must not fail it."""


@dataclass(frozen=True)
class AuditResult:
    """Empirical μ and its interval, beside theory; ``at_least`` is the one-sided bound that decides (`FALSE_ALARM`)."""

    mu: float
    lower: float
    upper: float
    at_least: float
    theory: float
    confidence: float
    canaries: int
    steps: int
    noise_multiplier: float

    @property
    def passed(self) -> bool:
        """Whether the releases are compatible with the guarantee."""
        return self.at_least <= self.theory


def audit(
    noise_multiplier: float,
    config: MechanismConfig,
    *,
    make_step: MakeStep = PrivateSGD,
    canaries: int = 500,
    steps: int = 10,
    draws: int = 4,
    confidence: float = 0.99,
) -> AuditResult:
    """Run the step on canaries and compare what it releases with what it promises.

    Args:
        noise_multiplier: σ of the configured step.
        config: Of the configured step.
        make_step: What makes the step that is audited.
        canaries: m.
        steps: T.
        draws: K, the draws of each canary.
        confidence: Of the two-sided interval that is reported.

    Raises:
        PrivacyError: There are too few canaries, or chance left fewer than two present or absent.
    """
    present = np.array([secrets.randbits(1) for _ in range(canaries)], bool)
    if min(present.sum(), (~present).sum()) < 2:
        raise PrivacyError("too few canaries", got=canaries, expected="at least 20", do="audit with more, or again")
    event = PrivacyEvent(
        noise_multiplier=noise_multiplier,
        sampling_rate=1.0,
        steps=steps,
        run="audit",
        stage="audit",
        round=0,
        digest="",
    )
    released = _release(make_step, event, config, present, draws)
    mu, error = _effect(released[present], released[~present])
    reach, sure = float(norm.ppf((1 + confidence) / 2)) * error, float(norm.ppf(1 - FALSE_ALARM)) * error
    theory = math.sqrt(steps) / noise_multiplier
    return AuditResult(mu, mu - reach, mu + reach, mu - sure, theory, confidence, canaries, steps, noise_multiplier)


class _Canaries(nn.Module):
    def __init__(self, present: np.ndarray, loudness: float, draws: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(present)))
        self.coordinates, self.loudness, self.draws = np.flatnonzero(present).tolist(), loudness, draws

    def losses(self, record: int) -> Tensor:
        """K equal losses, whose gradient is -loudness in the record's own coordinate."""
        return -self.loudness * self.weight[self.coordinates[record]].expand(self.draws)


def _release(
    make_step: MakeStep, event: PrivacyEvent, config: MechanismConfig, present: np.ndarray, draws: int
) -> np.ndarray:
    """Sum of the releases over all steps, in units of C: plain SGD at rate 1 adds them up in the weights."""
    module = _Canaries(present, LOUDNESS * config.clip_norm, draws)
    step = make_step(module, torch.optim.SGD(module.parameters(), lr=1.0), event, int(present.sum()), config)
    for _ in range(event.steps):
        step.step(module.losses)
    return module.weight.detach().double().numpy() * config.declared_patients / config.clip_norm


def _effect(present: np.ndarray, absent: np.ndarray) -> tuple[float, float]:
    """Standardised mean difference with its large-sample standard error (Hedges and Olkin 1985, chapter 5)."""
    n, m = len(present), len(absent)
    free = n + m - 2
    spread = math.sqrt(((n - 1) * present.var(ddof=1) + (m - 1) * absent.var(ddof=1)) / free)
    difference = float(present.mean() - absent.mean())
    if spread <= 1e-12 * abs(difference):  # no noise at all
        return math.inf, 0.0
    mu = difference / spread if spread else 0.0
    return mu, math.sqrt(1 / n + 1 / m + mu**2 / (2 * free))

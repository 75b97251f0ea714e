"""From a target ε for a whole data set to the noise of every private stage, or to what could be had instead."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from cmrfed.core.errors import PrivacyError
from cmrfed.core.settings.config import Section
from cmrfed.privacy.accountant import Epsilon, common_unit, epsilon
from cmrfed.privacy.event import PrivacyEvent, Unit
from cmrfed.privacy.settings import PrivacyConfig

TOLERANCE = 2e-3
"""Relative precision of the calibrated noise multiplier; the error is always towards more noise."""
LEAST_NOISE = 0.2
"""No plan has less noise than this, however large its target: below it, clipping is all that is left."""


class StageCost(Section):
    """One private stage as a plan sees it."""

    stage: str
    sampling_rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    """ε of one site over all rounds."""
    noise_ratio: float = Field(1.0, gt=0)
    """This stage's noise multiplier over the common one: above 1 it spends less of the budget."""
    unit: Unit = "patient"

    def event(self, noise_multiplier: float) -> PrivacyEvent:
        """All of the stage's steps as one event."""
        return PrivacyEvent(
            noise_multiplier=noise_multiplier * self.noise_ratio,
            sampling_rate=self.sampling_rate,
            steps=self.steps,
            run="plan",
            stage=self.stage,
            round=0,
            digest="",
            unit=self.unit,
        )


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan, with the loss that it would have alone."""

    stage: str
    noise_multiplier: float
    sampling_rate: float
    steps: int
    alone: Epsilon


@dataclass(frozen=True)
class Plan:
    """Noise for every stage, and the loss of all of them with what was spent before."""

    stages: tuple[PlannedStage, ...]
    before: Epsilon
    total: Epsilon


def calibrate(
    stages: Sequence[StageCost],
    target: float,
    delta: float,
    *,
    spent: Sequence[PrivacyEvent] = (),
    largest_noise: float = 100.0,
) -> Plan:
    """Find the least noise with which all stages together, after ``spent``, stay at or below the target.

    Args:
        stages: All private stages of the run.
        target: ε under PRV.
        delta: In (0, 1).
        spent: What the same patients have paid already.
        largest_noise: Noise multipliers above it are of no use; a plan that would need one is refused.

    Raises:
        PrivacyError: No plan meets the target; the message names the nearest settings that would be met.
    """
    _check(stages, target, spent)
    before = epsilon(spent, delta)
    if _total(stages, largest_noise, spent, delta) > target:
        raise _impossible(stages, target, delta, spent, largest_noise)
    sigma = _least_noise(stages, target, delta, spent, largest_noise)
    planned = tuple(
        PlannedStage(s.stage, sigma * s.noise_ratio, s.sampling_rate, s.steps, epsilon([s.event(sigma)], delta))
        for s in stages
    )
    return Plan(planned, before, epsilon([*spent, *(s.event(sigma) for s in stages)], delta))


def calibrate_privacy(config: PrivacyConfig, steps: Mapping[str, int]) -> Plan:
    """Calibrate the noise of all stages of a recipe together.

    Args:
        config: The recipe's privacy.
        steps: Steps of one site by stage, over all rounds.

    Raises:
        PrivacyError: The target cannot be met; the message names the nearest settings that can.
    """
    costs = [
        StageCost(
            stage=name,
            sampling_rate=config.stage(name).sampling_rate,
            steps=count,
            noise_ratio=config.stage(name).noise_ratio,
            unit=config.unit,
        )
        for name, count in steps.items()
    ]
    return calibrate(costs, config.epsilon or 0.0, config.target_delta)


def noise_to_signal(
    noise_multiplier: float, parameters: int, sampling_rate: float, patients: int, *, sites: int = 1
) -> float:
    """Norm of one step's noise over the largest norm that its signal can have: an estimate of how hard learning is.

    Noise σ·C·√d, averaged over equal sites; signal at most q·N·C, reached when every gradient is clipped and all point
    the same way. Over T steps in one direction it falls with √T.

    Args:
        noise_multiplier: σ.
        parameters: d, those that are trained privately.
        sampling_rate: q.
        patients: N of one site, as publicly declared.
        sites: Whose noised steps are averaged.
    """
    return noise_multiplier * math.sqrt(parameters) / (sampling_rate * patients * math.sqrt(sites))


def _check(stages: Sequence[StageCost], target: float, spent: Sequence[PrivacyEvent]) -> None:
    if not stages:
        raise PrivacyError("there is no private stage to plan", do="name at least one")
    if not target > 0:
        raise PrivacyError("the target ε must be positive", got=target, do="train on public data alone for ε = 0")
    if common_unit([*spent, *(s.event(0.0 if s.unit == "none" else 1.0) for s in stages)]) == "none":
        raise PrivacyError(
            "the stages and what was spent before give no joint guarantee",
            got=sorted({e.unit for e in spent} | {s.unit for s in stages}),
            expected="one unit for all: patient, or slice",
            do="use the same unit in every stage and run on these patients",
        )


def _total(stages: Sequence[StageCost], sigma: float, spent: Sequence[PrivacyEvent], delta: float) -> float:
    return epsilon([*spent, *(s.event(sigma) for s in stages)], delta).prv


def _least_noise(
    stages: Sequence[StageCost], target: float, delta: float, spent: Sequence[PrivacyEvent], largest: float
) -> float:
    """Root of log ε - log target over log σ, then upwards to the side that keeps the target; ``largest`` is enough."""
    from scipy.optimize import brentq

    if _total(stages, LEAST_NOISE, spent, delta) <= target:
        return LEAST_NOISE

    def excess(log_sigma: float) -> float:
        total = _total(stages, math.exp(log_sigma), spent, delta)
        return max(-10.0, min(10.0, math.log(total / target))) if total else -10.0

    sigma = math.exp(brentq(excess, math.log(LEAST_NOISE), math.log(largest), xtol=TOLERANCE / 2))
    while sigma < largest and _total(stages, sigma, spent, delta) > target:
        sigma *= 1 + TOLERANCE / 2
    return min(sigma, largest)


def _impossible(
    stages: Sequence[StageCost], target: float, delta: float, spent: Sequence[PrivacyEvent], noise: float
) -> PrivacyError:
    before, least = epsilon(spent, delta).prv, _total(stages, noise, spent, delta)
    expected = f"a target of at least ε = {math.ceil(least * 100) / 100:.2f} with these steps"
    share = _largest_share(stages, target, delta, spent, noise)
    if share:
        expected += f", or at this target {_share_text(stages, share)}"
    return PrivacyError(
        f"ε = {target:g} at δ = {delta:g} cannot be met with noise multipliers up to {noise:g}",
        got=f"ε = {least:.3f} at the largest noise, of which {before:.3f} was spent before",
        expected=expected,
        do="raise the target, train fewer steps, or use patients who have spent less",
    )


def _largest_share(
    stages: Sequence[StageCost], target: float, delta: float, spent: Sequence[PrivacyEvent], noise: float
) -> float:
    """The largest share of every stage's steps that meets the target at the largest noise; 0 where one step each fails.

    Bisection over shares, to 1 %.
    """
    low, high = 0.0, 1.0
    while high - low > 0.01:
        middle = (low + high) / 2
        if _total(_shortened(stages, middle), noise, spent, delta) <= target:
            low = middle
        else:
            high = middle
    return low


def _shortened(stages: Sequence[StageCost], share: float) -> list[StageCost]:
    return [s.model_copy(update={"steps": max(1, int(s.steps * share))}) for s in stages]


def _share_text(stages: Sequence[StageCost], share: float) -> str:
    return "at most " + ", ".join(f"{s.steps} steps of {s.stage}" for s in _shortened(stages, share))

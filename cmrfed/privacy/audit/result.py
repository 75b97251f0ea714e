"""What an audit found: one line for each property, and μ."""

import math
from dataclasses import dataclass

from pydantic import Field

from cmrfed.core.settings.config import Section
from cmrfed.privacy.audit.checks import FALSE_ALARM, Check
from cmrfed.privacy.audit.mu import CONFIDENCE, Mu


@dataclass(frozen=True)
class AuditResult:
    """Lines of an audit, and μ of the audited step beside theory."""

    checks: tuple[Check, ...]
    mu: Mu
    noise_multiplier: float
    steps: int
    """T, the steps that μ and the lines on noise and sampling are of."""

    @property
    def level(self) -> float:
        """A line fails below this p-value: Bonferroni's share of `FALSE_ALARM`."""
        return FALSE_ALARM / len(self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """Lines that a correct step would hardly show."""
        return tuple(check for check in self.checks if not check.p_value >= self.level)

    @property
    def passed(self) -> bool:
        """Whether the releases are compatible with the guarantee."""
        return not self.failed

    def row(self, stage: str) -> "AuditRow":
        """The row of audit.json for a stage; a μ that is not finite is None."""
        mu, lower, upper = (v if math.isfinite(v) else None for v in (self.mu.value, self.mu.lower, self.mu.upper))
        return AuditRow(
            stage=stage,
            mu=mu,
            lower=lower,
            upper=upper,
            confidence=CONFIDENCE,
            theory=self.mu.theory,
            canaries=self.mu.records,
            steps=self.steps,
            noise_multiplier=self.noise_multiplier,
            false_alarm=FALSE_ALARM,
            passed=self.passed,
            checks=tuple(
                CheckRow(
                    name=check.name,
                    measured=check.measured,
                    expected=check.expected,
                    p_value=check.p_value,
                    passed=check.p_value >= self.level,
                )
                for check in self.checks
            ),
        )


class CheckRow(Section):
    """One property of a step, as audit.json has it."""

    name: str
    measured: str
    expected: str
    p_value: float
    passed: bool


class AuditRow(Section):
    """What the audit of one stage's step found, as audit.json has it; version 0.1 kept no properties."""

    stage: str
    mu: float | None
    """μ of Gaussian differential privacy; None is infinite: there is no noise."""
    lower: float | None
    upper: float | None
    at_least: float | None = Field(None, exclude_if=lambda value: value is None)
    """Of version 0.1: the lower end of a one-sided interval."""
    confidence: float
    theory: float
    canaries: int
    steps: int
    noise_multiplier: float
    false_alarm: float | None = None
    """Probability that a correct step fails."""
    passed: bool
    checks: tuple[CheckRow, ...] = ()

    @property
    def failed_checks(self) -> str:
        """Names of the properties that do not hold."""
        return "; ".join(check.name for check in self.checks if not check.passed) or "no detail is kept"

    @property
    def measured_mu(self) -> str:
        """µ with its interval; without any noise it is unbounded."""
        if self.mu is None:
            return "µ = ∞ (there is no noise)"
        low, high = ("∞" if end is None else f"{end:.3f}" for end in (self.lower, self.upper))
        return f"µ = {self.mu:.3f} ({low} to {high} at {self.confidence:.0%})"

"""What an audit found: one line for each property, and μ."""

import math
from dataclasses import dataclass

from cmrfed.privacy.audit.checks import FALSE_ALARM, Check
from cmrfed.privacy.audit.mu import CONFIDENCE, Mu
from cmrfed.privacy.audit.rows import AuditRow, CheckRow


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

    def row(self, stage: str) -> AuditRow:
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

"""What is kept of an audit: the rows of audit.json."""

from pydantic import Field

from cmrfed.core.settings.config import Section


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

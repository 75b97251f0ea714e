"""What one line of an audit says, and the p-values behind it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

FALSE_ALARM = 1e-4
"""Probability that a correct step fails its audit: a run that fails loses its claim, so chance must hardly fail one."""


@dataclass(frozen=True)
class Check:
    """One property of the step: what was measured, what was expected, and how likely a correct step is to look so.

    ``p_value`` is 0 or 1 where nothing is left to chance.
    """

    name: str
    measured: str
    expected: str
    p_value: float


@dataclass(frozen=True)
class Finding:
    """One of several measurements behind a line: its name, its value as text, and its two-sided p-value."""

    about: str
    measured: str
    p_value: float


def worst_of(name: str, expected: str, findings: Sequence[Finding], overall: str = "") -> Check:
    """A line that shows the least likely of its measurements; its p-value is Bonferroni's over all of them."""
    if not findings:
        return Check(name, "nothing to measure", expected, 1.0)
    worst = min(findings, key=lambda finding: _sound(finding.p_value))
    return Check(
        name, f"{overall}{worst.measured} ({worst.about})", expected, min(1.0, len(findings) * _sound(worst.p_value))
    )


def yes_or_no(name: str, expected: str, faults: Sequence[str]) -> Check:
    """A line that fails with any fault; chance has no part in it."""
    return Check(name, "; ".join(faults[:3]) or "as expected", expected, 0.0 if faults else 1.0)


def _sound(p_value: float) -> float:
    return p_value if math.isfinite(p_value) else 0.0


# --- two-sided p-values; not-a-number counts as 0 -----------------------------------------------
def normal_p(score: float | np.ndarray) -> np.ndarray:
    """p-values of standard normal scores."""
    return np.asarray(np.nan_to_num(special.erfc(np.abs(score) / math.sqrt(2)), nan=0.0))


def squares_p(total: float | np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """p-values of sums of ``count`` squared standard normal values."""
    low, high = special.chdtr(count, total), special.chdtrc(count, total)
    return np.asarray(np.nan_to_num(np.minimum(1.0, 2 * np.minimum(low, high)), nan=0.0))


def binomial_p(hits: np.ndarray, trials: int | np.ndarray, rate: float) -> np.ndarray:
    """p-values of binomial counts; conservative, since counts are whole numbers."""
    low, high = stats.binom.cdf(hits, trials, rate), stats.binom.sf(hits - 1, trials, rate)
    return np.asarray(np.minimum(1.0, 2 * np.minimum(low, high)))


def correlation_p(correlation: np.ndarray, count: int) -> np.ndarray:
    """p-values of correlations of ``count`` independent standard normal pairs with mean 0."""
    bounded = np.clip(np.nan_to_num(correlation, nan=1.0), -1 + 1e-12, 1 - 1e-12)
    return np.asarray(2 * stats.t.sf(np.abs(bounded) * np.sqrt((count - 1) / (1 - bounded**2)), count - 1))

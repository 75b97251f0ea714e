"""What one record changes in a release, over the noise: μ of Gaussian differential privacy (arXiv 1905.02383)."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from cmrfed.privacy.audit.checks import Check, Finding, normal_p, worst_of
from cmrfed.privacy.audit.tape import Tape

CONFIDENCE = 0.99
"""Error rate of the reported interval; whether a step fails is decided at the level of all other lines."""


@dataclass(frozen=True)
class Mu:
    """μ of T steps in all of which a record takes part: the shift that it causes over the noise, times √T."""

    value: float
    lower: float
    upper: float
    theory: float
    records: int
    """Times that a record of at least norm C was seen."""

    def check(self) -> Check:
        """Both sides: less noise than promised, and less of a record than C or more noise, which no theory explains."""
        reach = (self.upper - self.lower) / 2
        error = reach / float(norm.ppf((1 + CONFIDENCE) / 2))
        p_value = float(normal_p((self.value - self.theory) / error)) if error else 0.0
        finding = Finding(f"{self.records} loud records", f"{self.value:.3f}", p_value)
        return worst_of("μ of all steps, for a record that is in each", f"√T/σ = {self.theory:.3f}", [finding])


def measure(tape: Tape) -> Mu:
    """Regress each step's release, along the gradient of each loud kind of record, on how many of them were seen."""
    counts, steps, sigma = tape.by_kind(), len(tape.seen), tape.event.noise_multiplier
    top, bottom, records = 0.0, 0.0, 0
    for kind, canary in enumerate(tape.canaries):
        contribution, times = canary.contribution(tape.config.clip_norm), counts[:, kind]
        if np.linalg.norm(contribution) < 0.99 or not times.any():
            continue
        direction = contribution / np.linalg.norm(contribution)
        along = tape.noise @ direction * sigma + times * np.linalg.norm(contribution)  # others are taken off
        top, bottom, records = top + float(times @ along), bottom + float(times @ times), records + int(times.sum())
    theory = math.sqrt(steps) / sigma
    spread = float(np.sqrt((tape.noise**2).mean())) * sigma
    if not bottom:
        return Mu(theory, theory - math.inf, theory + math.inf, theory, 0)
    if not math.isfinite(spread) or spread <= 1e-9 * abs(top / bottom):
        return Mu(math.inf, math.inf, math.inf, theory, records)
    value = math.sqrt(steps) * top / bottom / spread
    error = math.sqrt(steps / bottom + value**2 / (2 * tape.noise.size))
    reach = float(norm.ppf((1 + CONFIDENCE) / 2)) * error
    return Mu(value, value - reach, value + reach, theory, records)

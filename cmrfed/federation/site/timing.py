"""How long a private round takes, as seen from outside: what the request and the machine decide, not who was sampled.

Each sampled record takes one pass forward and backward, so the time of a round tells how many there were. A site that
hides it waits until the time is up that a number of passes takes which is almost never exceeded.
"""

import math

EXCEEDED = 1e-9
"""Probability that more records are sampled in a round than the site waits for, where N is as declared."""
MARGIN = 1.25
"""Over the time of a made-up record: real ones are read from the disk too."""


def largest_passes(declared_patients: int, sampling_rate: float, steps: int) -> int:
    """Passes of a round that are exceeded with probability `EXCEEDED`: a quantile of Binomial(N · steps, q)."""
    from scipy.stats import binom  # which takes a second to load, and only private rounds need it

    return max(1, int(binom.isf(EXCEEDED, declared_patients * steps, sampling_rate)))


def record_budget(declared_patients: int, sampling_rate: float, steps: int, seconds: float) -> float:
    """Seconds that all records of a round may take together.

    Args:
        declared_patients: N, public.
        sampling_rate: q.
        steps: Of the round.
        seconds: Of one made-up record.
    """
    return MARGIN * seconds * largest_passes(declared_patients, sampling_rate, steps)


def remaining(spent: float, budget: float) -> float:
    """Seconds to wait after ``spent`` ones, until the budget is up, or its next multiple where it was exceeded."""
    return max(1, math.ceil(spent / budget)) * budget - spent

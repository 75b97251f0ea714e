"""Poisson sampling: each record takes part in a step independently with probability q (operating system's entropy)."""

import secrets

from cmrfed.core.errors import PrivacyError

_RANDOM = secrets.SystemRandom()


def poisson_sample(count: int, rate: float) -> list[int]:
    """Take each of ``count`` records independently with probability ``rate``.

    Accounting of subsampling holds for this law alone: batches of a fixed size, and draws that anyone who knows the
    recipe could repeat, would void it. An empty list is a normal outcome, and its step is a normal step.

    Args:
        count: Patients (or slices) at the site.
        rate: Public, in (0, 1].

    Returns:
        Ascending numbers in [0, count).
    """
    if not 0 < rate <= 1:
        raise PrivacyError("the sampling rate is no probability", got=rate, expected="0 < rate <= 1")
    return [i for i in range(count) if _RANDOM.random() < rate]

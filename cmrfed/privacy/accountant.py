"""The privacy loss ε of a history of events, under two of Opacus' accountants.

PRV (arXiv 2106.02848) is the figure to report: an upper bound, at most about 0.02 above the exact loss. RDP
(arXiv 1702.07476) is 7 to 25 % looser and is given beside it. Both bound one history's releases *together*: all rounds,
stages and runs on the same patients. The relation is "add or remove one patient" (`event.ADJACENCY`); under
"replace one patient" ε is about twice as large or more.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cmrfed.core.errors import PrivacyError
from cmrfed.privacy.event import PrivacyEvent, Unit

LARGEST_EPSILON = 500.0
"""Above this a bound says nothing (e^500 to 1) and is given as infinite."""
LARGEST_HISTORY = 16
"""Different mechanisms that are composed one by one; beyond it, similar ones are counted as the costliest of them."""

Mechanism = tuple[float, float, int]
"""Noise multiplier, sampling rate, steps."""


@dataclass(frozen=True)
class Epsilon:
    """ε at one δ, under both accountants."""

    delta: float
    rdp: float
    prv: float


def epsilon(events: Iterable[PrivacyEvent], delta: float) -> Epsilon:
    """Compose all events.

    Args:
        events: Of the same patients; an empty history costs 0, one event without noise costs ∞.
        delta: Probability with which the bound may fail, in (0, 1).

    Raises:
        PrivacyError: δ is not in (0, 1), or the computation fails.
    """
    return _epsilon(tuple((e.noise_multiplier, e.sampling_rate, e.steps) for e in events), delta)


def common_unit(events: Iterable[PrivacyEvent]) -> Unit:
    """The unit for which all events together give a guarantee; "none" when units are mixed.

    Patients' and slices' events do not compose to one statement, so a mixed history makes none.
    """
    units = {e.unit for e in events}
    return "patient" if not units else units.pop() if len(units) == 1 else "none"


def _epsilon(history: Sequence[Mechanism], delta: float) -> Epsilon:
    if not 0 < delta < 1:
        raise PrivacyError("δ must be a probability", got=delta, expected="0 < δ < 1", do="take about 1 / patients^1.1")
    if any(sigma == 0 for sigma, _, _ in history):
        return Epsilon(delta, math.inf, math.inf)
    return _composed(_grouped(history), delta)


@lru_cache(maxsize=256)
def _composed(history: tuple[Mechanism, ...], delta: float) -> Epsilon:
    if not history:
        return Epsilon(delta, 0.0, 0.0)
    from cmrfed.privacy.opacus_accountants import prv, rdp  # seconds of imports, for who has something to compose

    loose = rdp(history, delta)
    if loose > LARGEST_EPSILON:
        return Epsilon(delta, math.inf, math.inf)
    return Epsilon(delta, loose, prv(history, delta))


# --- few mechanisms out of many -----------------------------------------------------------------
def _grouped(history: Sequence[Mechanism]) -> tuple[Mechanism, ...]:
    """Join equal mechanisms; where too many differ, round noise down and rate up on ever coarser grids.

    Less noise and a larger rate cost more, so the result is an upper bound.
    """
    grouped, grid = _joined(history), 0.005
    while len(grouped) > LARGEST_HISTORY:
        grouped, grid = _joined([_rounded(mechanism, grid) for mechanism in history]), grid * 2
    return grouped


def _joined(history: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    steps: dict[tuple[float, float], int] = {}
    for sigma, rate, count in history:
        steps[sigma, rate] = steps.get((sigma, rate), 0) + count
    return tuple((sigma, rate, count) for (sigma, rate), count in sorted(steps.items()))


def _rounded(mechanism: Mechanism, grid: float) -> Mechanism:
    sigma, rate, steps = mechanism
    lower = math.exp(math.floor(math.log(sigma) / grid) * grid)
    upper = math.exp(math.ceil(math.log(rate) / grid) * grid)
    return min(lower, sigma), max(min(upper, 1.0), rate), steps

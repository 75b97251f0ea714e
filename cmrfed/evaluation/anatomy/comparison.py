"""Tests over patients: which shapes and volumes of the synthetic set differ from those of real patients."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import permutation_test, wasserstein_distance

from cmrfed.evaluation.results.catalogue import metric, unavailable, word
from cmrfed.evaluation.results.result import Metric

ALPHA = 0.05
Samples = Mapping[str, np.ndarray]
"""Name of what was measured => its value for each patient, (P,)."""


def permutation_p(x: np.ndarray, y: np.ndarray, draws: int, seed: int = 0) -> float:
    """Two-sample permutation test of the Wasserstein-1 distance (Phipson and Smyth 2010: p is never 0).

    Args:
        x: One number per patient, (P,).
        y: One number per patient, (Q,).
        draws: Number of exchanges of patients between the two.
        seed: Same seed, same p.
    """
    rng = np.random.default_rng(seed)
    found = permutation_test(
        (x, y), wasserstein_distance, vectorized=False, n_resamples=draws, alternative="greater", rng=rng
    )
    return float(found.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the order given (Holm 1979)."""
    out, running = [0.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable").tolist()):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        out[index] = running
    return out


def adjusted(x: Samples, y: Samples, draws: int) -> dict[str, float]:
    """Name => Holm-adjusted p of what both have for at least two patients."""
    names = [name for name in x if name in y and min(len(x[name]), len(y[name])) >= 2]
    return dict(zip(names, holm([permutation_p(x[n], y[n], draws) for n in names]), strict=True))


def differing_metric(synthetic: Samples, train: Samples, holdout: Samples, draws: int) -> Metric:
    """Share of the shapes and volumes in which synthetic patients differ from the hold-out, all tests counted."""
    key = "anatomy.differing"
    mine, floor = (adjusted(s, holdout, draws) for s in (synthetic, train))
    if not mine:
        reason = "nothing could be compared. Do: give at least two patients with masks in each set"
        return unavailable(key, reason)
    order = sorted(mine.items(), key=lambda item: item[1])
    found = [f"{word('quantity', name)} (p {p:.2g})" for name, p in order if p < ALPHA]
    return metric(
        key,
        len(found) / len(mine),
        n=len(mine),
        reference=sum(p < ALPHA for p in floor.values()) / len(floor) if floor else None,
        detail=f"{len(found)} of {len(mine)} permutation tests over patients below {ALPHA} after Holm's correction for "
        f"their number: {', '.join(found) or 'none'}. More patients find smaller differences; reference: training",
    )

"""Fidelity and variety, separately: do synthetic images lie among real ones, and are real ones reached by them?

Precision and recall: Kynkaanniemi et al. 2019, arXiv 1904.06991. Density and coverage: Naeem et al. 2020, arXiv
2002.09797. All ask whether a feature vector lies in the balls that reach from each vector of a set to its k-th
neighbour in that set. Slices of one patient are each other's neighbours, so that the balls of real slices are small and
no measure reaches what it would for independent images: read each beside its reference.
"""

from collections.abc import Mapping

import numpy as np

from cmrfed.evaluation.results.catalogue import metric, unavailable
from cmrfed.evaluation.results.result import Estimate, Findings, Metric, mean_interval
from cmrfed.evaluation.slices import SliceSet, patient_means, rows_of

NEIGHBOURS = 5
BLOCK = 1024
"""Rows whose distances to all others are held at a time."""
MEANINGS = {
    "precision": "share of synthetic slices that lie among real ones",
    "recall": "share of real slices that lie among synthetic ones",
    "density": "real neighbourhoods that a synthetic slice lies in, over k",
    "coverage": "share of real slices with a synthetic one in their neighbourhood",
}


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Euclidean distances (N, M) of the rows of (N, D) and (M, D), in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.sqrt(np.maximum(squared, 0))


def radii(x: np.ndarray, k: int) -> np.ndarray:
    """Distance (N,) of each row of (N, D) to its k-th nearest other row."""
    out = np.empty(len(x))
    for start in range(0, len(x), BLOCK):
        block = distances(x[start : start + BLOCK], x)
        block[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf  # no row is its own neighbour
        out[start : start + BLOCK] = np.partition(block, k - 1, axis=1)[:, k - 1]
    return out


def memberships(real: np.ndarray, made: np.ndarray, k: int = NEIGHBOURS) -> dict[str, np.ndarray]:
    """Measure => its value for each slice, of which it is the mean: of made slices (M,), or of real ones (N,).

    Args:
        real: (N, D) features, N > k.
        made: (M, D) features, M > k.
        k: Which neighbour a ball reaches to.
    """
    reach, made_reach = radii(real, k), radii(made, k)
    balls, recall, coverage = np.zeros(len(made)), np.zeros(len(real)), np.zeros(len(real))
    for start in range(0, len(real), BLOCK):
        rows = slice(start, start + BLOCK)
        between = distances(real[rows], made)
        in_real = between < reach[rows, None]
        balls += in_real.sum(0)
        coverage[rows] = in_real.any(1)
        recall[rows] = (between < made_reach[None]).any(1)
    return {"precision": (balls > 0).astype(float), "recall": recall, "density": balls / k, "coverage": coverage}


def spread_of(features: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Mean distance (P,) of each patient's slices to the slices of all others; needs two patients."""
    out = []
    for rows in rows_of(owners).values():
        between = distances(features[rows], features)
        out.append((between.sum() - between[:, rows].sum()) / (len(rows) * (len(features) - len(rows))))
    return np.array(out)


def manifold_metrics(
    synthetic: SliceSet,
    train: SliceSet,
    holdout: SliceSet,
    features: Mapping[str, np.ndarray],
    extractor: str,
    seed: int = 0,
) -> Findings:
    """Precision, recall, density, coverage and spread of the synthetic set, beside what training slices get.

    Synthetic and training slices are drawn down to equal numbers, as the balls shrink when a set grows.

    Args:
        synthetic: The set to evaluate.
        train: Patients that the generators learned from; the floor.
        holdout: Patients that nothing has learned from.
        features: Name of a set => its features (N, D).
        extractor: Name of the features.
        seed: Decides which slices are drawn.
    """
    size = min(len(synthetic), len(train), len(holdout))
    if size <= NEIGHBOURS or min(len(s.patients) for s in (synthetic, train, holdout)) < 2:
        reason = f"too few slices or patients: {size} slices. Do: give two patients and {NEIGHBOURS + 1} slices or more"
        about = {"arm": "synthetic", "space": extractor}
        return Findings(metrics=tuple(unavailable(f"fidelity.{m}", reason, about) for m in (*MEANINGS, "spread")))
    rng = np.random.default_rng(seed)
    rows = {s.name: np.sort(rng.choice(len(s), size, replace=False)) for s in (synthetic, train, holdout)}
    drawn = {s.name: (features[s.name][rows[s.name]], s.owners[rows[s.name]]) for s in (synthetic, train, holdout)}
    real, own = drawn[holdout.name]
    scores, floor = (memberships(real, drawn[s.name][0]) for s in (synthetic, train))
    owners = {
        "precision": drawn[synthetic.name][1],
        "density": drawn[synthetic.name][1],
        "recall": own,
        "coverage": own,
    }
    metrics = [
        _metric(name, values, owners[name], float(floor[name].mean()), extractor, size)
        for name, values in scores.items()
    ]
    spread = _spread_metric(drawn[synthetic.name], drawn[holdout.name], extractor)
    return Findings(metrics=(*metrics, spread))


def _metric(measure: str, values: np.ndarray, owners: np.ndarray, floor: float, extractor: str, size: int) -> Metric:
    of_patients = mean_interval(patient_means(values, owners))
    shift = float(values.mean()) - of_patients.value  # the interval is that of a mean over patients
    low, high = (None if end is None else end + shift for end in of_patients[1:])
    return metric(
        f"fidelity.{measure}",
        Estimate(float(values.mean()), low, high),
        {"arm": "synthetic", "space": extractor},
        n=size,
        reference=floor,
        detail=f"{MEANINGS[measure]}; {size} against {size} slices, k = {NEIGHBOURS}; interval over patients; "
        "reference: training against hold-out patients",
    )


def _spread_metric(made: tuple[np.ndarray, np.ndarray], real: tuple[np.ndarray, np.ndarray], extractor: str) -> Metric:
    key, about = "fidelity.spread", {"arm": "synthetic", "space": extractor}
    if min(len(np.unique(owners)) for _, owners in (made, real)) < 2:
        return unavailable(key, "one patient has no other to differ from. Do: give two patients or more", about)
    scale = float(spread_of(*real).mean())
    if not scale:
        return unavailable(key, "the hold-out's slices do not differ. Do: check the hold-out", about)
    values = spread_of(*made) / scale
    return metric(
        key,
        mean_interval(values),
        about,
        n=len(values),
        reference=1.0,
        detail="mean distance of slices of different patients, as a multiple of the hold-out's: below 1, the set is "
        "less varied than real patients; interval over patients",
    )

"""Memorisation: are synthetic images nearer to the patients that were learned from than to others?

Distances alone prove no privacy. They can show copies; that they show none is no guarantee.
"""

from dataclasses import dataclass

import numpy as np

from cmrfed.core.errors import EvaluationError
from cmrfed.evaluation.privacy.nearest import Neighbours, Points
from cmrfed.evaluation.results.catalogue import metric, say, series, unavailable
from cmrfed.evaluation.results.result import Estimate, Findings, Metric, Notice, bootstrap, mean_interval
from cmrfed.evaluation.settings import MemorisationConfig
from cmrfed.evaluation.slices import SliceSet, patient_means, rows_of

COPY_SHARE = 0.01
"""Share of hold-out slices that lie nearer to training slices than the distance that is called a copy."""


SAME_SCAN = 0.25
"""A patient nearer than this share of the usual distance is the same patient again."""
IDENTICAL = 1e-3
"""Root-mean-square difference, on a range of 2, that rounding alone can leave."""


def _to_some(found: Neighbours, count: int, rng: np.random.Generator) -> np.ndarray:
    """Distance (N,) to the nearest of ``count`` patients drawn without replacement."""
    chosen = rng.choice(len(found.patients), count, replace=False)
    return found.distance[:, chosen].min(1).astype(np.float64)


def closer_share(
    to_train: Neighbours, to_holdout: Neighbours, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """How often each query (N,) is nearer to training than to hold-out patients, over equal choices of both.

    More patients lie nearer by number alone, so of the larger set as many patients are drawn as the smaller has;
    then the share is 0.5 when neither set was learned from. Equal distances count as a half.
    """
    count = min(len(to_train.patients), len(to_holdout.patients))
    won = np.zeros(len(to_train.distance))
    for _ in range(draws):
        near_train, near_holdout = _to_some(to_train, count, rng), _to_some(to_holdout, count, rng)
        won += (near_train < near_holdout) + 0.5 * (near_train == near_holdout)
    return won / draws, count


def _share_metric(
    measure: str, space: str | None, values: np.ndarray, owners: np.ndarray, reference: float, detail: str
) -> Metric:
    """Share of slices, mean per synthetic patient, interval over synthetic patients."""
    return metric(
        f"memorisation.{measure}",
        mean_interval(patient_means(values, owners)),
        {"space": space},
        n=len(np.unique(owners)),
        reference=reference,
        detail=f"{detail}; interval over synthetic patients",
    )


def _ratio_metric(space: str, to_train: np.ndarray, to_holdout: np.ndarray, owners: np.ndarray) -> Metric:
    pairs = np.stack([patient_means(d, owners) for d in (to_train, to_holdout)], 1)
    value = float(pairs[:, 0].mean() / max(pairs[:, 1].mean(), 1e-12))
    interval = bootstrap(pairs, lambda drawn: drawn[..., 0].mean(1) / np.maximum(drawn[..., 1].mean(1), 1e-12))
    return metric(
        "memorisation.distance-ratio",
        Estimate(value, *interval),
        {"space": space},
        n=len(pairs),
        reference=1.0,
        detail="mean nearest distance to training / to hold-out patients, equally many of each; below 1: nearer to "
        "training",
    )


@dataclass(frozen=True)
class Space:
    """The three sets as vectors of one space, named in every metric."""

    name: str
    synthetic: Points
    train: Points
    holdout: Points


def nearest_metrics(space: Space, config: MemorisationConfig, seed: int) -> tuple[Findings, Neighbours]:
    """Everything about neighbours in one space.

    Args:
        space: The vectors.
        config: Number of draws.
        seed: Decides which patients are drawn.
    """
    rng, own = np.random.default_rng(seed), space.synthetic.owners
    to_train, to_holdout = space.synthetic.to(space.train), space.synthetic.to(space.holdout)
    control = space.holdout.to(space.train).nearest()[0]
    limit = float(np.quantile(control, COPY_SHARE))
    won, count = closer_share(to_train, to_holdout, config.draws, rng)
    equal = [_to_some(n, count, rng) for n in (to_train, to_holdout)]
    near, seen = to_train.nearest()[0], f"{space.name}; {count} patients of each set, {config.draws} draws"
    limit_words = f"{space.name}; nearer than {limit:.3g}, which {COPY_SHARE:.0%} of hold-out slices are"
    metrics = (
        _share_metric("nearer-to-training", space.name, won, own, 0.5, seen),
        _ratio_metric(space.name, equal[0], equal[1], own),
        _share_metric("copies", space.name, near < limit, own, COPY_SHARE, limit_words),
    )
    groups = {
        "synthetic-to-training": near,
        "synthetic-to-holdout": to_holdout.nearest()[0],
        "holdout-to-training": control,
    }
    plot = series("memorisation.nearest-distance", groups, {"space": space.name})
    return Findings(metrics=metrics, series=(plot,)), to_train


def repeated_patients(train: SliceSet, holdout: SliceSet) -> list[str]:
    """Hold-out patients who are in the training set under another name: the same scan, or one hardly different.

    A patient is one of them when the median distance of the own slices to the nearest training slice is below a
    quarter of what it is over all patients' medians, or next to nothing.

    Raises:
        EvaluationError: All hold-out patients are.
    """
    distance = holdout.points.to(train.points).nearest()[0]
    middle = {patient: float(np.median(distance[rows])) for patient, rows in rows_of(holdout.owners).items()}
    limit = max(float(np.median(list(middle.values()))) * SAME_SCAN, IDENTICAL)
    found = [p for p, value in middle.items() if value < limit]
    if len(found) == len(middle):
        raise EvaluationError(
            "every hold-out patient is also in the training cohort",
            got=found[:5],
            expected="patients that nothing has learned from",
            do="give a hold-out that is disjoint from the training cohort",
        )
    return found


def duplicate_metric(space: Space) -> Metric:
    """Share of synthetic slices that repeat a slice of another synthetic patient more closely than real ones do."""
    owners = space.synthetic.owners
    if min(len(np.unique(points.owners)) for points in (space.synthetic, space.train)) < 2:
        reason = "one patient cannot repeat another. Do: give at least two synthetic and two training patients"
        return unavailable("memorisation.duplicates", reason, {"space": space.name})
    limit = float(np.quantile(space.train.to_other_patients(), COPY_SHARE))
    repeated = space.synthetic.to_other_patients() < limit
    words = f"nearer to another patient than {limit:.3g}, which {COPY_SHARE:.0%} of training slices are"
    return _share_metric("duplicates", space.name, repeated, owners, COPY_SHARE, words)


def memorisation(
    synthetic: SliceSet,
    train: SliceSet,
    holdout: SliceSet,
    features: dict[str, np.ndarray],
    extractor: str,
    config: MemorisationConfig,
    seed: int = 0,
) -> tuple[Findings, Neighbours]:
    """Neighbours in pixels and in features, copies, duplicates and constant images.

    Args:
        synthetic: The set to evaluate.
        train: Patients that the generators learned from.
        holdout: Patients that nothing has learned from; the control.
        features: Name of a set => its features (N, D).
        extractor: Name of the features.
        config: Number of draws.
        seed: Decides which patients are drawn.

    Returns:
        The findings, and the neighbours in pixels of synthetic among training slices.
    """
    again = repeated_patients(train, holdout)
    fresh = ~np.isin(holdout.owners, again)
    holdout, features = holdout.take(fresh), {**features, holdout.name: features[holdout.name][fresh]}
    sets = (synthetic, train, holdout)
    pixels = Space("pixels", *(s.points for s in sets))
    seen = Space(extractor, *(Points(features[s.name], s.owners, s.device) for s in sets))
    found, to_train = nearest_metrics(pixels, config, seed)
    found += nearest_metrics(seen, config, seed)[0]
    constant = synthetic.constant
    extra = (
        duplicate_metric(pixels),
        _share_metric(
            "constant-images",
            None,
            constant,
            synthetic.owners,
            float(train.constant.mean()),
            "no contrast at all",
        ),
    )
    warnings = [say("constant-images", count=constant.sum(), total=len(constant))] if constant.any() else []
    if again:
        warnings.append(say("repeated-patients", patients=again))
    return found + Findings(metrics=extra, warnings=tuple(Notice(text=text) for text in warnings)), to_train

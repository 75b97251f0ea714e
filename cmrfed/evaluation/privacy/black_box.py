"""Black-box membership inference: do distances to the synthetic images tell training patients from others?

Every attack is scored by patient, on equally many members and others of each group and vendor, and has a control: the
same members and others against fresh real patients, about whom the synthetic set plays no part. That attacks find
nothing is no proof of privacy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cmrfed.data.cohort import PatientRecord
from cmrfed.evaluation.installed import InstalledAttack, attack_scores
from cmrfed.evaluation.privacy.membership import (
    ERROR,
    FEWEST,
    Attack,
    Claim,
    Scores,
    attack_findings,
    ceiling_series,
    halves,
    matched,
    too_few,
)
from cmrfed.evaluation.privacy.memorisation import repeated_patients
from cmrfed.evaluation.privacy.nearest import Points
from cmrfed.evaluation.results.catalogue import metric, unavailable
from cmrfed.evaluation.results.result import Estimate, Findings, Metric
from cmrfed.evaluation.slices import SliceSet, patient_means, rows_of

SOURCES = {
    "nearest-neighbour": "minus the distance to the nearest synthetic slice (arXiv 1909.03935)",
    "neighbour-ratio": "minus the distance to the nearest over that to the second-nearest synthetic patient",
    "monte-carlo-ball": "share of synthetic patients inside the median nearest distance (Hilprecht et al. 2019)",
    "calibrated-neighbour": "distance to the nearest slice of other hold-out patients, the reference, minus that to "
    "the nearest synthetic slice (arXiv 1909.03935)",
}
"""Attack → its score."""
CALIBRATED = "calibrated-neighbour"
NONE: Mapping[str, InstalledAttack] = {}


@dataclass(frozen=True)
class Cloud:
    """Some patients of a set: the rows (K,) of their slices. Distances are those found once for the whole set."""

    points: Points
    rows: np.ndarray

    @classmethod
    def whole(cls, points: Points) -> "Cloud":
        """All patients of a set."""
        return cls(points, np.arange(len(points.owners)))

    @property
    def owners(self) -> np.ndarray:
        """The patient of each slice, (K,)."""
        return self.points.owners[self.rows]

    @property
    def vectors(self) -> np.ndarray:
        """The slices as vectors (K, D), in memory."""
        return self.points.vectors[self.rows]

    def of(self, patients: Sequence[str]) -> "Cloud":
        """The slices of these patients."""
        return Cloud(self.points, self.rows[np.isin(self.owners, patients)])

    def to(self, others: "Cloud") -> np.ndarray:
        """Distance (K, P) of each slice to the nearest slice of each patient of the others."""
        found = self.points.to(others.points)
        theirs = np.flatnonzero(np.isin(found.patients, np.unique(others.owners)))
        return found.distance[np.ix_(self.rows, theirs)]

    def to_other_patients(self) -> np.ndarray:
        """Distance (K,) of each slice to the nearest slice of another patient."""
        own = self.owners
        return np.where(np.unique(own)[None] == own[:, None], np.inf, self.to(self)).min(1)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Mean of the values (K,) of each patient, in order of name."""
        return patient_means(values, self.owners)


@dataclass(frozen=True)
class Sides:
    """Equally many members and others, and, of the hold-out, others still who serve as reference."""

    members: list[str]
    others: list[str]
    reference: list[str]


def _slice_scores(near: np.ndarray, reference: np.ndarray | None) -> dict[str, np.ndarray]:
    """Attack → score (N,) from distances (N, P) to released patients, and to reference patients where it needs them."""
    first, second = np.partition(near, 1, axis=1)[:, :2].T
    if reference is not None:
        return {CALIBRATED: reference.min(1) - first}
    return {
        "nearest-neighbour": -first,
        "neighbour-ratio": -first / np.maximum(second, 1e-12),
        "monte-carlo-ball": (near <= np.median(first)).mean(1),
    }


def contest(
    members: Cloud,
    others: Cloud,
    released: Cloud,
    reference: Cloud | None = None,
    installed: Mapping[str, InstalledAttack] = NONE,
) -> dict[str, Scores]:
    """Attack → scores of patients; with a reference the calibrated attack, else those without."""
    sides = members, others
    near = np.concatenate([side.to(released) for side in sides])
    known = np.concatenate([side.to(reference) for side in sides]) if reference else None
    found = _slice_scores(near, known)
    if installed:
        vectors = np.concatenate([side.vectors for side in sides]), released.vectors
        found |= {name: attack_scores(name, each, len(near), *vectors) for name, each in installed.items()}
    count = len(members.rows)
    return {name: Scores(members.means(values[:count]), others.means(values[count:])) for name, values in found.items()}


def attacks(
    space: str,
    synthetic: Cloud,
    train: Cloud,
    holdout: Cloud,
    whole: Sides,
    half: Sides,
    installed: Mapping[str, InstalledAttack] = NONE,
) -> Iterator[Attack]:
    """All attacks of one space with their controls."""
    fresh, (a, b) = holdout.of(half.reference), (train.of(half.members), holdout.of(half.others))
    one, two = (holdout.of(half.reference[k::2]) for k in (0, 1))
    found = contest(train.of(whole.members), holdout.of(whole.others), synthetic, installed=installed)
    control = contest(a, b, fresh, installed=installed)
    found |= contest(a, b, synthetic, fresh)
    control |= contest(a, b, one, two)
    sources = SOURCES | {name: each.about for name, each in installed.items()}
    for name, scores in found.items():
        known = f"; {len(half.reference)} reference patients" if name == CALIBRATED else ""
        words = "fresh real patients in place of the synthetic ones"
        yield Attack(name, space, scores, control[name], words, sources[name] + known)


def _mean_interval(parts: Sequence[np.ndarray], weights: Sequence[float], seed: int = 0) -> Estimate:
    """Weighted sum of the means of independent groups of patients, every group resampled."""
    rng, value, drawn = np.random.default_rng(seed), 0.0, np.zeros(2000)
    for part, weight in zip(parts, weights, strict=True):
        value += weight * float(part.mean())
        drawn += weight * part[rng.integers(len(part), size=(2000, len(part)))].mean(1)
    low, high = np.percentile(drawn, [50 * ERROR, 100 - 50 * ERROR])
    return Estimate(value, float(low), float(high))


def further(real: Cloud, synthetic: Cloud) -> tuple[np.ndarray, np.ndarray]:
    """For real and for synthetic patients: share of slices that are further from the other set than from their own.

    Half the sum of the means is the adversarial accuracy (Yale et al. 2020). The own patient does not count.
    """
    of_real = real.to(synthetic).min(1) > real.to_other_patients()
    of_synthetic = synthetic.to(real).min(1) > synthetic.to_other_patients()
    return real.means(of_real), synthetic.means(of_synthetic)


def adversarial(space: str, synthetic: Cloud, members: Cloud, others: Cloud, rng: np.random.Generator) -> Metric:
    """Privacy loss of Yale et al. 2020: adversarial accuracy on the hold-out minus that on training patients."""
    patients, count = np.unique(synthetic.owners), len(np.unique(members.owners))
    drawn = synthetic.of(rng.choice(patients, min(count, len(patients)), replace=False).tolist())
    (held, s_held), (seen, s_seen) = further(others, drawn), further(members, drawn)
    return metric(
        "leakage.adversarial-accuracy",
        _mean_interval([held, seen, s_held - s_seen], [0.5, -0.5, 0.5]),
        {"space": space},
        n=2 * count,
        reference=0.0,
        detail=f"up to 0.5 for copies; {count} members and others, {min(count, len(patients))} synthetic patients; "
        "interval over patients of each set",
    )


def _closest(queries: Cloud, synthetic: Cloud) -> np.ndarray:
    """Distance of the closest slice of each patient to the synthetic slices."""
    near = queries.to(synthetic).min(1)
    return np.array([near[rows].min() for rows in rows_of(queries.owners).values()])


def copied(space: str, synthetic: Cloud, members: Cloud, others: Cloud, limit_from: Cloud) -> Metric:
    """Share of members with a slice nearer to a synthetic one than any slice of the reference patients is.

    The same rule on other hold-out patients gives the false-alarm rate that is subtracted.
    """
    limit = _closest(limit_from, synthetic).min()
    hits, alarms = (_closest(q, synthetic) < limit for q in (members, others))
    return metric(
        "leakage.patients-copied",
        _mean_interval([hits, alarms], [1.0, -1.0]),
        {"space": space},
        n=len(hits) + len(alarms),
        reference=0.0,
        detail=f"{hits.sum()} of {len(hits)} members, {alarms.sum()} of {len(alarms)} others (false alarms) have a "
        f"slice nearer to a synthetic one than {limit:.3g}, the least of {len(np.unique(limit_from.owners))} other "
        "hold-out patients; interval over patients",
    )


def _sides(
    train: Sequence[PatientRecord], holdout: Sequence[PatientRecord], rng: np.random.Generator
) -> tuple[Sides, Sides] | str:
    """All hold-out patients against as many members, and half of them with the other half as reference; or why not."""
    first, second = halves(holdout, rng)
    whole, half = matched(train, holdout, rng), matched(train, first, rng)
    if min(len(half[0]), len(second)) < FEWEST:
        return (
            f"{len(train)} training and {len(holdout)} hold-out patients leave {len(half[0])} pairs of the same group "
            f"and vendor and {len(second)} reference patients; {FEWEST} of each are needed. "
            f"Do: hold out at least {2 * FEWEST} patients of the groups and vendors that are trained on"
        )
    return Sides(*whole, []), Sides(*half, [record.patient_id for record in second])


def leakage(
    synthetic: SliceSet,
    train: SliceSet,
    holdout: SliceSet,
    features: dict[str, np.ndarray],
    extractor: str,
    records: tuple[Sequence[PatientRecord], Sequence[PatientRecord]],
    claim: Claim | None,
    seed: int = 0,
    installed: Mapping[str, InstalledAttack] = NONE,
) -> Findings:
    """Black-box attacks in pixels and in features.

    Args:
        synthetic: The set to attack.
        train: Members.
        holdout: Others; those who are in training by their images are left out.
        features: Name of a set => its features (N, D).
        extractor: Name of the features.
        records: Groups and vendors of the training and hold-out patients.
        claim: (ε, δ) of the set, if it has one.
        seed: Decides which patients are compared.
        installed: Black-box attacks of plugins, by name.
    """
    again, rng = repeated_patients(train, holdout), np.random.default_rng(seed)
    sides = _sides(records[0], [r for r in records[1] if r.patient_id not in again], rng)
    if len(synthetic.patients) < 2:
        sides = "one synthetic patient is not a set. Do: draw more"
    if isinstance(sides, str):
        return Findings(metrics=(unavailable("leakage.membership", sides, {"space": "black-box"}),))
    whole, half = sides
    sets, out = (synthetic, train, holdout), too_few("black-box", len(whole.others)) + ceiling_series(claim)
    spaces = {
        "pixels": [s.points for s in sets],
        extractor: [Points(features[s.name], s.owners, s.device) for s in sets],
    }
    for space, points in spaces.items():
        drawn, seen, held = map(Cloud.whole, points)
        for attack in attacks(space, drawn, seen, held, whole, half, installed):
            out += attack_findings(attack, claim)
        out += Findings(
            metrics=(
                adversarial(space, drawn, seen.of(whole.members), held.of(whole.others), rng),
                copied(space, drawn, seen.of(half.members), held.of(half.others), held.of(half.reference)),
            )
        )
        for each in points:
            each.forget()
    return out

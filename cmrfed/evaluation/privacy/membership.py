"""Membership attacks as statistics: scores of patients in, AUC, ROC, controls and the ceiling of a claim out.

A score is one number per patient, higher for those who look more like members. Members were learned from.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cmrfed.data.cohort import PatientRecord
from cmrfed.evaluation.results.catalogue import attack_words, metric, say, series, unavailable
from cmrfed.evaluation.results.result import CLAIM_REFUTED, CONTROL_FAILED, Estimate, Findings, Metric, Notice

FEWEST = 5
"""Patients of each kind below which an attack is not scored."""
LEVELS = {"fpr-1e-1": 0.1, "fpr-1e-2": 0.01, "fpr-1e-3": 0.001}
"""False-positive rates at which the share of members that are found is reported, by their key."""
DRAWS = 2000
ERROR = 0.05
"""Error rate of all intervals, and of calling a claim broken although it holds."""
CONTROL_ERROR = 0.01
"""Error rate of calling a control failed although it is not: a failed control hides a value."""


@dataclass(frozen=True)
class Scores:
    """One finite score per patient: of members (M,), of others (N,)."""

    members: np.ndarray
    others: np.ndarray


@dataclass(frozen=True)
class Attack:
    """An attack and its control: the same attack where there is nothing to find.

    Args:
        key: Which attack, such as ``nearest-neighbour``.
        space: In which space, or with which access.
        scores: Of the patients that are compared.
        control: Of the same or fresh patients where there is nothing to find.
        control_name: What the control is, in words.
        detail: What its score is.
    """

    key: str
    space: str
    scores: Scores
    control: Scores
    control_name: str
    detail: str

    @property
    def of(self) -> dict[str, str | None]:
        """Qualifiers of its metrics."""
        return {"attack": self.key, "space": self.space}


@dataclass(frozen=True)
class Claim:
    """What is promised per patient: (ε, δ)."""

    epsilon: float
    delta: float

    def ceiling(self, fpr: np.ndarray) -> np.ndarray:
        """Largest share of members that any attack can find, at each false-positive rate.

        TPR <= e^ε FPR + δ, and the same of the other hypothesis: 1 - FPR <= e^ε (1 - TPR) + δ (Kairouz et al.,
        arXiv 1311.0776).
        """
        rise = math.exp(min(self.epsilon, 700.0))
        return np.clip(np.minimum(rise * fpr + self.delta, 1 - (1 - self.delta - fpr) / rise), 0, 1)


# --- fair sets ------------------------------------------------------------------------------------
def _strata(records: Iterable[PatientRecord], rng: np.random.Generator) -> dict[tuple[str, str], list[str]]:
    """Patients by group and vendor, in random order."""
    out: dict[tuple[str, str], list[str]] = {}
    for record in records:
        out.setdefault((record.group or "", record.vendor or ""), []).append(record.patient_id)
    return {key: list(rng.permutation(names)) for key, names in sorted(out.items())}


def matched(
    members: Sequence[PatientRecord], others: Sequence[PatientRecord], rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Equally many members and others, of each group and vendor too."""
    left, right = _strata(members, rng), _strata(others, rng)
    pairs = [(a, b) for key in left.keys() & right.keys() for a, b in zip(left[key], right[key], strict=False)]
    return sorted(a for a, _ in pairs), sorted(b for _, b in pairs)


def halves(
    records: Sequence[PatientRecord], rng: np.random.Generator
) -> tuple[list[PatientRecord], list[PatientRecord]]:
    """Two halves with about equally many of each group and vendor."""
    by_name = {record.patient_id: record for record in records}
    order = [by_name[name] for names in _strata(records, rng).values() for name in names]
    return order[::2], order[1::2]


# --- statistics -----------------------------------------------------------------------------------
def _wins(scores: Scores) -> np.ndarray:
    """(M, N): 1 where the member scores higher, 0.5 where both score the same."""
    members, others = scores.members[:, None], scores.others[None]
    return (members > others) + 0.5 * (members == others)


def auc(scores: Scores, seed: int = 0) -> Estimate:
    """Probability that a member scores higher than another, ties counting half; both groups are resampled."""
    wins, rng = _wins(scores), np.random.default_rng(seed)
    a, b = (rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) for n in wins.shape)
    low, high = np.percentile(((a @ wins) * b).sum(1) / wins.size, [50 * ERROR, 100 - 50 * ERROR])
    return Estimate(float(wins.mean()), float(low), float(high))


def p_value(scores: Scores) -> float:
    """Two-sided p-value of members and non-members scoring alike (Mann and Whitney 1947)."""
    if np.ptp(np.concatenate([scores.members, scores.others])) == 0:
        return 1.0
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(scores.members, scores.others).pvalue)


def _found(members: np.ndarray, others: np.ndarray, fpr: float) -> np.ndarray:
    """Share of members (…, M) above the threshold that at most ``fpr`` of others (…, N) exceed."""
    allowed = math.floor(fpr * others.shape[-1] + 1e-9)
    threshold = -np.sort(-others, axis=-1)[..., allowed]
    return (members > threshold[..., None]).mean(-1)


def tpr_at(scores: Scores, fpr: float, seed: int = 0) -> Estimate:
    """Share of members that are found while at most ``fpr`` of others are called members; both are resampled."""
    rng = np.random.default_rng(seed)
    a, b = (x[rng.integers(len(x), size=(DRAWS, len(x)))] for x in (scores.members, scores.others))
    low, high = np.percentile(_found(a, b, fpr), [50 * ERROR, 100 - 50 * ERROR])
    return Estimate(float(_found(scores.members, scores.others, fpr)), float(low), float(high))


def roc(members: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-positive rate at every threshold, from (0, 0) to (1, 1)."""
    a, b = np.sort(members), np.sort(others)
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([a, b]))[::-1]])
    counts = [(len(x) - np.searchsorted(x, thresholds, "left")) / len(x) for x in (b, a)]
    return counts[0], counts[1]


def broken(scores: Scores, claim: Claim) -> tuple[float, float] | None:
    """(FPR, TPR) of a threshold at which members are found more often than the claim allows, or None.

    Exact intervals of both rates (Clopper and Pearson 1934), in both directions of the score, with the error shared
    among all thresholds: a claim that holds is called broken in at most one of twenty data sets.
    """
    from scipy.stats import beta

    for sign in (1, -1):
        fpr, tpr = roc(sign * scores.members, sign * scores.others)
        level = ERROR / (4 * len(fpr))
        m, n = len(scores.members), len(scores.others)
        hits, alarms = np.rint(tpr * m), np.rint(fpr * n)
        least = np.where(hits > 0, beta.ppf(level, hits, m - hits + 1), 0.0)
        most = np.where(alarms < n, beta.ppf(1 - level, alarms + 1, n - alarms), 1.0)
        above = np.flatnonzero(least > claim.ceiling(most))
        if len(above):
            return float(fpr[above[0]]), float(tpr[above[0]])
    return None


# --- findings ---------------------------------------------------------------------------------------
def _rate(attack: Attack, quantity: str, detail: str) -> Metric:
    scores, level = attack.scores, LEVELS[quantity]
    return metric(
        "leakage.tpr",
        tpr_at(scores, level),
        {**attack.of, "quantity": quantity},
        n=len(scores.members) + len(scores.others),
        reference=level,
        detail=f"steps of {1 / len(scores.members):.2g}; {detail}",
    )


def _auc_metric(key: str, attack: Attack, estimate: Estimate, scores: Scores, detail: str) -> Metric:
    n = len(scores.members) + len(scores.others)
    return metric(key, estimate, attack.of, n=n, reference=0.5, detail=detail)


def _direction(estimate: Estimate) -> str:
    if excludes_chance(estimate.low, estimate.high):
        return "better than chance" if estimate.value > 0.5 else "inverted: members score lower, which tells as much"
    return "no better than chance"


def excludes_chance(low: float | None, high: float | None) -> bool:
    """Whether an interval of an AUC leaves out chance, on either side."""
    return low is not None and high is not None and not low <= 0.5 <= high


def attack_findings(attack: Attack, claim: Claim | None) -> Findings:
    """AUC, rates and control of one attack; without values where its control failed."""
    scores, control = attack.scores, auc(attack.control)
    checked = _auc_metric("leakage.control", attack, control, attack.control, attack.control_name)
    if p_value(attack.control) < CONTROL_ERROR:
        reason = (
            f"failed its control: AUC {control.value:.2f} ({control.low:.2f} to {control.high:.2f}) with "
            f"{attack.control_name}, where 0.5 is expected, so its value is no evidence. Do: compare patients of the "
            "same scanners and groups, or more of them; a control fails by chance once in a hundred times"
        )
        return Findings(metrics=(unavailable("leakage.auc", reason, attack.of, code=CONTROL_FAILED), checked))
    estimate, (m, n) = auc(scores), (len(scores.members), len(scores.others))
    words = f"{_direction(estimate)}; {m} members, {n} others; interval over patients; {attack.detail}"
    rates = tuple(_rate(attack, key, f"{m} members, {n} others") for key, level in LEVELS.items() if n * level >= 1)
    return Findings(
        metrics=(_auc_metric("leakage.auc", attack, estimate, scores, words), *rates, checked),
        warnings=_refuted(attack, claim),
        series=(series("leakage.scores", {"members": scores.members, "others": scores.others}, attack.of),),
    )


def _refuted(attack: Attack, claim: Claim | None) -> tuple[Notice, ...]:
    """The warning that a claim does not hold, where it does not."""
    point = broken(attack.scores, claim) if claim else None
    if point is None or claim is None:
        return ()
    numbers = {"epsilon": claim.epsilon, "delta": claim.delta, "fpr": point[0], "tpr": point[1]}
    return (Notice(code=CLAIM_REFUTED, text=say("leakage.refuted", attack=attack_words(attack.of), **numbers)),)


def too_few(access: str, others: int) -> Findings:
    """Rates at which so few non-members allow no statement, one row each; ``access`` is black-box or white-box."""
    return Findings(
        metrics=tuple(
            unavailable(
                "leakage.tpr",
                f"{others} non-members allow no statement below 1/{others}. "
                f"Do: hold out at least {math.ceil(1 / level)} patients",
                {"space": access, "quantity": key},
            )
            for key, level in LEVELS.items()
            if others * level < 1
        )
    )


def ceiling_series(claim: Claim | None) -> Findings:
    """The claim's bound for the ROC plot."""
    if claim is None:
        return Findings()
    fpr = np.unique(np.concatenate([np.linspace(0, 1, 101), np.geomspace(1e-4, 1e-2, 20)]))
    return Findings(series=(series("leakage.ceiling", {"fpr": fpr, "tpr": claim.ceiling(fpr)}),))

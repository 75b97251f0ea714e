"""What a cardiologist reads off masks: volumes in ml, ejection fraction, myocardial mass; and errors in them."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from cmrfed.data.labels import Label, Phase
from cmrfed.data.spool import release
from cmrfed.evaluation.results.result import Estimate, mean_interval
from cmrfed.evaluation.slices import SliceSet, rows_of
from cmrfed.evaluation.utility.surface_distance import Spacing

MYOCARDIUM_G_PER_ML = 1.05
"""Density of the myocardium (SCMR, Schulz-Menger et al. 2020, doi 10.1186/s12968-020-00610-6)."""

UNITS = {
    "lv-edv": "ml",
    "lv-esv": "ml",
    "lv-ef": "percent",
    "rv-edv": "ml",
    "rv-esv": "ml",
    "rv-ef": "percent",
    "myocardial-mass": "g",
}
"""Clinical quantity → key of its unit."""

Counts = Mapping[tuple[Phase, Label], int]
"""Phase and structure => voxels."""


def quantities(counts: Counts, spacing: Spacing | None) -> dict[str, float]:
    """The clinical numbers of one patient, as far as they can be had.

    Args:
        counts: Voxels of each structure that was looked for, at each phase that there is.
        spacing: Row, column and slice spacing in mm; None leaves volumes and mass out, while the ejection fraction,
            a ratio, needs none.
    """
    ml = None if spacing is None else float(np.prod(spacing)) / 1000
    out: dict[str, float] = {}
    for chamber in (Label.LV, Label.RV):
        voxels = {phase: counts[phase, chamber] for phase in Phase if (phase, chamber) in counts}
        if ml is not None:
            out |= {f"{chamber.name.lower()}-{phase.name.lower()}v": n * ml for phase, n in voxels.items()}
        if len(voxels) == 2 and voxels[Phase.ED]:
            out[f"{chamber.name.lower()}-ef"] = 100 * (1 - voxels[Phase.ES] / voxels[Phase.ED])
    if ml is not None and (Phase.ED, Label.MYO) in counts:
        out["myocardial-mass"] = counts[Phase.ED, Label.MYO] * ml * MYOCARDIUM_G_PER_ML
    return out


def patient_quantities(slices: SliceSet, labels: Iterable[Label]) -> dict[str, np.ndarray]:
    """Quantity => its value for each patient whose masks give one, (P,)."""
    labels = tuple(labels)
    counts: dict[str, dict[tuple[Phase, Label], int]] = {}
    spacing: dict[str, Spacing | None] = {}
    for case, rows in rows_of(slices.cases).items():
        masks = slices.masks[rows[slices.has_mask[rows]]]
        if not len(masks):
            continue
        patient, _, phase = case.rpartition("_")
        mine = {(Phase[phase], label): int((masks == label).sum()) for label in labels}
        counts.setdefault(patient, {}).update(mine)
        spacing[patient] = slices.spacing.get(case)
    release(slices.masks)
    each = [quantities(counts[patient], spacing[patient]) for patient in sorted(counts)]
    return {name: np.array([q[name] for q in each if name in q]) for name in UNITS if any(name in q for q in each)}


class Agreement(NamedTuple):
    """Bland and Altman 1986: mean difference with its interval, and bias -/+ 1.96 SD of the differences."""

    bias: Estimate
    lower: float
    upper: float


def agreement(differences: np.ndarray) -> Agreement:
    """Agreement of two ways of measuring, from the difference of each patient (P,), P >= 2."""
    differences = np.asarray(differences, float)
    bias, spread = mean_interval(differences), float(differences.std(ddof=1))
    return Agreement(bias, bias.value - 1.96 * spread, bias.value + 1.96 * spread)

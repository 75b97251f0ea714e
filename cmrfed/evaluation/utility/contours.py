"""What segmentations are worth beside Dice: distances of their outlines, and errors of the volumes read off them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cmrfed.data.labels import Label, Phase
from cmrfed.evaluation.anatomy.clinical import UNITS, agreement, quantities
from cmrfed.evaluation.results.catalogue import metric, series, unavailable
from cmrfed.evaluation.results.result import Findings, Metric, mean_interval
from cmrfed.evaluation.utility.segmenter import VolumeDice

Runs = Sequence[Sequence[VolumeDice]]
"""The volumes of a test set, once for every seed."""

ERRORS = ("lv-ef", "lv-edv", "lv-esv")
"""Clinical quantities whose errors are reported."""
DISTANCES = ("hd95", "assd")


@dataclass(frozen=True)
class Scored:
    """What a segmenter's numbers are of: the qualifiers of its metrics.

    Args:
        test: Test set.
        segmenter: Key of a segmenter that is not the reference.
        trained: Arm.
        named: Qualifier → words that the catalogue does not have.
    """

    test: str
    segmenter: str | None = None
    trained: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)

    def arm(self, key: str, words: str | None = None) -> "Scored":
        """The same of an arm."""
        return replace(self, trained=key, named={**self.named, **({"arm": words} if words else {})})

    @property
    def of(self) -> dict[str, str | None]:
        """The qualifiers of a metric id."""
        return {"arm": self.trained, "test": self.test, "segmenter": self.segmenter}


def distance_metrics(scored: Scored, runs: Runs, real: Runs) -> list[Metric]:
    """HD95 and ASSD of an arm, beside those of the arm of real slices."""
    volumes = [v for run in runs for v in run]
    known = all(v.spacing_mm is not None for v in volumes)
    if not known and any(v.spacing_mm is not None for v in volumes):
        reason = "some volumes have a spacing and others none. Do: test on cohorts of one kind each"
        return [unavailable(f"utility.{key}", reason, scored.of, named=scored.named) for key in DISTANCES]
    penalised = sum(_penalised(v) for v in volumes)
    detail = f"mean over structures, volumes and seeds; missed or invented structures: {penalised} in {len(volumes)} "
    detail += "segmented volumes, each counted as the volume's diagonal; interval over patients"
    detail += "" if known else "; spacing unknown, slices taken as one pixel apart"
    out = []
    for key in DISTANCES:
        mine, theirs = (_patient_distances(r, key) for r in (runs, real))
        out.append(
            metric(
                f"utility.{key}",
                mean_interval(mine),
                scored.of,
                n=len(mine),
                unit="mm" if known else "pixels",
                reference=None if runs is real else float(theirs.mean()),
                detail=detail,
                named=scored.named,
            )
        )
    return out


def _penalised(volume: VolumeDice) -> int:
    """Structures that only one of prediction and mask has."""
    return sum((found == 0) != (drawn == 0) for found, drawn in volume.voxels.values())


def _patient_distances(runs: Runs, key: str) -> np.ndarray:
    """Mean distance over the structures of each patient, (P,), each structure first over volumes and seeds."""
    values: dict[str, dict[Label, list[float]]] = {}
    for volume in (v for run in runs for v in run):
        for label, distance in volume.surface.items():
            if distance is not None:
                values.setdefault(volume.patient_id, {}).setdefault(label, []).append(getattr(distance, key))
    return np.array([np.mean([np.mean(v) for v in values[p].values()]) for p in sorted(values)])


# --- clinical errors ----------------------------------------------------------------------------
def _measured(run: Sequence[VolumeDice], which: int) -> dict[str, dict[str, float]]:
    """Patient => clinical numbers of the prediction (0) or of the mask (1)."""
    counts: dict[str, dict[tuple[Phase, Label], int]] = {}
    spacing = {v.patient_id: v.spacing_mm for v in run}
    for volume in run:
        mine = {(volume.phase, label): pair[which] for label, pair in volume.voxels.items()}
        counts.setdefault(volume.patient_id, {}).update(mine)
    return {patient: quantities(mine, spacing[patient]) for patient, mine in counts.items()}


def errors(runs: Runs, quantity: str) -> tuple[np.ndarray, int]:
    """Prediction minus mask of each patient, mean over seeds, (P,); and how many times a prediction gave no value."""
    differences: dict[str, list[float]] = {}
    without = 0
    for run in runs:
        found, drawn = _measured(run, 0), _measured(run, 1)
        for patient in sorted(drawn):
            if quantity not in drawn[patient]:
                continue
            if quantity not in found[patient]:
                without += 1
                continue
            differences.setdefault(patient, []).append(found[patient][quantity] - drawn[patient][quantity])
    return np.array([np.mean(differences[p]) for p in sorted(differences)]), without


def clinical_findings(scored: Scored, runs: Runs) -> Findings:
    """Bias and limits of agreement of ejection fraction and volumes, and the errors in the former for a plot."""
    metrics, plots = [], []
    scaled = any(v.spacing_mm is not None for run in runs for v in run)
    for quantity in ERRORS if scaled else ERRORS[:1]:
        values, without = errors(runs, quantity)
        metrics.append(_bias_metric(scored, quantity, values, without))
        if quantity == ERRORS[0] and len(values):
            of = {**scored.of, "arm": None}
            groups = {str(scored.trained): values}
            plots.append(series("utility.ejection-fraction-error", groups, of, named=scored.named))
    return Findings(metrics=tuple(metrics), series=tuple(plots))


def unscaled_metric(scored: Scored, runs: Runs) -> tuple[Metric, ...]:
    """The reason, once for a test set, why no volume has an error in ml; nothing where one has."""
    if any(v.spacing_mm is not None for run in runs for v in run):
        return ()
    reason = "the spacing of its patients is unknown. Do: prepare it from files whose headers hold the spacing"
    of = {**scored.of, "quantity": "volumes"}
    return (unavailable("utility.clinical-error", reason, of, named=scored.named),)


def _bias_metric(scored: Scored, quantity: str, values: np.ndarray, without: int) -> Metric:
    key, of, unit = "utility.clinical-error", {**scored.of, "quantity": quantity}, UNITS[quantity]
    if len(values) < 2:
        need = " and a known spacing" if unit == "ml" else ""
        reason = f"fewer than two patients have it. Do: test on a cohort with the LV at ED and ES{need}"
        return unavailable(key, reason, of, named=scored.named)
    found = agreement(values)
    lost = f"; {without} prediction(s) without an LV cavity at ED are left out" if without else ""
    return metric(
        key,
        found.bias,
        of,
        n=len(values),
        unit="percentage-points" if unit == "percent" else unit,
        reference=0.0,
        detail=f"bias, predicted minus annotated; limits of agreement {found.lower:.1f} to {found.upper:.1f} (for the "
        f"mean over seeds); interval of the bias over patients{lost}",
        named=scored.named,
    )

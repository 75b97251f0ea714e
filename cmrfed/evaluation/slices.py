"""All slices of a set in memory: the form in which the evaluator compares sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from cmrfed.core.artifacts import digest_bytes, digest_json
from cmrfed.core.errors import EvaluationError
from cmrfed.data.cohort import Cohort
from cmrfed.data.synthetic import SyntheticDataset
from cmrfed.evaluation.utility.segmenter import LabelledSlices

CONSTANT = 1e-3
"""A slice whose standard deviation is below this, on a range of 2, shows nothing."""


@dataclass(frozen=True)
class SliceSet:
    """Slices with their owners.

    images: float32 (N, H, W) in [-1, 1]. masks: uint8 (N, H, W) canonical. owners: str (N,), the patient.
    cases: str (N,), ``<patient>_<ED|ES>``. has_mask: bool (N,).
    spacing: Case => row, column and slice spacing in mm, or None.
    drawn: The masks before post-processing, as ``masks``; None: there was none.
    post_processing: What was done to them, in words.
    pseudonyms: Name of a case in images that were made of real patients => case; empty for others.
    """

    name: str
    images: np.ndarray
    masks: np.ndarray
    owners: np.ndarray
    cases: np.ndarray
    has_mask: np.ndarray
    spacing: Mapping[str, tuple[float, float, float] | None] = field(default_factory=dict)
    drawn: np.ndarray | None = None
    post_processing: str = ""
    pseudonyms: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def patients(self) -> np.ndarray:
        """Sorted names of the owners."""
        return np.unique(self.owners)

    @property
    def constant(self) -> np.ndarray:
        """Which slices show nothing: bool (N,)."""
        return self.images.std((1, 2)) < CONSTANT

    @property
    def digest(self) -> str:
        """Digest of the content."""
        parts = [self.images.tobytes(), self.masks.tobytes(), "|".join(self.cases).encode()]
        return digest_json([digest_bytes(part) for part in parts])

    def take(self, index: np.ndarray) -> "SliceSet":
        """The chosen slices: numbers or a boolean choice."""
        arrays = {k: getattr(self, k)[index] for k in ("images", "masks", "owners", "cases", "has_mask")}
        return replace(self, drawn=None if self.drawn is None else self.drawn[index], **arrays)

    def labelled(self) -> LabelledSlices:
        """The slices that have masks, for a segmenter."""
        chosen = self.take(self.has_mask)
        images = torch.from_numpy(np.asarray(chosen.images, np.float32))[:, None]
        return LabelledSlices(images, torch.from_numpy(np.asarray(chosen.masks, np.int64)))

    def of_patients(self, patients: Sequence[str] | np.ndarray) -> "SliceSet":
        """The slices of these patients."""
        return self.take(np.isin(self.owners, patients))


def joined(
    name: str,
    parts: Sequence[tuple[str, str, np.ndarray, np.ndarray | None]],
    spacing: Mapping[str, tuple[float, float, float] | None],
) -> SliceSet:
    """Stack (patient, phase, image (Z, H, W), mask or None) entries; ``spacing`` is that of each case."""
    counts = [len(image) for _, _, image, _ in parts]
    return SliceSet(
        name=name,
        images=np.concatenate([np.asarray(p[2], np.float32) for p in parts]),
        masks=np.concatenate([np.zeros(p[2].shape, np.uint8) if p[3] is None else p[3] for p in parts]),
        owners=np.repeat(np.array([p[0] for p in parts]), counts),
        cases=np.repeat(np.array([f"{p[0]}_{p[1]}" for p in parts]), counts),
        has_mask=np.repeat(np.array([p[3] is not None for p in parts]), counts),
        spacing=spacing,
    )


def slices_of_cohort(cohort: Cohort) -> SliceSet:
    """Read a cohort."""
    if not len(cohort):
        raise EvaluationError(f"cohort {cohort.name} is empty", expected="at least one patient", do="add patients")
    volumes = list(cohort.iter_volumes())
    spacing = {f"{v.patient_id}_{v.phase.name}": v.spacing_mm for v in volumes}
    found = joined(cohort.name, [(v.patient_id, v.phase.name, v.image, v.mask) for v in volumes], spacing)
    names = {f"{cohort.pseudonym(v.patient_id)}_{v.phase.name}": f"{v.patient_id}_{v.phase.name}" for v in volumes}
    return replace(found, pseudonyms=names)


def slices_of_synthetic(data: SyntheticDataset, size_px: int) -> SliceSet:
    """Read a synthetic data set.

    Raises:
        EvaluationError: Its slices are of another size than the real ones, or hold what is not a number.
    """
    parts, spacing, drawn = [], {}, []
    for case in data.cases():
        if case.image.shape[1:] != (size_px, size_px):
            raise EvaluationError(
                f"case {case.case_id} of {data.root.name} is of another size than the real slices",
                got=f"{case.image.shape[1]} x {case.image.shape[2]} px",
                expected=f"{size_px} x {size_px} px",
                do="compare with a cohort prepared in the size of the synthetic images",
            )
        if not np.isfinite(case.image).all():
            raise EvaluationError(
                f"case {case.case_id} of {data.root.name} holds values that are no numbers",
                got="NaN or infinity",
                expected="values in [-1, 1]",
                do="synthesise again",
            )
        parts.append((case.patient_id, case.phase.name, case.image, case.mask))
        spacing[f"{case.patient_id}_{case.phase.name}"] = case.spacing_mm
        drawn += [] if case.drawn is None else [case.drawn]
    found = joined(data.manifest.name, parts, spacing)
    if not (done := data.manifest.post_processed):
        return found
    before = np.concatenate(drawn)
    changed = int((found.masks != before).any((1, 2)).sum())  # counted here: the manifest is what others say
    return replace(found, drawn=before, post_processing=f"{done.method} changed {changed} of {len(before)} slices")


def patient_means(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Mean of each patient's slices, (P,), from one value and one owner a slice, (N,)."""
    return np.array([values[owners == p].mean() for p in np.unique(owners)])

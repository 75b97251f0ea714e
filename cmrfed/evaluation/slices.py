"""All slices of a set: the form in which the evaluator compares sets. Pixels lie in a spool, not in memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmrfed.core.artifacts import digest_bytes, digest_json
from cmrfed.core.device import HOST
from cmrfed.core.errors import EvaluationError
from cmrfed.data.cohort import Cohort
from cmrfed.data.spool import Spool, blocks, digest_array, release
from cmrfed.data.synthetic import Case, SyntheticDataset
from cmrfed.evaluation.privacy.nearest import Points
from cmrfed.evaluation.utility.segmenter import LabelledSlices

CONSTANT = 1e-3
"""A slice whose standard deviation is below this, on a range of 2, shows nothing."""


@dataclass(frozen=True)
class SliceSet:
    """Slices with their owners.

    images: float32 (N, H, W) in [-1, 1], memory-mapped: read them in `blocks`. masks: uint8 (N, H, W) canonical, as
    images are. owners: str (N,), the patient.
    cases: str (N,), ``<patient>_<ED|ES>``. has_mask: bool (N,).
    spacing: Case => row, column and slice spacing in mm, or None.
    drawn: The masks before post-processing, as ``masks``; None: there was none.
    post_processing: What was done to them, in words.
    pseudonyms: Name of a case in images that were made of real patients => case; empty for others.
    scratch: Folder for the pixels of selections; None: the system's folder for temporary files.
    device: Where slices are compared.
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
    scratch: Path | None = None
    device: torch.device = HOST

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def patients(self) -> np.ndarray:
        """Sorted names of the owners."""
        return np.unique(self.owners)

    @cached_property
    def points(self) -> Points:
        """The slices as vectors of pixels; neighbours that were searched once are kept with them."""
        return Points(self.images.reshape(len(self), -1), self.owners, self.device)

    @cached_property
    def constant(self) -> np.ndarray:
        """Which slices show nothing: bool (N,)."""
        spread = [block.std((1, 2)) for _, block in blocks(self.images)]
        return np.concatenate(spread) < CONSTANT if spread else np.zeros(0, bool)

    @property
    def digest(self) -> str:
        """Digest of the content."""
        names = digest_bytes("|".join(self.cases).encode())
        return digest_json([digest_array(self.images), digest_array(self.masks), names])

    def take(self, index: np.ndarray) -> "SliceSet":
        """The chosen slices: numbers or a boolean choice."""
        if index.dtype == bool and index.all():
            return self
        rows = np.flatnonzero(index) if index.dtype == bool else index
        images, masks = (chosen_rows(each, rows, self.scratch) for each in (self.images, self.masks))
        drawn = None if self.drawn is None else chosen_rows(self.drawn, rows, self.scratch)
        names: dict[str, Any] = {k: getattr(self, k)[rows] for k in _NAMES}
        return replace(self, images=images, masks=masks, drawn=drawn, **names)

    def labelled(self) -> LabelledSlices:
        """The slices that have masks, for a segmenter."""
        chosen = self.take(self.has_mask)
        return LabelledSlices(torch.from_numpy(chosen.images)[:, None], torch.from_numpy(chosen.masks))

    def of_patients(self, patients: Sequence[str] | np.ndarray) -> "SliceSet":
        """The slices of these patients."""
        return self.take(np.isin(self.owners, patients))


_NAMES = ("owners", "cases", "has_mask")


def chosen_rows(array: np.ndarray, rows: np.ndarray, folder: Path | None) -> np.ndarray:
    """These rows (K,) of an array, in a spool of their own; ``folder`` as in `Spool`."""
    spool = Spool(array.shape[1:], array.dtype, folder)
    for _, part in blocks(rows):
        spool.add(array[part])
        release(array)
    return spool.array()


Part = tuple[str, str, np.ndarray, np.ndarray | None]
"""Patient, phase, image (Z, H, W), and mask or None."""


def joined(
    name: str,
    parts: Iterable[Part],
    spacing: Mapping[str, tuple[float, float, float] | None],
    size_px: int,
    scratch: Path | None = None,
) -> SliceSet:
    """Stack parts, taken one by one.

    Args:
        name: Of the set.
        parts: In order.
        spacing: That of each case.
        size_px: Height and width of every slice.
        scratch: Folder with room for the pixels; None: the system's folder for temporary files.
    """
    images, masks = (Spool((size_px, size_px), kind, scratch) for kind in (np.float32, np.uint8))
    counts, owners, cases, masked = [], [], [], []
    for patient, phase, image, mask in parts:
        images.add(image)
        masks.add(np.zeros(image.shape, np.uint8) if mask is None else mask)
        counts.append(len(image))
        owners.append(patient)
        cases.append(f"{patient}_{phase}")
        masked.append(mask is not None)
    names = (np.repeat(np.array(each), np.array(counts, int)) for each in (owners, cases, masked))
    named: dict[str, Any] = dict(zip(_NAMES, names, strict=True))
    return SliceSet(name, images.array(), masks.array(), **named, spacing=spacing, scratch=scratch)


def slices_of_cohort(cohort: Cohort, scratch: Path | None = None) -> SliceSet:
    """Read a cohort; ``scratch`` as in `joined`."""
    if not len(cohort):
        raise EvaluationError(f"cohort {cohort.name} is empty", expected="at least one patient", do="add patients")
    spacing: dict[str, tuple[float, float, float] | None] = {}
    names: dict[str, str] = {}

    def parts() -> Iterator[Part]:
        for v in cohort.iter_volumes():
            case = f"{v.patient_id}_{v.phase.name}"
            spacing[case] = v.spacing_mm
            names[f"{cohort.pseudonym(v.patient_id)}_{v.phase.name}"] = case
            yield v.patient_id, v.phase.name, v.image, v.mask
            release(cohort.images)

    return replace(joined(cohort.name, parts(), spacing, cohort.size_px, scratch), pseudonyms=names)


def slices_of_synthetic(data: SyntheticDataset, size_px: int, scratch: Path | None = None) -> SliceSet:
    """Read a synthetic data set; ``scratch`` as in `joined`.

    Raises:
        EvaluationError: Its slices are of another size than the real ones, or hold what is not a number.
    """
    spacing: dict[str, tuple[float, float, float] | None] = {}
    drawn = Spool((size_px, size_px), np.uint8, scratch)

    def parts() -> Iterator[Part]:
        for case in data.cases():
            _check_case(case, data.root.name, size_px)
            spacing[f"{case.patient_id}_{case.phase.name}"] = case.spacing_mm
            if case.drawn is not None:
                drawn.add(case.drawn)
            yield case.patient_id, case.phase.name, case.image, case.mask

    found = joined(data.manifest.name, parts(), spacing, size_px, scratch)
    if not (done := data.manifest.post_processed):
        return found
    before = drawn.array()
    changed = sum(int((block != before[place]).any((1, 2)).sum()) for place, block in blocks(found.masks))
    # counted here: the manifest is what others say
    return replace(found, drawn=before, post_processing=f"{done.method} changed {changed} of {len(before)} slices")


def _check_case(case: Case, name: str, size_px: int) -> None:
    if case.image.shape[1:] != (size_px, size_px):
        raise EvaluationError(
            f"case {case.case_id} of {name} is of another size than the real slices",
            got=f"{case.image.shape[1]} x {case.image.shape[2]} px",
            expected=f"{size_px} x {size_px} px",
            do="compare with a cohort prepared in the size of the synthetic images",
        )
    if not np.isfinite(case.image).all():
        raise EvaluationError(
            f"case {case.case_id} of {name} holds values that are no numbers",
            got="NaN or infinity",
            expected="values in [-1, 1]",
            do="synthesise again",
        )


def rows_of(names: np.ndarray) -> dict[str, np.ndarray]:
    """Name, in order => its rows, ascending."""
    each, order = np.unique(names), np.argsort(names, kind="stable")
    starts = np.searchsorted(names[order], each)
    return dict(zip(each.tolist(), np.split(order, starts[1:]), strict=False))  # of no names, one empty part


def patient_means(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Mean of each patient's slices, (P,), from one value and one owner a slice, (N,)."""
    return np.array([values[rows].mean() for rows in rows_of(owners).values()])

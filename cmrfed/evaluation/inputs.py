"""Reads what is to be evaluated: a data set of this project, or a folder of others, distinguished by its content.

Folders of others go through the importers of real data. Their slices are compared as they stand when they already
have the size of the real ones; otherwise they are cropped about the heart and resampled as the real ones were. Grey
values that already lie in [-1, 1] are kept; otherwise each volume is scaled as the real ones were. What cannot be
used is set aside and named. Masks are taken as drawn, however wrong: measuring them is the point.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmrfed.core.artifacts import digest_bytes, digest_folder
from cmrfed.core.errors import CmrfedError, DataError, EvaluationError
from cmrfed.core.progress import track
from cmrfed.data.cohort import CohortHeader
from cmrfed.data.geometry.orientation import lies_otherwise
from cmrfed.data.preparation.account import kinds_of
from cmrfed.data.preparation.checks import by_cavity, check_volume
from cmrfed.data.preparation.prepare import PrepareConfig, crop, heart_centre, scale
from cmrfed.data.sources import DataSet, RawArrays, RawPatient, RawVolume, read
from cmrfed.data.sources.raw import nifti_files, stem_of
from cmrfed.data.synthetic import SyntheticDataset
from cmrfed.evaluation.slices import Part, SliceSet, joined, slices_of_synthetic

NAMED_MOST = 20
"""Largest number of cases that a warning names."""
LAYOUTS = {"nnunet": "nnU-Net v2 raw folder", "acdc": "ACDC-layout folder"}


@dataclass(frozen=True)
class EvaluatedSet:
    """What is to be evaluated: its slices, the digest of their source, and what a reader must know about both."""

    slices: SliceSet
    digest: str
    warnings: tuple[str, ...] = ()


def layout_of(root: Path) -> str:
    """Say which layout a folder has: "cmrfed", "nnunet" or "acdc".

    Raises:
        EvaluationError: It has none of the three.
    """
    if (root / "manifest.json").is_file():
        return "cmrfed"
    if (root / "dataset.json").is_file() and any((root / f"images{part}").is_dir() for part in ("Tr", "Ts")):
        return "nnunet"
    if root.is_dir() and any(re.search(r"_frame\d+$", stem_of(path)) for path in nifti_files(root)):
        return "acdc"
    raise EvaluationError(
        f"{root} is not a data set that can be evaluated",
        got="a folder of none of these layouts" if root.is_dir() else "no such folder",
        expected="a data set made by `cmrfed synthesize` (manifest.json), an nnU-Net v2 raw folder (dataset.json, "
        "imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz), or ACDC layout (PATIENT/PATIENT_frame01.nii.gz, "
        "PATIENT_frame01_gt.nii.gz, Info.cfg)",
        do="check the path, or bring the data set into one of the three",
    )


def read_dataset(root: Path, real: CohortHeader, scratch: Path | None = None) -> EvaluatedSet:
    """Read the data set to evaluate.

    Args:
        root: A data set of this project, an nnU-Net v2 raw folder or an ACDC-layout folder.
        real: Header of the cohort that it is compared with: the size and preparation of its slices.
        scratch: Folder with room for the pixels; None: the system's folder for temporary files.

    Raises:
        EvaluationError: The folder has no known layout, or no case of it can be used.
    """
    layout = layout_of(root)
    if layout == "cmrfed":
        data = SyntheticDataset.open(root)
        if data.manifest.real_content:
            raise EvaluationError(
                f"{root} is no synthetic data set",
                got=f"real {' and '.join(data.manifest.real_content)} of patients in it",
                expected="a data set that was drawn as a whole, such as RUN_DIR/synthetic",
                do="name that one with --synthetic; paired and reconstructed images have options of their own",
            )
        return EvaluatedSet(slices_of_synthetic(data, real.size_px, scratch), digest_folder(data.root))
    return _Foreign(root, layout, real).read(scratch)


def preparation_of(real: CohortHeader) -> PrepareConfig:
    """The settings by which the real slices were prepared; defaults where the cohort does not say."""
    known = {k: v for k, v in real.preparation.items() if k in ("field_px", "field_mm") and v is not None}
    low, high = (real.preparation.get(f"percentile_{end}") for end in ("low", "high"))
    if low is not None and high is not None:
        known["percentiles"] = (low, high)  # type: ignore[assignment]
    return PrepareConfig.model_validate({**known, "size_px": real.size_px})


class _Foreign:
    """One reading of a folder of others: collects what is used, what is set aside and what was done."""

    def __init__(self, root: Path, layout: str, real: CohortHeader) -> None:
        self.root, self.layout, self.config = root, layout, preparation_of(real)
        self.count = 0
        self.spacing: dict[str, tuple[float, float, float] | None] = {}
        self.aside: list[tuple[str, str]] = []
        self.unmasked: list[str] = []
        self.sizes: dict[tuple[int, ...], int] = {}
        self.resampled = self.rescaled = 0
        self.seen: dict[str, str] = {}
        self.left_out: tuple[str, ...] = ()
        self.notes: dict[str, list[str]] = {}
        """What had to be assumed of the files' geometry → patients."""

    def read(self, scratch: Path | None) -> EvaluatedSet:
        patients = read(self.root, self.layout)
        self.left_out = tuple(f"not read, {kind.text()}" for kind in kinds_of(patients.left_out))
        slices = joined(self.root.name, self._parts(patients), self.spacing, self.config.size_px, scratch)
        if not self.count:
            raise EvaluationError(
                f"no case of {self.root} can be used",
                got="; ".join(f"{case}: {why}" for case, why in self.aside[:3]),
                expected="at least one readable case",
                do="correct the files",
            )
        return EvaluatedSet(slices, slices.digest, self._warnings())

    def _parts(self, patients: DataSet) -> Iterator[Part]:
        with track(f"reading {self.root.name}", len(patients)) as bar:
            for patient in patients:
                yield from self._patient(patient)
                bar.advance(note=patient.patient_id)

    def _patient(self, patient: RawPatient) -> Iterator[Part]:
        if patient.problem is not None:
            self.aside.append((patient.patient_id, str(patient.problem)))
        loaded: list[tuple[RawVolume, RawArrays]] = []
        for volume in patient.volumes:
            case = f"{patient.patient_id}_{volume.phase.name}"
            try:
                loaded.append((volume, self._load(case, volume)))
            except DataError as error:
                self.aside.append((case, str(error)))
        if patient.phases_assumed and len(loaded) == len(patient.volumes):
            volumes, ordered, _ = by_cavity(patient, [a for _, a in loaded])
            loaded = list(zip(volumes, ordered, strict=True))
        self._note(patient, [a for _, a in loaded])
        for volume, arrays in loaded:
            case = f"{patient.patient_id}_{volume.phase.name}"
            try:
                image, mask, spacing = self._fit(arrays, [a for _, a in loaded], case)
            except CmrfedError as error:
                self.aside.append((case, str(error)))
                continue
            self.count += 1
            self.spacing[case] = spacing
            self.unmasked += [case] if mask is None else []
            yield patient.patient_id, volume.phase.name, image, mask

    def _note(self, patient: RawPatient, loaded: Sequence[RawArrays]) -> None:
        """Keep what had to be assumed of a patient's geometry. Masks decide nothing: they are measured."""
        turned = ("the right ventricle lies on the side of the lateral wall",) if lies_otherwise(loaded) else ()
        for note in dict.fromkeys((*(n for a in loaded for n in a.notes), *turned)):
            self.notes.setdefault(note, []).append(patient.patient_id)

    def _load(self, case: str, volume: RawVolume) -> RawArrays:
        """Read a volume that shows something and is not a copy of another one."""
        arrays = volume.load()
        if problems := check_volume(arrays.image, None, ()):
            raise DataError("; ".join(problems))
        twin = self.seen.setdefault(digest_bytes(arrays.image.tobytes()), case)
        if twin != case:
            raise DataError(f"the same image as {twin}")
        return arrays

    def _fit(
        self, arrays: RawArrays, of_patient: Sequence[RawArrays], case: str
    ) -> tuple[np.ndarray, np.ndarray | None, tuple[float, float, float] | None]:
        """Bring a volume to the size and grey values of the real slices; see the module's docstring."""
        image, mask, spacing, size = arrays.image, arrays.mask, arrays.spacing_mm, self.config.size_px
        resample, rescale = image.shape[1:] != (size, size), image.min() >= 0 or np.abs(image).max() > 1
        if resample:
            drawn = [a for a in of_patient if a.image.shape[1:] == image.shape[1:]]
            if mask is not None and not mask.any():
                raise DataError("its mask is empty, so the heart cannot be found in a larger image")
            image, mask = crop(arrays, heart_centre(drawn)[0], self.config)
            pixel = self.config.field_mm / size
            spacing = None if spacing is None else (pixel, pixel, spacing[2])
        if rescale:
            image = scale(image, self.config.percentiles, case)
        self.resampled, self.rescaled = self.resampled + resample, self.rescaled + bool(rescale)
        shape = arrays.image.shape[1:]
        self.sizes[shape] = self.sizes.get(shape, 0) + 1
        return image.astype(np.float32), mask, spacing

    def _warnings(self) -> tuple[str, ...]:
        count, config = self.count, self.config
        sizes = ", ".join(f"{h} x {w} px ({n})" for (h, w), n in sorted(self.sizes.items()))
        known = sum(s is not None for s in self.spacing.values())
        done = (
            f"{self.root.name}: read as {LAYOUTS[self.layout]}, {count} cases of {sizes}. Cropped about the heart and "
            f"resampled to {config.size_px} px: {self.resampled}, the others are compared as they stand. Grey values "
            f"scaled from the percentiles {config.percentiles[0]:g} and {config.percentiles[1]:g} of each volume: "
            f"{self.rescaled}, the others lie in [-1, 1] already. Spacing known: {known}"
        )
        named = [f"{case} ({why})" for case, why in self.aside]
        lists = {"set aside": named, "without a mask (in fidelity and leakage only)": self.unmasked}
        notes = [
            f"{len(patients)} patients: {note} ({', '.join(patients[:3])})" for note, patients in self.notes.items()
        ]
        return (
            done,
            *self.left_out,
            *(_listed(text, names, count + len(self.aside)) for text, names in lists.items() if names),
            *notes,
        )


def _listed(text: str, names: Sequence[str], total: int) -> str:
    more = f" and {len(names) - NAMED_MOST} more" if len(names) > NAMED_MOST else ""
    return f"{len(names)} of {total} synthetic cases {text}: {'; '.join(names[:NAMED_MOST])}{more}"

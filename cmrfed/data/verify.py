"""Check scans or cohorts before they are used: every file that cannot be used gets its reason, none is touched."""

import gzip
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from scipy import ndimage

from cmrfed.artifacts import digest_bytes, digest_json
from cmrfed.data.account import kinds_of
from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import STRUCTURES, Label
from cmrfed.data.sources import SOURCES, RawPatient, RawVolume, read
from cmrfed.data.sources.walk import walk
from cmrfed.errors import DataError
from cmrfed.progress import track
from cmrfed.text import read_text

COHORT = "cohort"
MIN_RING = 0.7
"""Least share of the LV's outline that must border on myocardium (140 ACDC volumes: 0.998 and more; with LV and RV
swapped at most 0.42)."""


@dataclass(frozen=True)
class Quarantined:
    """A file or patient that should not be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and what is wrong with it."""

    checked: tuple[str, ...]
    """One line for each path: what it was read as, and how much it holds."""
    quarantined: tuple[Quarantined, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.quarantined

    def text(self) -> str:
        """The report for a reader."""
        lines = [f"checked {line}" for line in self.checked]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"  {item.path}: {item.reason}" for item in self.quarantined]
        count = len(self.quarantined)
        return "\n".join([*lines, "nothing wrong was found" if self.ok else f"{count} problem(s) found"])


@dataclass
class _Findings:
    """What a run over several paths has found so far."""

    wrong: list[Quarantined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seen: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Digest of an image → the patient and file where it was first seen."""

    def add(self, path: Path | str, *reasons: str) -> None:
        self.wrong += [Quarantined(str(path), reason) for reason in reasons]

    def add_if_seen(self, path: Path | str, patient: str, image: np.ndarray) -> None:
        """Report an image that was seen before; ``patient`` names path and patient."""
        content = np.ascontiguousarray(image, np.float32)
        key = f"{content.shape}{digest_bytes(content.tobytes())}"
        owner, place = self.seen.setdefault(key, (patient, str(path)))
        if place != str(path):
            what = "both phases show the same image" if owner == patient else "the same patient under two identifiers"
            self.add(path, f"same image as {place}: {what}")


def verify(path: Path, source: str | None = None, *, strict: bool = False) -> VerifyReport:
    """Check one folder of scans or one cohort; see :func:`verify_many`."""
    return verify_many([path], source, strict=strict)


def verify_many(paths: Sequence[Path], source: str | None = None, *, strict: bool = False) -> VerifyReport:
    """Check folders of scans or cohorts, and seek the same image under two patients across all of them.

    Finds: truncated or damaged files, values that are not finite, image and mask that differ in shape or affine,
    unexpected labels, swapped LV and RV, empty masks, constant images, masks without image, a phase without its
    mask, and duplicates (equal pixel values; a resampled or rescaled copy is not found).

    Args:
        paths: Folders; each a data set in a supported layout or a cohort made by `cmrfed prepare`.
        source: A key of ``sources.SOURCES`` or "cohort"; None finds it out for each path.
        strict: Raise when anything is wrong.

    Raises:
        ConfigError: The source is not known.
        DataError: A path is of no known layout, or with ``strict`` anything is wrong.
    """
    checked, found = [], _Findings()
    for path in (Path(p) for p in paths):
        kind = detect(path) if source is None else source
        line = _inspect_cohort(path, found) if kind == COHORT else _inspect_scans(path, kind, found)
        checked.append(f"{path} ({kind}): {line}")
    report = VerifyReport(tuple(checked), tuple(found.wrong), tuple(found.notes))
    if strict and not report.ok:
        raise DataError(
            f"{len(report.quarantined)} problem(s) found",
            got="; ".join(f"{item.path}: {item.reason}" for item in report.quarantined[:5]),
            expected="none",
            do="repair or remove them, or leave out --strict to see all of them",
        )
    return report


def detect(path: Path) -> str:
    """Find out the layout of a folder.

    Raises:
        DataError: No layout fits; the error says why each does not.
    """
    if (path / "cohort.json").is_file():
        return COHORT
    if (path / "dataset.json").is_file():
        return "nnunet"
    reasons, tree = [], walk(path)
    for source in ("mnms2", "mnms", "acdc"):
        try:
            next(SOURCES[source](tree))
        except DataError as error:
            reasons.append(f"{source}: {error}")
        else:
            return source
    raise DataError(
        f"{path} is of no known layout",
        got=" | ".join(reasons),
        expected=f"{', '.join(SOURCES)} or a cohort",
        do="check the folder, or name its layout with --source",
    )


# --- one volume -------------------------------------------------------------------------------
def check_volume(image: np.ndarray, mask: np.ndarray | None, annotated_labels: Iterable[int]) -> list[str]:
    """Say what is wrong with a volume.

    Args:
        image: (Z, H, W), any range.
        mask: (Z, H, W), canonical labels; None where there is none.
        annotated_labels: Structures that the annotators drew in this data set. A rule that needs a structure
            which they did not draw is left out (Sunnybrook, for example, has the LV alone).

    Returns:
        Reasons, empty when nothing is wrong.
    """
    problems = []
    if not np.isfinite(image).all():
        problems.append(f"the image holds {int((~np.isfinite(image)).sum())} values that are NaN or infinite")
    elif image.min() == image.max():
        problems.append(f"the image is constant: {float(image.flat[0])} everywhere")
    if mask is None:
        return problems
    if mask.shape != image.shape:
        return [*problems, f"image and mask differ in shape: {image.shape} and {mask.shape}"]
    strange = sorted({int(v) for v in np.unique(mask)} - {int(label) for label in Label})
    if strange:
        return [*problems, f"the mask holds unexpected labels {strange}"]
    return problems + _check_mask(mask, {Label(v) for v in annotated_labels} - {Label.BACKGROUND})


def _check_mask(mask: np.ndarray, annotated: set[Label]) -> list[str]:
    if not mask.any():
        return ["the mask is empty"]
    absent = [label.name for label in STRUCTURES if label in annotated and not (mask == label).any()]
    if absent:
        return [f"the mask lacks {' and '.join(absent)}"]
    problems = []
    if annotated >= {Label.LV, Label.MYO, Label.RV} and not lv_is_nearer(mask):
        problems.append("LV and RV seem swapped: the RV's centroid is nearer to the myocardium's than the LV's is")
    elif annotated >= {Label.LV, Label.MYO} and (share := ring_share(mask)) < MIN_RING:
        problems.append(
            f"the myocardium does not enclose the LV: it borders on {share:.0%} of the LV's outline, "
            f"at least {MIN_RING:.0%} is expected (swapped labels?)"
        )
    return problems


def lv_is_nearer(mask: np.ndarray) -> bool:
    """Whether the LV's in-plane centroid lies nearer to the myocardium's than the RV's does."""
    lv, rv, myo = (
        np.array([axis.mean() for axis in np.nonzero(mask == label)[1:]]) for label in (Label.LV, Label.RV, Label.MYO)
    )
    return bool(np.linalg.norm(lv - myo) < np.linalg.norm(rv - myo))


def ring_share(mask: np.ndarray) -> float:
    """Share of the pixels around the LV (in plane) that are myocardium."""
    cross = ndimage.generate_binary_structure(2, 1)[None]
    lv = mask == Label.LV
    around = ndimage.binary_dilation(lv, cross) & ~lv
    return float((mask[around] == Label.MYO).mean()) if around.any() else 0.0


# --- scans ------------------------------------------------------------------------------------
def _inspect_scans(path: Path, kind: str, found: _Findings) -> str:
    data = read(path, kind)
    drawn: dict[Path, set[int]] = {}
    owners: dict[Path, int] = {}
    wrong: set[int] = set()
    for left in kinds_of(data.left_out):
        if left.lost:
            found.add(path, f"cannot be read, {left.text()}")
        else:
            found.notes.append(f"{path}: not read, {left.text()}")
    with track(f"verifying {path.name}", len(data)) as progress:
        for number, patient in enumerate(data):
            before = len(found.wrong)
            if patient.skipped:
                found.notes.append(str(patient.problem))
            elif patient.problem is not None:
                found.add(patient.path, str(patient.problem))
            for volume in patient.volumes:
                owners[volume.image_path] = number
                drawn[volume.image_path] = _inspect_volume(volume, f"{path}:{patient.patient_id}", found)
            _compare_phases(patient, found)
            wrong |= {number} if len(found.wrong) > before else set()
            progress.advance(note=patient.patient_id)
    annotated: set[int] = set().union(*drawn.values())
    for image_path, labels in drawn.items():
        if labels and labels != annotated:
            absent = " and ".join(Label(v).name for v in sorted(annotated - labels))
            found.add(image_path, f"the mask lacks {absent}, which other volumes have")
            wrong.add(owners[image_path])
    skipped = sum(patient.skipped for patient in data)
    counts = f"{len(data) - skipped - len(wrong)} in order, {len(wrong)} with problems, {skipped} skipped"
    return f"{len(data)} patients, {sum(len(p.volumes) for p in data)} volumes: {counts}"


def _inspect_volume(volume: RawVolume, patient: str, found: _Findings) -> set[int]:
    """Check one volume of scans; returns the structures that are drawn in it."""
    files = [p for p in (volume.image_path, volume.mask_path) if p is not None]
    damage = [(p, reason) for p in files if (reason := _damage(p))]
    for path, reason in damage:
        found.add(path, reason)
    if damage:
        return set()
    try:
        arrays = volume.load()
    except DataError as error:
        found.add(volume.mask_path or volume.image_path, str(error))
        return set()
    if volume.mask_path is not None and (reason := _geometry_problem(volume.image_path, volume.mask_path)):
        found.add(volume.mask_path, reason)
    labels = set() if arrays.mask is None else {int(v) for v in np.unique(arrays.mask)} - {0}
    found.add(volume.image_path, *check_volume(arrays.image, arrays.mask, labels))
    if arrays.image.min() < arrays.image.max():
        found.add_if_seen(_place(volume), patient, arrays.image)
    return labels


def _place(volume: RawVolume) -> str:
    return str(volume.image_path) + ("" if volume.frame is None else f" frame {volume.frame}")


def _damage(path: Path) -> str | None:
    """Read a gzip file to its end, so that the checksum is tested; says what is wrong with it."""
    if path.suffix != ".gz":
        return None
    try:
        with gzip.open(path) as handle:
            while handle.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error) as error:
        return f"the file is truncated or damaged: {error}"
    return None


def _geometry_problem(image: Path, mask: Path) -> str | None:
    """Compare the affines, which place the voxels in space."""
    first, second = (np.asarray(cast(Any, nib.load(p)).affine) for p in (image, mask))
    if np.allclose(first, second, atol=1e-3):
        return None
    spacings = [np.round(nib.affines.voxel_sizes(a), 3).tolist() for a in (first, second)]
    return f"image and mask differ in geometry (affine): voxels of {spacings[0]} and {spacings[1]} mm"


def _compare_phases(patient: RawPatient, found: _Findings) -> None:
    masked = [v for v in patient.volumes if v.mask_path is not None]
    if patient.volumes and not masked:
        found.notes.append(f"{patient.path}: no mask; its images alone can be used")
    elif len(masked) < len(patient.volumes):
        for volume in patient.volumes:
            if volume.mask_path is None:
                found.add(volume.image_path, "its mask is missing, while the other phase has one")


# --- cohorts ----------------------------------------------------------------------------------
def _inspect_cohort(path: Path, found: _Findings) -> str:
    cohort = Cohort.open(path)
    try:
        if _content_digest(cohort) != cohort.header.digest:
            found.add(path, "the content does not have the digest of cohort.json: prepare the cohort again")
        for i, record in enumerate(cohort.patients):
            for volume in cohort.volumes(i):
                place = f"{path}:{record.patient_id}_{volume.phase.name}"
                found.add(place, *check_volume(volume.image, volume.mask, cohort.labels))
                found.add_if_seen(place, f"{path}:{record.patient_id}", volume.image)
    except (DataError, ValueError) as error:  # ValueError: a damaged line of patients.jsonl
        found.add(path, str(error))
        return "cannot be read to its end"
    return f"{len(cohort)} patients, {cohort.header.slices} slices"


def _content_digest(cohort: Cohort) -> str:
    lines = read_text(cohort.root / "patients.jsonl").split("\n")[:-1]
    arrays = (cohort.slices, cohort.images, cohort.masks)
    return digest_json([lines, [digest_bytes(np.ascontiguousarray(a).tobytes()) for a in arrays]])

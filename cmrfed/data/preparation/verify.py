"""Check scans or cohorts before they are used: every file that cannot be used gets its reason, none is touched."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cmrfed.core.artifacts import digest_bytes, digest_json
from cmrfed.core.errors import DataError
from cmrfed.core.text import read_text
from cmrfed.data.cohort import Cohort
from cmrfed.data.preparation.account import kinds_of
from cmrfed.data.preparation.checks import Problem, Twins, check_volume, image_key
from cmrfed.data.preparation.prepare import PrepareConfig, assess, grouped_notes
from cmrfed.data.sources import DICOM, SOURCES, holds_dicom, read
from cmrfed.data.sources.walk import walk

COHORT = "cohort"


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and what is wrong with it."""

    checked: tuple[str, ...]
    """One line for each path: what it was read as, and how much it holds."""
    quarantined: tuple[Problem, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.quarantined

    def text(self) -> str:
        """The report for a reader."""
        lines = [f"checked {line}" for line in self.checked]
        lines += [f"note: {note}" for note in self.notes]
        lines += [
            f"  {item.reason if item.path in item.reason else f'{item.path}: {item.reason}'}"
            for item in self.quarantined
        ]
        count = len(self.quarantined)
        return "\n".join([*lines, "nothing wrong was found" if self.ok else f"{count} problem(s) found"])


@dataclass
class _Findings:
    """What a run over several paths has found so far."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    twins: Twins = field(default_factory=Twins)

    def add(self, path: Path | str, *reasons: str) -> None:
        self.problems += [Problem(str(path), reason) for reason in reasons]


def verify(path: Path, source: str | None = None, *, strict: bool = False) -> VerifyReport:
    """Check one folder of scans or one cohort; see :func:`verify_many`."""
    return verify_many([path], source, strict=strict)


def verify_many(paths: Sequence[Path], source: str | None = None, *, strict: bool = False) -> VerifyReport:
    """Check folders of scans or cohorts, and seek the same image under two patients across all of them.

    Finds: truncated or damaged files, values that are not finite, a mask that cannot be brought onto its image,
    unexpected labels, swapped LV and RV, empty masks, constant images, masks without image, a phase without its
    mask, and duplicates (equal pixel values in any order of axes; a resampled or rescaled copy is not found). Of
    scans it names exactly the patients that `prepare` would set aside.

    Args:
        paths: Folders; each a data set in a supported layout or a cohort made by `cmrfed prepare`.
        source: A name in ``sources.SOURCES`` or "cohort"; None finds it out for each path.
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
    report = VerifyReport(tuple(checked), tuple(found.problems), tuple(found.notes))
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
    if not tree.nifti and holds_dicom(tree):
        return DICOM
    for source in ("mnms2", "mnms", "acdc"):
        try:
            next(SOURCES.get(source)(tree))
        except DataError as error:
            reasons.append(f"{source}: {error}")
        else:
            return source
    raise DataError(
        f"{path} is of no known layout",
        got=" | ".join(reasons),
        expected=f"{', '.join(SOURCES.names)} or a cohort",
        do="check the folder, or name its layout with --source",
    )


# --- scans ------------------------------------------------------------------------------------
def _inspect_scans(path: Path, kind: str, found: _Findings) -> str:
    """Ask what `prepare` asks; see :func:`cmrfed.data.preparation.prepare.assess`."""
    data = read(path, kind)
    for left in kinds_of(data.left_out):
        if left.lost:
            found.add(path, f"cannot be read, {left.text()}")
        else:
            found.notes.append(f"{path}: not read, {left.text()}")
    verdicts = assess(
        data.patients,
        PrepareConfig(),
        title=f"verifying {path.name}",
        twins=found.twins,
        owner=lambda patient: f"{path}:{patient}",
    )
    for verdict in verdicts:
        if verdict.patient.skipped:
            found.notes.append(str(verdict.patient.problem))
        else:
            found.problems += verdict.problems
    notes = grouped_notes((v.patient.patient_id, v.notes) for v in verdicts)
    found.notes += [f"{path}: {note}" for note in notes]
    skipped = sum(patient.skipped for patient in data)
    accepted = sum(verdict.prepared is not None for verdict in verdicts)
    counts = f"{accepted} in order, {len(data) - accepted - skipped} with problems, {skipped} skipped"
    return f"{len(data)} patients, {sum(len(p.volumes) for p in data)} volumes: {counts}"


# --- cohorts ----------------------------------------------------------------------------------
def _inspect_cohort(path: Path, found: _Findings) -> str:
    try:
        cohort = Cohort.open(path)
        if _content_digest(cohort) != cohort.header.digest:
            found.add(path, "the content does not have the digest of cohort.json: prepare the cohort again")
        for i, record in enumerate(cohort.patients):
            images = []
            for volume in cohort.volumes(i):
                place = f"{path}:{record.patient_id}_{volume.phase.name}"
                found.add(place, *check_volume(volume.image, volume.mask, cohort.labels))
                images.append((place, image_key(volume.image)))
            found.problems += found.twins.problems(f"{path}:{record.patient_id}", images)
    except (DataError, ValueError) as error:  # ValueError: a damaged line of patients.jsonl
        found.add(path, str(error))
        return "cannot be read to its end"
    return f"{len(cohort)} patients, {cohort.header.slices} slices"


def _content_digest(cohort: Cohort) -> str:
    lines = read_text(cohort.root / "patients.jsonl").split("\n")[:-1]
    arrays = (cohort.slices, cohort.images, cohort.masks)
    return digest_json([lines, [digest_bytes(np.ascontiguousarray(a).tobytes()) for a in arrays]])

"""The M&Ms layout: 4-D ``SID/SID_sa[_gt].nii[.gz]`` at any depth and one CSV of patients.

Source: Campello et al., IEEE TMI 2021, doi 10.1109/TMI.2021.3090082. ED and ES in the CSV are 0-based; the
masks are non-zero in these two frames only; patients without ``_gt`` are unlabelled.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cmrfed.data.labels import MNMS_LABELS, Phase
from cmrfed.data.sources.raw import RawPatient, RawVolume, find_nifti, guarded, nifti_files, no_patients, stem_of
from cmrfed.data.sources.table import PatientTable, cell
from cmrfed.errors import DataError


def read(src: Path) -> Iterator[RawPatient]:
    """Yield the patients that have an ``SID_sa`` file at or below ``src``.

    Raises:
        DataError: There is no such file, or no CSV with a column "External code".
    """
    images = [(stem_of(p).removesuffix("_sa"), p) for p in nifti_files(src) if stem_of(p).endswith("_sa")]
    if not images:
        raise no_patients(src, "M&Ms", "A0S9V9/A0S9V9_sa.nii.gz")
    table = PatientTable(src, "External code")
    for name, path in sorted(images):
        yield guarded(name, path, partial(_patient, name, path, table))


def _patient(name: str, path: Path, table: PatientTable) -> RawPatient:
    row = table.row(name)
    mask = find_nifti(path.parent, f"{name}_sa_gt")
    volumes = (RawVolume(p, path, mask, MNMS_LABELS, _frame(name, row, p)) for p in Phase)
    return RawPatient(
        name,
        tuple(volumes),
        group=cell(row, "Pathology"),
        vendor=cell(row, "VendorName") or cell(row, "Vendor"),
        centre=cell(row, "Centre"),
        notes=() if mask else ("unlabelled: the source has no mask of this patient",),
        path=path,
    )


def _frame(name: str, row: dict[str, str], phase: Phase) -> int:
    value = cell(row, phase.name)
    try:
        return int(float(value or ""))
    except ValueError:
        raise DataError(
            f"the CSV does not say which frame of {name} is {phase.name}",
            got=value,
            expected="a frame number from 0",
            do="complete the row",
        ) from None

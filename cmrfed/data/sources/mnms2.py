"""The M&Ms-2 layout: ``NNN/NNN_SA_{ED,ES}[_gt].nii[.gz]`` at any depth and ``dataset_information.csv``.

Source: Martín-Isla et al., IEEE JBHI 2023, doi 10.1109/JBHI.2023.3267857. Long-axis files are left alone.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cmrfed.data.labels import MNMS_LABELS, Phase
from cmrfed.data.sources.raw import RawPatient, RawVolume, find_nifti, guarded, nifti_files, no_patients, stem_of
from cmrfed.data.sources.table import PatientTable, cell
from cmrfed.errors import DataError


def read(src: Path) -> Iterator[RawPatient]:
    """Yield the patients that have an ``NNN_SA_ED`` or ``NNN_SA_ES`` file at or below ``src``.

    Raises:
        DataError: There is no such file, or no CSV with a column "SUBJECT_CODE".
    """
    images = (p for p in nifti_files(src) if stem_of(p).endswith(("_SA_ED", "_SA_ES")))
    folders = {(stem_of(p).rsplit("_SA_", 1)[0], p.parent) for p in images}
    if not folders:
        raise no_patients(src, "M&Ms-2", "001/001_SA_ED.nii.gz")
    table = PatientTable(src, "SUBJECT_CODE", digits=3)
    for name, folder in sorted(folders):
        yield guarded(name, folder, partial(_patient, name, folder, table))


def _patient(name: str, folder: Path, table: PatientTable) -> RawPatient:
    row, volumes = table.row(name), []
    for phase in Phase:
        image = find_nifti(folder, f"{name}_SA_{phase.name}")
        if image is None:
            raise DataError(f"{name} lacks a phase", expected=f"{name}_SA_{phase.name}.nii.gz in {folder}")
        mask = find_nifti(folder, f"{name}_SA_{phase.name}_gt")
        volumes.append(RawVolume(phase, image, mask, MNMS_LABELS))
    return RawPatient(name, tuple(volumes), group=cell(row, "DISEASE"), vendor=cell(row, "VENDOR"), path=folder)

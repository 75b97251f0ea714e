"""The M&Ms-2 layout: ``NNN/NNN_SA_{ED,ES}[_gt].nii[.gz]`` at any depth and ``dataset_information.csv``.

Source: Martín-Isla et al., IEEE JBHI 2023, doi 10.1109/JBHI.2023.3267857. Long-axis files are left alone.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cmrfed.data.labels import MNMS_LABELS, Phase
from cmrfed.data.sources.raw import RawPatient, RawVolume, find_nifti, guarded, nifti_files, stem_of
from cmrfed.data.sources.table import cell, find_table, read_table
from cmrfed.errors import DataError


def read(src: Path) -> Iterator[RawPatient]:
    """Yield the patients that have an ``NNN_SA_ED`` or ``NNN_SA_ES`` file at or below ``src``.

    Raises:
        DataError: There is no such file, or no CSV with a column "SUBJECT_CODE".
    """
    images = (p for p in nifti_files(src) if stem_of(p).endswith(("_SA_ED", "_SA_ES")))
    folders = {(stem_of(p).rsplit("_SA_", 1)[0], p.parent) for p in images}
    if not folders:
        raise DataError(
            f"{src} holds no patient in M&Ms-2 layout",
            expected="001/001_SA_ED.nii.gz, at any depth",
            do="check the folder, or name the right --source",
        )
    table = read_table(find_table(src, "SUBJECT_CODE"), "SUBJECT_CODE")
    rows = {code.zfill(3): row for code, row in table.items()}
    for name, folder in sorted(folders):
        yield guarded(name, folder, partial(_patient, name, folder, rows.get(name)))


def _patient(name: str, folder: Path, row: dict[str, str] | None) -> RawPatient:
    if row is None:
        raise DataError(f"{name} is not in the CSV", expected="a row with this SUBJECT_CODE", do="add the row")
    volumes = []
    for phase in Phase:
        image = find_nifti(folder, f"{name}_SA_{phase.name}")
        if image is None:
            raise DataError(f"{name} lacks a phase", expected=f"{name}_SA_{phase.name}.nii.gz in {folder}")
        mask = find_nifti(folder, f"{name}_SA_{phase.name}_gt")
        volumes.append(RawVolume(phase, image, mask, MNMS_LABELS))
    return RawPatient(name, tuple(volumes), group=cell(row, "DISEASE"), vendor=cell(row, "VENDOR"), path=folder)

"""The M&Ms-2 layout: ``NNN/NNN_SA_{ED,ES}[_gt].nii[.gz]`` at any depth and ``dataset_information.csv``.

Source: Martín-Isla et al., IEEE JBHI 2023, doi 10.1109/JBHI.2023.3267857. Long-axis files and whole cines are left
alone.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cmrfed.core.errors import DataError
from cmrfed.data.labels import MNMS_LABELS, Phase
from cmrfed.data.sources.raw import RawPatient, RawVolume, guarded, no_patients
from cmrfed.data.sources.seen import folders_without_images, in_table_alone, once, without_images
from cmrfed.data.sources.table import PatientTable, cell
from cmrfed.data.sources.walk import Tree, stem_of

VOLUME = re.compile(r"(?P<patient>.+)_SA_(?P<phase>ED|ES)(?P<mask>_gt)?", re.IGNORECASE)
_KNOWN = re.compile(r".+_(LA_(ED|ES)(_gt)?|LA_CINE|SA_CINE)", re.IGNORECASE)
KEY = "SUBJECT_CODE"
DIGITS = 3
EXPECTED = "001/001_SA_ED.nii.gz"
_COLUMNS = ("DISEASE", "VENDOR")


def read(tree: Tree) -> Iterator[RawPatient]:
    """Yield the patients that have an ``NNN_SA_ED`` or ``NNN_SA_ES`` file, a mask, a folder or a row of the table.

    Raises:
        DataError: There is no such file, or no CSV with a column "SUBJECT_CODE".
    """
    volumes: dict[tuple[Path, str], tuple[str, list[Path]]] = {}
    for path in sorted([*tree.nifti, *tree.broken_nifti]):
        if match := VOLUME.fullmatch(stem_of(path)):
            volumes.setdefault((path.parent, match["patient"]), (match["patient"], []))[1].append(path)
        elif not _KNOWN.fullmatch(stem_of(path)):
            tree.leave(path, "NIfTI files whose names are not those of the layout")
    if not volumes:
        raise no_patients(tree.root, "M&Ms-2", EXPECTED)
    table = PatientTable(tree, KEY, _COLUMNS, DIGITS)
    kept = once(tree, volumes)
    for folder, name in sorted(kept, key=lambda key: (key[1], key[0])):
        yield guarded(name, folder, partial(_patient, tree, name, folder, table))
    names = {name for _, name in kept}
    bare = folders_without_images(tree, {folder for folder, _ in volumes}, {*names, *table.names})
    for folder in bare:
        yield without_images(tree, folder, EXPECTED)
    yield from in_table_alone(table.others(names | {folder.name for folder in bare}), tree.root)


def _patient(tree: Tree, name: str, folder: Path, table: PatientTable) -> RawPatient:
    row, volumes = table.row(name), []
    for phase in Phase:
        image = tree.find(folder, f"{name}_SA_{phase.name}")
        mask = tree.find(folder, f"{name}_SA_{phase.name}_gt")
        if image is None:
            lone = "its mask is there, its image is missing" if mask else None
            raise DataError(
                f"{name} lacks a phase", got=lone, expected=f"{name}_SA_{phase.name}.nii.gz in {folder}", do="add it"
            )
        volumes.append(RawVolume(phase, image, mask, MNMS_LABELS))
    return RawPatient(
        name,
        tuple(volumes),
        group=cell(row, "DISEASE"),
        vendor=cell(row, "VENDOR"),
        path=folder,
    )

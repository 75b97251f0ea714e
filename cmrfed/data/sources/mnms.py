"""The M&Ms layout: 4-D ``SID/SID_sa[_gt].nii[.gz]`` at any depth and one CSV of patients.

Source: Campello et al., IEEE TMI 2021, doi 10.1109/TMI.2021.3090082. ED and ES in the CSV are 0-based; the
masks are non-zero in these two frames only; patients without ``_gt`` are unlabelled.
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
from cmrfed.data.sources.text import frame_number
from cmrfed.data.sources.walk import Tree, stem_of

FILM = re.compile(r"(?P<patient>.+)_sa(?P<mask>_gt)?", re.IGNORECASE)
KEY = "External code"
EXPECTED = "A0S9V9/A0S9V9_sa.nii.gz"
_COLUMNS = ("ED", "ES", "Pathology", "VendorName", "Vendor", "Centre")


def read(tree: Tree) -> Iterator[RawPatient]:
    """Yield the patients that have an ``SID_sa`` file, a mask, a folder or a row of the table.

    Raises:
        DataError: There is no such file, or no CSV with a column "External code".
    """
    films: dict[tuple[Path, str], tuple[str, list[Path]]] = {}
    for path in sorted([*tree.nifti, *tree.broken_nifti]):
        if match := FILM.fullmatch(stem_of(path)):
            films.setdefault((path.parent, match["patient"]), (match["patient"], []))[1].append(path)
        else:
            tree.leave(path, "NIfTI files whose names are not those of the layout")
    if not films:
        raise no_patients(tree.root, "M&Ms", EXPECTED)
    table = PatientTable(tree, KEY, _COLUMNS)
    kept = once(tree, films)
    for folder, name in sorted(kept, key=lambda key: (key[1], key[0])):
        yield guarded(name, folder, partial(_patient, tree, name, folder, table))
    names = {name for _, name in kept}
    bare = folders_without_images(tree, {folder for folder, _ in films}, {*names, *table.names})
    for folder in bare:
        yield without_images(tree, folder, EXPECTED)
    yield from in_table_alone(table.others(names | {folder.name for folder in bare}), tree.root)


def _patient(tree: Tree, name: str, folder: Path, table: PatientTable) -> RawPatient:
    image, mask = tree.find(folder, f"{name}_sa"), tree.find(folder, f"{name}_sa_gt")
    if image is None:
        raise DataError(f"{mask}: its image is missing", expected=f"{name}_sa.nii.gz beside it", do="add the image")
    row = table.row(name)
    frames = {p: frame_number(cell(row, p.name), p.name, "the CSV", 0, patient=name) for p in Phase}
    return RawPatient(
        name,
        tuple(RawVolume(p, image, mask, MNMS_LABELS, frame) for p, frame in frames.items()),
        group=cell(row, "Pathology"),
        vendor=cell(row, "VendorName") or cell(row, "Vendor"),
        centre=cell(row, "Centre"),
        notes=() if mask else ("unlabelled: the source has no mask of this patient",),
        path=image,
    )

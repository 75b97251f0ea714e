"""Public data sets, each read into the same RawPatient: labels, phases and axes are canonical afterwards."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cmrfed.core.errors import DataError
from cmrfed.core.settings.registry import Registry
from cmrfed.data.sources.raw import RawArrays, RawPatient, RawVolume
from cmrfed.data.sources.walk import LeftOut, Tree, is_dicom, walk

DICOM = "dicom"
_LOOKED_AT = 50
"""Files that are looked at to tell DICOM from other layouts."""

SOURCES: Registry[Callable[[Tree], Iterator[RawPatient]]] = Registry(
    "cmrfed.sources",
    "data source",
    {name: f"cmrfed.data.sources.{name}:read" for name in ("acdc", "dicom", "mnms", "mnms2", "nnunet")},
    fault=lambda name, part: None if callable(part) else f"{part!r}, which is not a function of a Tree",
)

__all__ = ["DICOM", "SOURCES", "DataSet", "LeftOut", "RawArrays", "RawPatient", "RawVolume", "holds_dicom", "read"]


@dataclass(frozen=True)
class DataSet:
    """What a folder holds: everybody who was seen in it, and the files and folders that were not read."""

    patients: tuple[RawPatient, ...]
    left_out: tuple[LeftOut, ...]

    def __iter__(self) -> Iterator[RawPatient]:
        return iter(self.patients)

    def __len__(self) -> int:
        return len(self.patients)


def read(src: Path, source: str, key: bytes | None = None) -> DataSet:
    """Find the patients of a data set; their volumes are read when they are asked for.

    Args:
        src: Folder of the data set; of DICOM also its DICOMDIR.
        source: A name in ``SOURCES``, which installed plugins add to.
        key: Of DICOM, the key of patients' names (:mod:`cmrfed.data.dicom.identity`); one for this time without it.

    Raises:
        ConfigError: The source is not known, or its plugin cannot be loaded.
        DataError: The folder does not hold that data set.
    """
    reader, src = SOURCES.get(source), Path(src)
    if source == DICOM and src.is_file() and src.name.upper() == "DICOMDIR":
        src = src.parent
    tree, keyed = walk(src), cast(Callable[..., Iterator[RawPatient]], reader)
    try:
        patients = tuple(reader(tree) if key is None else keyed(tree, key=key))
    except DataError:
        if source != DICOM and not tree.nifti and holds_dicom(tree):
            raise DataError(
                f"{src} looks like DICOM",
                got="DICOM files, and no NIfTI",
                expected=f"the layout of --source {source}",
                do=f"--source {DICOM}",
            ) from None
        raise
    return DataSet(patients, tuple(tree.left_out))


def holds_dicom(tree: Tree) -> bool:
    """Whether there is DICOM among the first files of a tree."""
    return any(map(is_dicom, tree.files[:_LOOKED_AT]))

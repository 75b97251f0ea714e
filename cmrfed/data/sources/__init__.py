"""Public data sets, each read into the same RawPatient: labels, phases and axes are canonical afterwards."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cmrfed.core.settings.registry import Registry
from cmrfed.data.sources.raw import RawArrays, RawPatient, RawVolume
from cmrfed.data.sources.walk import LeftOut, Tree, walk

SOURCES: Registry[Callable[[Tree], Iterator[RawPatient]]] = Registry(
    "cmrfed.sources",
    "data source",
    {name: f"cmrfed.data.sources.{name}:read" for name in ("acdc", "mnms", "mnms2", "nnunet")},
    fault=lambda name, part: None if callable(part) else f"{part!r}, which is not a function of a Tree",
)

__all__ = ["SOURCES", "DataSet", "LeftOut", "RawArrays", "RawPatient", "RawVolume", "read"]


@dataclass(frozen=True)
class DataSet:
    """What a folder holds: everybody who was seen in it, and the files and folders that were not read."""

    patients: tuple[RawPatient, ...]
    left_out: tuple[LeftOut, ...]

    def __iter__(self) -> Iterator[RawPatient]:
        return iter(self.patients)

    def __len__(self) -> int:
        return len(self.patients)


def read(src: Path, source: str) -> DataSet:
    """Find the patients of a data set; their volumes are read when they are asked for.

    Args:
        src: Folder of the data set.
        source: A name in ``SOURCES``, which installed plugins add to.

    Raises:
        ConfigError: The source is not known, or its plugin cannot be loaded.
        DataError: The folder does not hold that data set.
    """
    reader = SOURCES.get(source)
    tree = walk(Path(src))
    patients = tuple(reader(tree))
    return DataSet(patients, tuple(tree.left_out))

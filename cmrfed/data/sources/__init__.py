"""Public data sets, each read into the same RawPatient: labels, phases and axes are canonical afterwards."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cmrfed.core.errors import ConfigError
from cmrfed.data.sources import acdc, mnms, mnms2, nnunet
from cmrfed.data.sources.raw import RawArrays, RawPatient, RawVolume
from cmrfed.data.sources.walk import LeftOut, Tree, walk

SOURCES: dict[str, Callable[[Tree], Iterator[RawPatient]]] = {
    "acdc": acdc.read,
    "mnms": mnms.read,
    "mnms2": mnms2.read,
    "nnunet": nnunet.read,
}

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
        source: A key of ``SOURCES``.

    Raises:
        ConfigError: The source is not known.
        DataError: The folder does not hold that data set.
    """
    if source not in SOURCES:
        raise ConfigError("unknown source", got=source, expected=", ".join(SOURCES), do="choose one of these")
    tree = walk(Path(src))
    patients = tuple(SOURCES[source](tree))
    return DataSet(patients, tuple(tree.left_out))

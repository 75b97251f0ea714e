"""Public data sets, each read into the same RawPatient: labels, phases and axes are canonical afterwards."""

from collections.abc import Callable, Iterator
from pathlib import Path

from cmrfed.data.sources import acdc, mnms, mnms2, nnunet
from cmrfed.data.sources.raw import RawArrays, RawPatient, RawVolume
from cmrfed.errors import ConfigError

SOURCES: dict[str, Callable[[Path], Iterator[RawPatient]]] = {
    "acdc": acdc.read,
    "mnms": mnms.read,
    "mnms2": mnms2.read,
    "nnunet": nnunet.read,
}

__all__ = ["SOURCES", "RawArrays", "RawPatient", "RawVolume", "read"]


def read(src: Path, source: str) -> Iterator[RawPatient]:
    """Yield the patients of a data set.

    Args:
        src: Folder of the data set.
        source: A key of ``SOURCES``.

    Raises:
        ConfigError: The source is not known.
        DataError: The folder does not hold that data set.
    """
    if source not in SOURCES:
        raise ConfigError("unknown source", got=source, expected=", ".join(SOURCES), do="choose one of these")
    yield from SOURCES[source](Path(src))

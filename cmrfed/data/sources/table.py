"""CSV tables of patients, as M&Ms and M&Ms-2 ship them (with up to a million blank rows)."""

import csv
from collections.abc import Iterator
from pathlib import Path

from cmrfed.errors import DataError


def _filled_lines(path: Path) -> Iterator[str]:
    """The lines of a file that hold more than separators: blank rows never reach the CSV parser."""
    with path.open(encoding="utf-8-sig", errors="replace") as handle:
        yield from (line for line in handle if line.strip(",; \t\r\n"))


class PatientTable:
    """The rows of the CSV that lies with a data set.

    Args:
        src: The folder of the data set.
        key: The column that names the patient.
        digits: Names that are shorter get zeros in front: spreadsheets drop them.

    Raises:
        DataError: No CSV below ``src``, or just above it, has this column.
    """

    def __init__(self, src: Path, key: str, digits: int = 0) -> None:
        self.key = key
        self._rows = {name.zfill(digits): row for name, row in _read(_find(src, key), key).items()}

    def row(self, name: str) -> dict[str, str]:
        """Column => value of one patient.

        Raises:
            DataError: The table does not have this patient.
        """
        if name not in self._rows:
            raise DataError(f"{name} is not in the CSV", expected=f"a row with this {self.key}", do="add the row")
        return self._rows[name]


def _find(src: Path, key: str) -> Path:
    """Find the CSV with the column ``key`` below ``src``, or in the folders just above it."""
    near = [*sorted(src.rglob("*.csv")), *sorted(src.parent.glob("*.csv")), *sorted(src.parent.parent.glob("*.csv"))]
    for path in near:
        if key in (name.strip() for name in next(csv.reader(_filled_lines(path)), [])):
            return path
    raise DataError(
        f"{src} has no table of patients",
        got=[p.name for p in near[:5]] or "no CSV",
        expected=f"a CSV with the column '{key}'",
        do="put the CSV of the data set into its folder",
    )


def _read(path: Path, key: str) -> dict[str, dict[str, str]]:
    """Read the rows by the value of their column ``key``; names and values are stripped."""
    reader = csv.reader(_filled_lines(path))
    names = [name.strip() for name in next(reader)]
    rows = (dict(zip(names, (value.strip() for value in row), strict=False)) for row in reader)
    return {row[key]: row for row in rows if row.get(key)}


def cell(row: dict[str, str], name: str) -> str | None:
    """The value of a column, or None when it is absent or blank."""
    return row.get(name) or None

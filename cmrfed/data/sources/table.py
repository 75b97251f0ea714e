"""CSV tables of patients, as M&Ms and M&Ms-2 ship them (with up to a million blank rows) or spreadsheets save them.

Read are commas, semicolons, tabs and bars as separators (Excel's ``sep=`` line too), quoted values, all encodings of
:mod:`cmrfed.data.sources.text`, and names of columns in any letter case and spacing. A bad row costs its patient only.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmrfed.core.errors import DataError
from cmrfed.data.sources.text import decoded
from cmrfed.data.sources.walk import Tree

SEPARATORS = ",;\t|"
_BLANK = SEPARATORS + " \"'\r\n\u00a0"
_LINES_OF_A_RECORD = 8
"""Most lines that a quoted value may span; a quote that is not closed by then is an ordinary character."""
_HEADER_AMONG = 10
"""The names of the columns are in one of the first lines that are not blank."""


def plain(name: str) -> str:
    """The name of a column without letter case, spaces, underscores, hyphens and dots."""
    return re.sub(r"[\s_.\-\u00a0]+", "", name).casefold()


@dataclass
class _Row:
    name: str
    values: dict[str, str] = field(default_factory=dict)
    problem: str | None = None


class PatientTable:
    """The rows of the tables that lie with a data set.

    Where several tables have the column ``key``, a patient's row is what they say together.

    Args:
        tree: What lies below the folder of the data set.
        key: The column that names the patient.
        columns: The other columns that are used: rows of one patient that differ in them contradict each other.
        digits: Numbers that are shorter get zeros in front where a name of the table is shown.

    Names are compared without letter case, and numbers as numbers: spreadsheets turn 001 into 1.

    Raises:
        DataError: No CSV below the folder, or just above it, has this column.
    """

    def __init__(self, tree: Tree, key: str, columns: Sequence[str], digits: int = 0) -> None:
        self.key = key
        self._rows: dict[str, _Row] = {}
        self._used = [plain(column) for column in columns]
        for path in _find(tree, key):
            for name, values in _records(path, key):
                self._add(_code(name).zfill(digits) if _code(name).isdecimal() else name, values)

    @property
    def names(self) -> list[str]:
        """The patients of the table, in order of name."""
        return sorted(row.name for row in self._rows.values())

    def others(self, names: Iterable[str]) -> list[str]:
        """The patients of the table that are not among ``names``, in order of name."""
        known = {_code(name) for name in names}
        return sorted(row.name for code, row in self._rows.items() if code not in known)

    def row(self, name: str) -> dict[str, str]:
        """Column → value of one patient; see :func:`cell`.

        Raises:
            DataError: The table does not have this patient, or says two things of it.
        """
        row = self._rows.get(_code(name))
        if row is None:
            raise DataError(f"{name} is not in the CSV", expected=f"a row with this {self.key}", do="add the row")
        if row.problem:
            raise DataError(
                f"the CSV contradicts itself about {name}",
                got=row.problem,
                expected="one row for each patient",
                do="correct or remove the wrong row",
            )
        return row.values

    def _add(self, name: str, values: dict[str, str]) -> None:
        row = self._rows.setdefault(_code(name), _Row(name))
        for column, value in values.items():
            if value and (known := row.values.get(column)) and known != value and column in self._used:
                row.problem = f"{column}: {known} and {value}"
            if value:
                row.values.setdefault(column, value)


def cell(row: dict[str, str], name: str) -> str | None:
    """The value of a column, in any spelling that :func:`plain` makes equal, or None when it is absent or blank."""
    return row.get(plain(name)) or None


def _code(name: str) -> str:
    """A patient's name as it is compared: numbers without zeros in front and without the .0 of a spreadsheet."""
    number = re.fullmatch(r"0*(\d+)([.,]0+)?", name)
    return number[1] if number else name.casefold()


def _find(tree: Tree, key: str) -> list[Path]:
    """The CSVs with the column ``key`` below the folder, or in the nearest of the folders just above it."""
    below = [p for p in tree.files if _is_table(p)]
    above = tree.root.absolute().parent
    looked: list[Path] = []
    for level in (below, _beside(above), _beside(above.parent)):
        looked += level
        if found := [path for path in level if _layout(decoded(path), key)]:
            return found
    sheets = [p.name for p in tree.files if p.suffix.lower() in (".xlsx", ".xls", ".ods")]
    broken = [f"{path} {reason}" for path, reason in tree.broken.items() if _is_table(path)]
    raise DataError(
        f"{tree.root} has no table of patients",
        got="; ".join(broken[:3])
        or [p.name for p in looked if p.suffix.lower() != ".txt"][:5]
        or (f"no CSV, but {sheets[0]}" if sheets else "no CSV"),
        expected=f"a CSV with the column '{key}'",
        do="save the spreadsheet as CSV" if sheets else "put the CSV of the data set into its folder",
    )


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv", ".txt") and not path.name.startswith((".", "~$"))


def _beside(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if _is_table(path) and path.is_file())
    except OSError:
        return []


def _lines(text: str) -> list[str]:
    """The lines that hold more than separators."""
    return [line for line in re.split(r"\r\n|\r|\n", text) if line.strip(_BLANK)]


def _layout(text: str, key: str) -> tuple[str, int, list[str]] | None:
    """Separator, number of the line of names, and the names, of a text that has the column ``key``."""
    wanted = plain(key)
    for number, line in enumerate(_lines(text)[:_HEADER_AMONG]):
        for separator in SEPARATORS:
            names = [plain(name) for name in _split([line], separator) or []]
            if wanted in names:
                return separator, number, names
    return None


def _split(lines: Sequence[str], separator: str) -> list[str] | None:
    """The stripped values of one record, or None where a quote is not closed."""
    try:
        (values,) = csv.reader(["\n".join(lines)], delimiter=separator, strict=True)
    except (csv.Error, ValueError):
        return None
    return [value.strip(" \t\r\n\u00a0") for value in values]


def _records(path: Path, key: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield name and values (by plain name of the column) of each row that has a name."""
    text = decoded(path)
    layout = _layout(text, key)
    if layout is None:
        return
    separator, header, names = layout
    lines = _lines(text)
    start = header + 1
    while start < len(lines):
        values, used = _record(lines[start : start + _LINES_OF_A_RECORD], separator)
        start += used
        row: dict[str, str] = {}
        for name, value in zip(names, values, strict=False):
            if name and not row.get(name):
                row[name] = value
        if row.get(plain(key)):
            yield row[plain(key)], row


def _record(lines: Sequence[str], separator: str) -> tuple[list[str], int]:
    """The values of the first record, and how many lines it takes."""
    for used in range(1, len(lines) + 1):
        values = _split(lines[:used], separator)
        if values is not None:
            return values, used
    return [value.strip(_BLANK) for value in lines[0].split(separator)], 1

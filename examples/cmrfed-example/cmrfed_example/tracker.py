"""A tracker: the numbers of all runs in one CSV file."""

import csv
from collections.abc import Sequence
from pathlib import Path

from cmrfed.pipeline.tracking import Scalar


class CsvTracker:
    """A line for each number of each run."""

    name = "CSV"

    def __init__(self, address: str) -> None:
        self.path = Path(address).absolute()

    def write(self, run_dir: Path, scalars: Sequence[Scalar]) -> str:
        """Add the lines that are not there yet."""
        rows = [[str(run_dir), scalar.tag, str(scalar.step), repr(scalar.value)] for scalar in scalars]
        there = list(csv.reader(self.path.open(encoding="utf-8", newline=""))) if self.path.exists() else []
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(row for row in rows if row not in there)
        return str(self.path)

"""Writes what the documentation has of the evaluation's format: ``python -m cmrfed.evaluation.results.schema docs``."""

import re
import sys
from pathlib import Path

from cmrfed.core.artifacts import write_json, write_text
from cmrfed.evaluation.results.catalogue import table
from cmrfed.evaluation.results.reading import json_schema

SCHEMA, PAGE = "evaluation.schema.json", "evaluation.md"
_TABLE = re.compile(r"(?<=<!-- metrics: generated -->\n\n).*?(?=\n\n<!-- /metrics -->)", re.DOTALL)


def with_table(page: str) -> str:
    """The page with the table of all metrics as the catalogue has it."""
    return _TABLE.sub(lambda _: table(), page)


def main(docs: Path) -> None:
    """Write both files of a documentation folder."""
    write_json(docs / SCHEMA, json_schema())
    write_text(docs / PAGE, with_table((docs / PAGE).read_text(encoding="utf-8")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Write JSON Schemas and the table of metrics for the docs: ``python -m cmrfed.pipeline.files.schemas docs``."""

import sys
from pathlib import Path

from cmrfed.core.artifacts import write_json
from cmrfed.core.settings.validation import json_schema
from cmrfed.evaluation.results import schema
from cmrfed.federation.server.metrics import FILE as METRICS
from cmrfed.federation.server.metrics import RoundMetrics
from cmrfed.pipeline.files.record import FILE as RECORD
from cmrfed.pipeline.files.record import RunRecord

SCHEMAS = {
    "run.schema.json": json_schema(RunRecord, RECORD),
    "metrics.schema.json": json_schema(RoundMetrics, METRICS),
}
"""File of the documentation → what it holds."""


def main(docs: Path) -> None:
    """Write all of them into a documentation folder."""
    for name, content in SCHEMAS.items():
        write_json(docs / name, content)
    schema.main(docs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

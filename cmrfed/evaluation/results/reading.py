"""Reads evaluation.json, of this version or of the one before."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cmrfed.core.artifacts import read_json
from cmrfed.core.errors import DataError
from cmrfed.core.settings.validation import problems
from cmrfed.core.text import one_line
from cmrfed.evaluation.results import version1
from cmrfed.evaluation.results.result import SCHEMA_VERSION, EvaluationReport


def read_evaluation(path: Path) -> EvaluationReport:
    """Read an evaluation.json; one of version 1 is brought up to date, and its names become ids.

    Raises:
        DataError: There is none, it is damaged, or a later version wrote it.
    """
    tree = read_json(path)
    version = tree.get("schema_version", 1) if isinstance(tree, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise DataError(
            f"{path} was written by a later version",
            got=f"schema version {version}",
            expected=f"up to {SCHEMA_VERSION}",
            do="update CMRFed",
        )
    try:
        return EvaluationReport.model_validate(version1.upgrade(tree) if version == 1 else tree)
    except (ValidationError, AttributeError, KeyError, TypeError, ValueError) as error:
        got = problems(error) if isinstance(error, ValidationError) else one_line(f"{type(error).__name__}: {error}")
        raise DataError(f"{path} cannot be used", got=got, do="evaluate again with this version") from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of evaluation.json."""
    schema = EvaluationReport.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "evaluation.json"}

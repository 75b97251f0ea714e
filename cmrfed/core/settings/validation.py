"""Files of JSON that programs write and people can edit, read through a pydantic model: any fault is one paragraph."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from cmrfed.core.artifacts import read_json, read_object
from cmrfed.core.errors import CmrfedError, DataError
from cmrfed.core.text import one_line

M = TypeVar("M")

AGAIN = "restore the file from a copy, or make it again"
_LONGEST = 600
"""Characters of a list of problems that are shown."""


def problems(error: ValidationError) -> str:
    """What pydantic found, on one line: the place in the file and what is wrong there."""
    found = [_in_words(problem) for problem in error.errors(include_url=False, include_input=False)]
    text = one_line("; ".join(found))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _in_words(problem: Any) -> str:
    where = ".".join(map(str, problem["loc"])) or "the whole"
    return f"{where}: {'no such field' if problem['type'] == 'extra_forbidden' else problem['msg']}"


def validated(
    kind: type[M],
    tree: Any,
    what: str,
    *,
    error: type[CmrfedError] = DataError,
    expected: str | None = None,
    do: str = AGAIN,
) -> M:
    """Make a model, or a list or dict of models, of plain data.

    Args:
        kind: The model; or ``list[Model]``, ``dict[str, Model]``.
        tree: What JSON gave.
        what: What it is, in the error: the path of the file.
        error: What is raised.
        expected: What it should be, for the error.
        do: What helps.

    Raises:
        CmrfedError: A field is missing, unknown, or of another type; the message names each.
    """
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as problem:
        found = problems(problem)
    except CmrfedError as problem:  # a validator's own
        found = one_line(problem)
    raise error(f"{what} cannot be used", got=found, expected=expected, do=do)


def read_model(
    path: Path,
    kind: type[M],
    *,
    error: type[CmrfedError] = DataError,
    expected: str | None = None,
    do: str = AGAIN,
) -> M:
    """Read a JSON file as a model; see `validated`.

    Raises:
        DataError: It is missing, or no JSON.
        CmrfedError: It does not fit the model.
    """
    return validated(kind, read_json(path), str(path), error=error, expected=expected, do=do)


def read_versioned(
    path: Path,
    kind: type[M],
    latest: int,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    *,
    do: str = AGAIN,
) -> M:
    """Read a JSON object that says ``schema_version``, of this version or of one before.

    Args:
        path: The file.
        kind: Its model, which has the field ``schema_version``.
        latest: The version that this code writes.
        upgrade: Turns an object of an earlier version into one of this; it must take whatever JSON can hold.
        do: What helps where the file is damaged.

    Raises:
        DataError: It is missing, damaged, or was written by a later version.
    """
    tree = read_object(path)
    number = version_of(tree, path, latest)
    return validated(kind, upgrade(tree) | {"schema_version": latest} if number < latest else tree, str(path), do=do)


def version_of(tree: dict[str, Any], path: Path, latest: int) -> int:
    """The schema version of a file; version 0.1 wrote none, which counts as 1.

    Raises:
        DataError: It is no number, or one that this code does not know.
    """
    number = tree.get("schema_version", 1)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise DataError(f"{path} cannot be used", got=f"schema_version {number!r:.40}", expected="a number", do=AGAIN)
    if number > latest:
        raise DataError(
            f"{path} was written by a later version",
            got=f"schema version {number}",
            expected=f"up to {latest}",
            do="update CMRFed",
        )
    return number


def json_schema(kind: type, title: str) -> dict[str, Any]:
    """The JSON Schema of a file, as it is written."""
    schema = TypeAdapter(kind).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}

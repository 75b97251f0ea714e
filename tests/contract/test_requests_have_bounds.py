"""Everything that a request may hold has bounds, and the table of them is what is documented."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from cmrfed.core.settings.config import Section
from cmrfed.federation.messages import StageJob
from cmrfed.federation.secagg.client import STEPS

PAGE = Path(__file__).parents[2] / "docs" / "threat-model.md"
CLOSED_PATTERN = re.compile(r"^\^.*\{\d+,\d+\}\$$")
"""A pattern from end to end whose repetition is counted."""


def rules(metadata: list[Any]) -> dict[str, Any]:
    """Bounds by name, of pydantic's metadata; those of Annotated types come nested."""
    found: dict[str, Any] = {}
    for rule in metadata:
        if isinstance(rule, FieldInfo):
            found |= rules(rule.metadata)
            continue
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern"):
            if getattr(rule, name, None) is not None:
                found[name] = getattr(rule, name)
    return found


def leaves(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Path and bounds of every value that a section may hold.

    Raises:
        AssertionError: One has no bound.
    """
    for name, field in section.model_fields.items():
        yield from leaf(prefix + name, field.annotation, rules(field.metadata))


def leaf(path: str, kind: Any, bounds: dict[str, Any]) -> Iterator[tuple[str, str]]:
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *metadata = get_args(kind)
        yield from leaf(path, inner, bounds | rules(metadata))
    elif origin is Literal:
        yield path, " or ".join(f"`{word}`" for word in get_args(kind))
    elif origin is tuple:
        inner, dots = get_args(kind)
        assert dots is ..., path
        assert "max_length" in bounds, f"{path}: a list without a largest length"
        [(_, each)] = leaf(path, inner, {})
        yield path, f"at most {bounds['max_length']} of: {each}"
    elif origin is dict:
        name, inner = get_args(kind)
        assert "max_length" in bounds, f"{path}: a mapping without a largest length"
        [(_, each)] = leaf(path, name, {})
        yield path, f"at most {bounds['max_length']}, by site: {each}"
        yield from leaf(f"{path}.SITE", inner, {})
    elif get_args(kind):  # a union
        for inner in get_args(kind):
            if inner is not NoneType:
                yield from leaf(path, inner, bounds)
    elif isinstance(kind, type) and issubclass(kind, Section):
        yield from leaves(kind, f"{path}.")
    else:
        yield path, plain(path, kind, bounds)


def plain(path: str, kind: type, bounds: dict[str, Any]) -> str:
    if kind is bool:
        return "true or false"
    if kind is str:
        closed = CLOSED_PATTERN.match(bounds.get("pattern", ""))
        assert "max_length" in bounds or closed, f"{path}: text without a largest length"
        return f"text like `{bounds['pattern']}`" if closed else f"text, at most {bounds['max_length']} characters"
    assert kind in (int, float), f"{path}: {kind} is not known to have bounds"
    low = [f"{sign} {bounds[name]:g}" for name, sign in (("ge", "≥"), ("gt", ">")) if name in bounds]
    high = [f"{sign} {bounds[name]:g}" for name, sign in (("le", "≤"), ("lt", "<")) if name in bounds]
    assert low, f"{path}: a number without a lower bound"
    assert high, f"{path}: a number without an upper bound"
    return f"{low[0]}, {high[0]}"


def table() -> list[str]:
    """One row a value; a value that several kinds of section have alike comes once."""
    steps = ((name, leaves(step, f"train.{name}.")) for name, step in STEPS.items())
    rows = dict.fromkeys(leaves(StageJob))
    rows |= dict.fromkeys(row for _, found in steps for row in found)
    return [f"| `{path}` | {bounds} |" for path, bounds in rows]


def test_every_value_of_a_request_has_bounds_and_is_documented() -> None:
    rows = table()
    assert len(rows) > 50
    page = PAGE.read_text()
    assert not [row for row in rows if row not in page], "the table of docs/threat-model.md"
    own = [line for line in page.partition("## What a request may hold")[2].splitlines() if line.startswith("| `")]
    assert own == rows


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "a number without a lower bound"),
        (float | None, "a number without a lower bound"),
        (str, "text without a largest length"),
        (tuple[str, ...], "a list without a largest length"),
        (dict[str, int], "a mapping without a largest length"),
        (Any, "is not known to have bounds"),
    ],
)
def test_a_value_without_bounds_would_be_found(kind: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        list(leaf("new", kind, {}))

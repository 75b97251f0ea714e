"""Files of JSON read through a model: every fault is one paragraph that names file, place and what helps."""

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrfed.core.artifacts import write_json
from cmrfed.core.errors import DataError, FederationError
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.validation import json_schema, read_model, read_versioned, validated


class Inner(Section):
    count: int


class Outer(Section):
    schema_version: Literal[3] = 3
    name: str
    inner: Inner
    rows: tuple[Inner, ...] = ()


WHOLE = {"schema_version": 3, "name": "a", "inner": {"count": 1}, "rows": [{"count": 2}]}


def read(path: Path) -> Outer:
    return read_versioned(path, Outer, 3, lambda old: {"name": "old"} | old, do="do this")


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    assert read(write_json(tmp_path / "x.json", WHOLE)).rows[0].count == 2
    assert read_model(tmp_path / "x.json", Outer).inner.count == 1


def test_an_earlier_version_is_brought_up_to_date_and_a_later_one_is_refused(tmp_path: Path) -> None:
    assert read(write_json(tmp_path / "x.json", {"inner": {"count": 1}})).name == "old"
    assert read(write_json(tmp_path / "x.json", {"schema_version": 2, "inner": {"count": 1}})).schema_version == 3
    with pytest.raises(DataError, match=r"x\.json was written by a later version\. Got: schema version 4\. .*update"):
        read(write_json(tmp_path / "x.json", WHOLE | {"schema_version": 4}))
    for wrong in (True, "3", None, 0, 2.5, [3]):
        with pytest.raises(DataError, match=r"x\.json cannot be used\. Got: schema_version "):
            read(write_json(tmp_path / "x.json", WHOLE | {"schema_version": wrong}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inner": {}}, r"inner\.count: Field required"),
        ({"inner": {"count": "many"}}, r"inner\.count: Input should be a valid integer"),
        ({"rows": [{"count": 1}, None]}, r"rows\.1: Input should be"),
        ({"colour": 1}, r"colour: no such field"),
    ],
)
def test_a_fault_names_its_place_and_what_helps(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(DataError, match=rf"x\.json cannot be used\. Got: {words}.*Do: do this"):
        read(write_json(tmp_path / "x.json", WHOLE | change))


def test_what_is_no_object_or_torn_or_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.json is damaged\. Got: list"):
        read(write_json(tmp_path / "x.json", []))
    (tmp_path / "x.json").write_text('{"name": ')
    with pytest.raises(DataError, match=r"x\.json is not JSON"):
        read(tmp_path / "x.json")
    with pytest.raises(DataError, match=r"y\.json is missing"):
        read(tmp_path / "y.json")


def test_the_kind_of_error_is_the_caller_s_and_lists_are_models_too() -> None:
    assert validated(list[Inner], [{"count": 1}], "rows") == [Inner(count=1)]
    with pytest.raises(FederationError, match=r"rows cannot be used\. Got: 1\.count: Field required\. Expected: rows"):
        validated(list[Inner], [{"count": 1}, {}], "rows", error=FederationError, expected="rows")


@given(st.text(min_size=1, max_size=900).filter(lambda name: name not in Outer.model_fields))
def test_a_fault_is_one_line_of_bounded_length_whatever_a_key_holds(name: str) -> None:
    with pytest.raises(DataError) as caught:
        validated(Outer, WHOLE | {name: 1}, "x.json")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 900


def test_problems_never_repeat_what_was_entered() -> None:
    with pytest.raises(DataError) as caught:
        validated(Inner, {"count": "secret"}, "x.json")
    assert "secret" not in str(caught.value)


def test_the_schema_is_that_of_the_file() -> None:
    schema = json_schema(Outer, "x.json")
    assert schema["title"] == "x.json"
    assert set(schema["properties"]) == set(Outer.model_fields)

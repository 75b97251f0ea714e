import json
import sys
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from cmrfed.core.settings.choices import OrInstalled, settings_registry
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.registry import builtins_only
from tests.plugin_world import install

GROUP = "cmrfed.shapes"
PLUGIN = """
from typing import Literal
from tests.unit.core.settings.test_choices import Shape

class Star(Shape):
    kind: Literal["star"] = "star"
    points: int = 5

class Nameless(Shape):
    pass
"""


class Shape(Section):
    pass


class Circle(Shape):
    kind: Literal["circle"] = "circle"
    radius_mm: float = 1.0


class Square(Shape):
    kind: Literal["square"]
    side_mm: float = Field(1.0, exclude_if=lambda value: value == 1)


SHAPES = settings_registry(GROUP, "shape", "kind", Shape, (Circle, Square))


class Closed(Section):
    shape: Annotated[Circle | Square, Field(discriminator="kind")] = Circle()
    more: tuple[Annotated[Circle | Square, Field(discriminator="kind")], ...] = ()


class Open(Section):
    shape: Annotated[Circle | Square, Field(discriminator="kind"), OrInstalled(SHAPES, "kind")] = Circle()
    more: tuple[Annotated[Circle | Square, Field(discriminator="kind"), OrInstalled(SHAPES, "kind")], ...] = ()


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    entries = {"star": "paint_shapes:Star", "nameless": "paint_shapes:Nameless", "text": "paint_shapes:GIVEN"}
    install(tmp_path, GROUP, "paint-shapes", entries, PLUGIN + "GIVEN = 'a text'\n")
    yield
    sys.modules.pop("paint_shapes", None)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"shape": {"kind": "circle", "radius_mm": 2}},
        {"shape": {"kind": "square"}, "more": [{"kind": "square", "side_mm": 3}, {"kind": "circle"}]},
    ],
)
def test_own_kinds_are_read_and_written_as_before(tree):
    before, after = Closed.model_validate(tree), Open.model_validate(tree)
    for mode in ("json", "python"):
        assert after.model_dump(mode=mode) == before.model_dump(mode=mode)
    assert after.model_dump_json() == before.model_dump_json()
    assert type(Open.model_validate_json(json.dumps(tree)).shape) is type(before.shape)


def test_a_kind_of_a_plugin_is_read_and_written_with_all_its_settings(plugin):
    tree = {"shape": {"kind": "star", "points": 7}, "more": [{"kind": "star"}, {"kind": "square"}]}
    read = Open.model_validate(tree)
    assert read.shape.points == 7
    assert read.model_dump(mode="json") == {
        "shape": {"kind": "star", "points": 7},
        "more": [{"kind": "star", "points": 5}, {"kind": "square"}],
    }
    assert Open.model_validate_json(read.model_dump_json()) == read
    assert Open(shape=read.shape) == Open.model_validate({"shape": tree["shape"]})


def problem(tree) -> tuple[tuple, str, str]:
    with pytest.raises(ValidationError) as error:
        Open.model_validate(tree)
    first = error.value.errors()[0]
    return first["loc"], first["type"], first["msg"]


def test_what_is_wrong_is_said_at_its_place(plugin):
    assert problem({"shape": {"kind": "star", "point": 7}})[:2] == (("shape", "point"), "extra_forbidden")
    assert problem({"shape": {"kind": "star", "points": True}})[0] == ("shape",)
    assert problem({"shape": {}})[:2] == (("shape",), "union_tag_not_found")
    place, _, words = problem({"shape": {"kind": "sqare"}})
    assert place == ("shape",)
    assert words.startswith("there is no shape sqare (did you mean square?). Expected: circle or square or ")


def test_a_plugin_that_is_no_such_settings_is_named(plugin):
    assert (
        "class Nameless, which lacks the field kind: Literal['nameless']" in problem({"shape": {"kind": "nameless"}})[2]
    )
    assert (
        "'a text', which is not a subclass of tests.unit.core.settings.test_choices.Shape"
        in problem({"shape": {"kind": "text"}})[2]
    )


def test_where_only_approved_code_may_run_a_plugin_is_refused_and_own_kinds_are_not(plugin):
    with builtins_only():
        assert Open.model_validate({"shape": {"kind": "square"}}).shape == Square(kind="square")
        place, kind, words = problem({"shape": {"kind": "star"}})
    assert (place, kind) == (("shape",), "not_approved")
    assert words.startswith("shape star is not part of the code that this site has approved")

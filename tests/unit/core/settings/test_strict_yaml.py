import contextlib
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrfed.config.experiment import read_recipe, resolve
from cmrfed.core.errors import CmrfedError, ConfigError, DataError
from cmrfed.core.settings.strict_yaml import LARGEST_BYTES, MOST_NODES, load, read_mapping
from cmrfed.deploy.kit import Federation
from cmrfed.sweep.points import read_sweep
from tests.support import SOURCES

ROOT = Path(__file__).parents[4]
RECIPES = sorted((ROOT / "configs" / "recipes").rglob("*.yaml"))


# --- what could be meant in two ways ----------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key a is there twice, first in line 1"),
        ("a: {b: 1, 'b': 2}", "line 1: the key b is there twice"),
        ("1: x\n'1': y", "the key 1 is there twice"),
        ("1: x\n1.0: y", "the key 1.0 is there twice"),
        ("on: x\ntrue: y", "the key True is there twice"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  <<: *x", "line 4: the key << is there twice"),
        ("a:\n  - {k: 1}\n  - {k: 1, k: 2}", "line 3: the key k is there twice"),
        ("a:\nb: 1", "line 1: the key a has no value"),
        ("b: 1\na:   # to do", "line 2: the key a has no value"),
        ("{a, b: 1}", "line 1: the key a has no value"),
        ("a:\n  - 1\n  -\n", "line 3: a blank item in the list a"),
        ("?\n: 1", "line 1: a value without a key"),
        ("a: !!int", "line 1: a:  is no number that can be used"),
        ("[1]: 2", "line 1: a key that is a list"),
        ("? {a: 1}\n: 2", "line 1: a key that is a list or a mapping"),
        ("a: 010", "line 1: a: 010. Expected: a number without a zero in front"),
        ("a: -007", "a number without a zero in front"),
        ("a: !!python/name:os.system x", "line 1: the tag tag:yaml.org,2002:python/name:os.system"),
        ("a: !!set {x}", "the tag tag:yaml.org,2002:set"),
        ("a: !!binary aGk=", "the tag tag:yaml.org,2002:binary"),
        ("a: !mine x", "the tag !mine"),
        ("a: !!bool maybe", "the tag tag:yaml.org,2002:bool"),
        ("a: !!int x", "is no number that can be used"),
        ("a: " + "9" * 5000, "is no number that can be used"),
        ("<<: 3", "<< with something else than a mapping"),
        ("a: *b", "undefined alias"),
        ("a: 1\n---\na: 2", "line 2, column 1: but found another document"),
        ("a: \x07", r"line 1: the character U\+0007"),
        ("a: &a [*a]", "contains itself"),
        ("[" * 1200, "levels"),
        ("\n".join(f"{' ' * n}k:" for n in range(200)) + " 1", "levels"),
    ],
)
def test_it_is_refused_with_its_line(text, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")) as error:
        load(text, "x.yaml", "recipe")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("x.yaml is not a readable recipe. Got: ")


@pytest.mark.parametrize(
    "text", ["1:30", "190:20:30.5", "2026-01-01", "2026-01-01 12:00:00", "=", "1e-3", "0o10", "''"]
)
def test_what_yaml_would_turn_into_something_else_is_text(text):
    assert load(f"a: {text}", "x") == {"a": text.strip("'")}


def test_a_blank_may_be_allowed_and_is_null_then():
    assert load("a:\nb: [1, ]\nc: {d: , e: ~}", "x", blanks=True) == {"a": None, "b": [1], "c": {"d": None, "e": None}}


@pytest.mark.parametrize("number", ["0x10", "1_000", ".inf", "-.Inf", ".nan", "0b11", "~"])
def test_where_plain_numbers_are_asked_for_others_are_refused(number):
    load(f"a: {number}", "x")
    with pytest.raises(ConfigError, match=rf"line 1: a: {number.replace('.', '[.]')}"):
        load(f"a: {number}", "x", plain_numbers=True)


def test_the_merge_key_is_kept_and_what_stands_beside_it_wins():
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {y: 5, <<: [*a, *b]}\nd: {<<: *a, w: 0}"
    found = load(text, "x")
    assert (found["c"], found["d"]) == ({"x": 1, "y": 5, "z": 4}, {"x": 1, "y": 2, "w": 0})
    assert list(found["d"]) == ["x", "y", "w"]


def test_an_alias_is_a_copy():
    found = load("a: &a {x: [1]}\nb: *a", "x")
    found["a"]["x"].append(2)
    assert found["b"] == {"x": [1]}


# --- what would take all memory or time -------------------------------------------------------------
def test_aliases_that_multiply_are_refused_at_once():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    merged = ["m0: &m0 {k: 1}"]
    merged += [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    for bomb in (lines, merged):
        start = time.process_time()
        with pytest.raises(ConfigError, match=f"more than {MOST_NODES} values"):
            load("\n".join(bomb), "x.yaml")
        assert time.process_time() - start < 20


def test_a_file_that_is_too_large_is_refused_before_it_is_parsed(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: 1\n" + b"#" * LARGEST_BYTES)
    with pytest.raises(DataError, match=rf"not a readable recipe\. Got: more than {LARGEST_BYTES} bytes"):
        read_mapping(tmp_path / "x.yaml", "recipe", error=DataError)


# --- properties ---------------------------------------------------------------------------------
_PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_TREES = st.recursive(_PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=15)


@given(_TREES)
@settings(max_examples=40)
def test_what_the_project_writes_it_reads_back(tree):
    assert load(yaml.safe_dump(tree, sort_keys=False), "x") == tree


_PIECES = st.sampled_from(
    ["a", "b", ":", " ", "\n", "  ", "- ", "[", "]", "{", "}", ",", "&a ", "*a", "<<: ", "? ", "! ", "!!int ", "'", "|"]
) | st.sampled_from(
    ['"', ">", "#", "%", "---", "1", ".5", "1e3", "010", "0x", "yes", "null", "~", "\t", "\ufeff", "\0", "é", "\ud800"]
)


@given(st.lists(_PIECES, max_size=30).map("".join) | st.text(max_size=60))
@settings(max_examples=300)
def test_any_text_is_a_value_or_one_paragraph(text):
    said = ""
    try:
        load(text, "x.yaml")
    except ConfigError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1


@given(st.binary(max_size=80))
def test_any_bytes_are_a_recipe_or_one_paragraph(data):
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(ConfigError):
            read_recipe(Path(file.name))


# --- recipes --------------------------------------------------------------------------------------
_WRONG = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1e308,
        -1e308,
        10**30,
        float("inf"),
        float("nan"),
        "",
        "x",
        "1:30",
        "\ud800",
        [],
        {},
        [[]],
    ]
) | st.sampled_from(
    [{"": None}, {1: 2}, {None: None}, [None], {"kind": "ddpm"}, {"name": []}, "none", "a" * 1000, b"x", (1, 2), [True]]
)


def _places(tree, place=()):
    yield place
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _places(value, (*place, key))


@given(st.sampled_from(RECIPES), st.randoms(use_true_random=False), _WRONG, st.integers(1, 3))
@settings(max_examples=150)
def test_a_recipe_with_anything_anywhere_is_used_or_refused_in_words(path, chance, wrong, changes):
    tree = read_recipe(path)
    for _ in range(changes):
        *way, last = chance.choice([place for place in _places(tree) if place])
        node = tree
        for key in way:
            node = node[key]
        action = chance.choice(["replace", "take out", "misspell", "nest"])
        if action == "replace":
            node[last] = wrong
        elif action == "nest":
            node[last] = {last: node[last]}
        else:
            kept = node.pop(last)
            if action == "misspell":
                node[chance.choice([f"{last}x", 1, True, None, (), ""])] = kept
    with contextlib.suppress(CmrfedError):
        resolve(tree)


_KEYS = st.sampled_from(
    ["seed", "data.size_px", "mask.training.rounds", "image", "privacy.epsilon", "a..b", ".", "", "x"]
)
_VALUES = _PLAIN.map(str) | st.sampled_from(
    ["[", "{a: 1}", "null", "1e-3", "*a", "&a 1", "yes", "1:30", "010", "!!int x"]
)


@given(st.lists(st.builds("{}{}{}".format, _KEYS, st.sampled_from(["=", "", "=="]), _VALUES), max_size=3))
def test_any_override_is_used_or_refused_in_words(overrides):
    with contextlib.suppress(CmrfedError):
        resolve({"name": "x"}, overrides)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_that_come_with_the_project_read_as_they_did(path):
    assert read_recipe(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


# --- every reader ---------------------------------------------------------------------------------
@pytest.mark.parametrize("read", [read_recipe, read_sweep, Federation.read], ids=["recipe", "sweep", "federation"])
def test_a_key_that_is_there_twice_is_named_by_every_reader(tmp_path, read):
    (tmp_path / "x.yaml").write_text("name: a\n# more\nname: b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"x\.yaml.*line 3: the key name is there twice, first in line 1"):
        read(tmp_path / "x.yaml")


def test_yaml_is_read_in_one_place():
    readers = [
        path.name for path in SOURCES if "yaml.safe_load" in (text := path.read_text("utf-8")) or "yaml.load" in text
    ]
    assert readers == []
    assert [path.name for path in SOURCES if "yaml.SafeLoader" in path.read_text("utf-8")] == ["strict_yaml.py"]

"""Every test that is not fast is listed in `tests.tiers`, with its cost and a reason, and the list names no other."""

import ast
from pathlib import Path

import pytest

from tests.conftest import COLLECTED, MARKED
from tests.tiers import ENTRIES, FAST, NIGHTLY, SLOW, Entry, cost_of, entry_of

TESTS = Path(__file__).resolve().parents[1]


def functions(path: Path) -> set[str]:
    """Names of all functions of a module."""
    return {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


def test_an_entry_names_a_test_that_is_there():
    paths = {module: TESTS / module for module, _ in ENTRIES}
    there = {module: functions(path) if path.is_file() else set() for module, path in paths.items()}
    assert [module for module, path in paths.items() if not path.is_file()] == []
    tests = [(module, test.partition("[")[0]) for module, test in ENTRIES]
    assert [f"{module}::{test}" for module, test in tests if test and test not in there[module]] == []


def test_an_entry_covers_a_test_that_no_other_does(request: pytest.FixtureRequest):
    """Cases are known where a module was collected as a whole."""
    if any("::" in word for word in request.config.invocation_params.args):
        pytest.skip("only some tests were collected")
    nodes = request.config.stash[COLLECTED]
    modules = {node.partition("::")[0].removeprefix("tests/") for node in nodes}
    assert {key for key in ENTRIES if key[0] in modules} - {entry_of(node) for node in nodes} == set()


def test_no_test_marks_itself(request: pytest.FixtureRequest):
    assert request.config.stash[MARKED] == [], "list them in tests/tiers.py instead"


def test_every_entry_says_what_it_costs_and_why():
    assert len(ENTRIES) == sum(len(tests) for tier in (SLOW, NIGHTLY, FAST) for tests in tier.values()), "listed twice"
    assert all(entry.cpu_s > 0 and len(entry.why) > 5 for entry in ENTRIES.values())
    nightly = {key: entry.why for key, entry in ENTRIES.items() if entry.tier == "nightly"}
    assert [key for key, why in nightly.items() if "on every commit: " not in why] == []
    fast = [test for tests in FAST.values() for test in tests]
    assert [test for test in fast if not test.endswith("]")] == [], "a test is fast unless it is listed"


def test_the_most_specific_entry_counts(monkeypatch: pytest.MonkeyPatch):
    keys = [("a.py", test) for test in ("", "[y]", "t", "t[x]")]
    monkeypatch.setattr("tests.tiers.ENTRIES", {key: Entry("slow", 10**i, "") for i, key in enumerate(keys)})
    assert entry_of("tests/a.py::t[x]") == ("a.py", "t[x]")
    assert entry_of("tests/a.py::t[y]") == entry_of("tests/a.py::t") == ("a.py", "t")
    assert entry_of("tests/a.py::u[x]") == ("a.py", "")
    assert entry_of("tests/a.py::u[y]") == ("a.py", "[y]")
    assert entry_of("tests/b.py::t") is None
    assert cost_of(["tests/a.py::t", "tests/a.py::t[z]", "tests/a.py::t[x]", "tests/b.py::t"]) == 1100

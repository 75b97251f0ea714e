"""`cmrfed plugins` with distributions that are put into a folder."""

import json
import re
from pathlib import Path

import pytest

from cmrfed.cli.plugins import _registries
from tests.plugin_world import install
from tests.support import ROOT


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """One part that can be used, one that cannot be imported, and two that take a name."""
    install(tmp_path, "cmrfed.trackers", "listed-fine", {"fine": "listed_fine:PART"}, "PART = print")
    torn = {"torn": "listed_torn:PART", "euler": "listed_torn:PART"}
    install(tmp_path, "cmrfed.samplers", "listed-torn", torn, "import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)


def test_it_says_what_is_installed_and_what_cannot_be_used(installed, call):
    status, out, _ = call("plugins")
    assert status == 0
    lines = out.splitlines()
    assert lines[:2] == ["cmrfed.samplers", "  euler: listed-torn 1.2 (listed_torn:PART)"]
    assert lines[2].startswith(
        "    cannot be used: more than one sampler is called euler. Got: cmrfed itself and listed"
    )
    assert lines[3] == "  torn: listed-torn 1.2 (listed_torn:PART)"
    assert "No module named 'not_there_at_all'" in lines[4]
    assert lines[5:] == ["cmrfed.trackers", "  fine: listed-fine 1.2 (listed_fine:PART)"]


def test_it_says_so_as_json(installed, call):
    found = {part["name"]: part for part in json.loads(call("plugins", "--json")[1])}
    fine = {"group": "cmrfed.trackers", "name": "fine", "package": "listed-fine", "version": "1.2"}
    assert found["fine"] == fine | {"target": "listed_fine:PART", "problem": None}
    assert "not_there_at_all" in found["torn"]["problem"]


def test_without_any_it_says_so(call):
    assert call("plugins")[1] == "No plugin is installed.\n"


def test_it_looks_into_every_group_that_the_page_names():
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(cmrfed\.\w+)` \|", page, re.MULTILINE)
    assert [registry.group for registry in _registries()] == named


def test_a_sweep_hands_its_trackers_to_every_point(installed, call, monkeypatch, tmp_path):
    begun = {}
    monkeypatch.setattr("cmrfed.sweep.results.run", lambda *_, command, **__: begun.update(command=command) or [])
    words = ("sweep", "quick", "--run-dir", tmp_path / "out", "--tracker")
    assert call(*words, "fine")[0] == 1, "without an address nothing begins"
    assert not begun
    assert call(*words, "fine=here")[0] == 0
    assert begun["command"](Path("points/0/recipe.yaml"))[-2:] == ["--tracker", "fine=here"]

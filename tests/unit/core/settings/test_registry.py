import subprocess
import sys

import pytest

from cmrfed.core.errors import ConfigError
from cmrfed.core.settings.registry import NOT_APPROVED, Registry, builtins_only, loaded_plugins
from tests.plugin_world import install
from tests.support import ROOT

GROUP = "cmrfed.colours"


@pytest.fixture
def site_packages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("paint_")]:
        del sys.modules[name]


def colours(**builtins) -> Registry:
    fault = lambda name, part: None if isinstance(part, int) else f"{part!r}, which is no number"  # noqa: E731
    return Registry(GROUP, "colour", builtins, fault=fault)


def test_own_parts_come_by_name_and_are_imported_when_asked_for():
    registry = Registry(GROUP, "colour", {"red": 1, "root": "math:sqrt"})
    assert registry.names == ("red", "root")
    assert registry.get("red") == 1
    assert registry.get("root")(4) == 2


def test_a_part_is_registered_by_a_decorator_once():
    registry = Registry(GROUP, "colour")

    @registry.register("mixed")
    def mixed():
        return 3

    assert registry.get("mixed") is mixed
    with pytest.raises(ConfigError, match="there is a colour mixed already"):
        registry.register("mixed")(mixed)


def test_an_unknown_name_says_what_there_is(site_packages):
    install(site_packages, GROUP, "paint-blue", {"blue": "paint_blue:PART"}, "raise SystemError('imported')")
    with pytest.raises(ConfigError) as error:
        colours(red=1).get("bleu")
    assert str(error.value) == (
        "there is no colour bleu (did you mean blue?). Expected: red or blue. Do: choose one of these, or install the "
        "package that offers it (entry-point group cmrfed.colours)."
    )


def test_a_part_of_another_distribution_is_imported_when_asked_for(site_packages):
    install(site_packages, GROUP, "paint-blue", {"blue": "paint_blue:PART"}, "PART = 7")
    registry = colours(red=1)
    assert registry.names == ("red", "blue")
    assert "blue" in registry
    assert [(p.name, p.distribution) for p in registry.plugins] == [("blue", "paint-blue 1.2")]
    assert registry.get("red") == 1
    assert "paint_blue" not in sys.modules
    assert registry.get("blue") == 7
    assert loaded_plugins()["cmrfed.colours:blue"] == registry.plugins[0]


def test_two_that_claim_one_name_are_named(site_packages):
    install(site_packages, GROUP, "paint-blue", {"blue": "paint_blue:PART", "red": "paint_blue:PART"}, "PART = 7")
    install(site_packages, GROUP, "paint-sky", {"blue": "paint_sky:PART"}, "PART = 8")
    with pytest.raises(ConfigError) as error:
        colours(red=1).get("blue")
    assert str(error.value) == (
        "more than one colour is called blue. Got: paint-blue 1.2 (paint_blue:PART) and paint-sky 1.2 "
        "(paint_sky:PART). Expected: one. Do: uninstall all but one (pip uninstall, of paint-blue, paint-sky), or ask "
        "the authors for another name."
    )
    with pytest.raises(ConfigError, match=r"is called red. Got: cmrfed itself and paint-blue 1.2"):
        colours(red=1).get("red")
    assert not {"paint_blue", "paint_sky"} & set(sys.modules)


def test_one_that_cannot_be_imported_is_named(site_packages):
    install(site_packages, GROUP, "paint-torn", {"torn": "paint_torn:PART"}, "import paint_that_is_not_there")
    with pytest.raises(ConfigError) as error:
        colours(red=1).get("torn")
    assert str(error.value) == (
        "colour torn of paint-torn 1.2 cannot be loaded. Got: ModuleNotFoundError: No module named "
        "'paint_that_is_not_there' (importing paint_torn:PART). Do: update or repair it, or remove it with: pip "
        "uninstall paint-torn."
    )


def test_one_of_another_kind_is_named(site_packages):
    install(site_packages, GROUP, "paint-word", {"word": "paint_word:PART"}, "PART = 'azure'")
    with pytest.raises(ConfigError, match=r"paint_word:PART of paint-word 1.2 is no colour. Got: 'azure', which is no"):
        colours(red=1).get("word")


def test_nothing_from_outside_is_seen_where_only_approved_code_may_run(site_packages):
    install(site_packages, GROUP, "paint-blue", {"blue": "paint_blue:PART", "red": "paint_blue:PART"}, "PART = 7")
    registry = colours(red=1)
    with builtins_only():
        assert registry.get("red") == 1
        assert registry.names == ("red",)
        with pytest.raises(ConfigError) as error:
            registry.get("blue")
    assert error.value.code == NOT_APPROVED
    assert str(error.value) == (
        "colour blue is not part of the code that this site has approved. Got: blue. Expected: red. Do: choose one of "
        "these: a deployed site loads no plugins."
    )
    assert "paint_blue" not in sys.modules
    assert registry.get("blue") == 7


def test_the_module_needs_nothing_but_the_errors():
    listed = "print(sorted(m for m in sys.modules if m.startswith(('torch', 'pydantic'))))"
    code = f"import sys, cmrfed.core.settings.registry; {listed}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

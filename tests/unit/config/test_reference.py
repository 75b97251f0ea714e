"""The page of every setting: what the command prints is what is committed, and no key is without a meaning."""

import json
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from cmrfed.config.experiment import Experiment, resolve
from cmrfed.config.reference import FILES, Setting, find, page, settings
from cmrfed.core.errors import ConfigError
from cmrfed.core.settings.config import Section

DOCS = Path(__file__).parents[3] / "docs"


def test_the_committed_page_is_what_the_command_prints(call):
    status, out, _ = call("settings")
    assert status == 0
    assert out == (DOCS / "recipe-reference.md").read_text(), "cmrfed settings > docs/recipe-reference.md"


@pytest.mark.parametrize("file", FILES)
def test_every_key_has_a_meaning(file):
    assert not [setting.key for setting in settings(FILES[file][0]) if len(setting.meaning) < 10]


def flat(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Full name => value, of all that is in a tree."""
    found: dict[str, object] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return found


def test_every_setting_of_a_resolved_recipe_is_on_the_page():
    """Counted apart from the page: by what pydantic itself dumps."""
    recipe = {"name": "x", "data": {"phantom": {}}, "pretrain": {"autoencoder": {}}, "evaluation": {"nnunet": {}}}
    recipe["image"] = {"generator": {"autoencoder": {}, "process": {"kind": "ddpm"}, "sampler": {"name": "dpm++"}}}
    recipe["privacy"] = {"image": {"subspace": {}}}
    assert set(flat(resolve(recipe).model_dump(mode="json"))) <= {setting.key for setting in settings(Experiment)}


def test_the_defaults_that_are_told_are_those_that_a_recipe_gets(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    told: dict[str, set[str]] = {}
    for setting in settings(Experiment):
        own, mark, apart = (setting.default or "").partition("; ")
        told.setdefault(setting.key, set()).add(apart.split()[0] if mark else own)
    got = flat(resolve({"name": "x", "data": {}, "pretrain": {}}).model_dump(mode="json"))
    assert len(got) > 150
    written = {key: f"{v:.4g}" if isinstance(v, float) else json.dumps(v).strip('"') for key, v in got.items()}
    assert not {key: value for key, value in written.items() if key != "name" and value not in told[key]}


class Inner(Section):
    """An inner section.

    More of it.
    """

    deep: float = Field(0.5, gt=0, lt=1)
    """Deep, ``in`` :func:`words`; None is nothing."""


class First(Section):
    """The first kind."""

    kind: Literal["first"] = "first"
    same: int = 1
    """Alike."""


class Second(First):
    """The second kind."""

    kind: Literal["second"]
    other: tuple[int, ...] = (1, 2)
    """Numbers."""


class File(Section):
    """A file."""

    must: str
    """Needed."""
    inner: Inner = Inner(deep=0.25)
    choice: First | Second = Field(First(), discriminator="kind")
    """One of two."""
    many: tuple[Inner, ...] = Field(min_length=1)
    """Several."""


def test_keys_are_told_with_what_they_take_their_default_and_meaning():
    assert list(settings(File)) == [
        Setting("must", "text", "required", "Needed."),
        Setting("inner", "section", None, "An inner section."),
        Setting(
            "inner.deep",
            "number, above 0, below 1",
            "0.5; 0.25 where the section is left out",
            "Deep, `in` `words`; null is nothing.",
        ),
        Setting("choice", "section", None, "One of two."),
        Setting("choice.kind", "`first` or `second`", "first", "`first`: The first kind; `second`: The second kind."),
        Setting("choice.same", "whole number", "1", "With `first` or `second`. Alike."),
        Setting("choice.other", "list of whole number", "[1, 2]", "With `second`. Numbers."),
        Setting("many", "list of section, at least 1", "required", "Several."),
        Setting("many[].deep", "number, above 0, below 1", "0.5", "Deep, `in` `words`; null is nothing."),
    ]


def test_a_word_shows_the_settings_that_have_it_in_their_names():
    assert (
        find("privacy.image.noise_multiplicity").splitlines()[0]
        == "privacy.image.noise_multiplicity (whole number, from 1, up to 4096; default 8)"
    )
    assert find("data.holdout").count("\n") == 1


def test_a_word_that_no_setting_has_is_refused(call):
    with pytest.raises(ConfigError, match="no setting has nonsense in its name"):
        find("nonsense")
    assert call("settings", "nonsense")[0] == 1


def test_the_page_is_one_table_for_each_section():
    text = page()
    assert text.count("\n| --- |") == text.count("| key | takes |")
    assert all(line.count(" | ") >= 3 for line in text.splitlines() if line.startswith("| `"))

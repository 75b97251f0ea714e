"""The ServerApp's reading of its run config."""

from pathlib import Path

import pytest

from cmrfed.core.errors import ConfigError
from cmrfed.pipeline.server_app import read_experiment

RECIPE = """
name: tiny
data: {cohorts: [discs, /elsewhere/b], external: {other: far/c}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return str(tmp_path / "recipe.yaml")


def test_relative_cohorts_lie_under_the_data_root(recipe: str) -> None:
    experiment = read_experiment({"recipe": recipe, "set": "", "data-root": "/data"})
    assert experiment.data.cohorts == ("/data/discs", "/elsewhere/b")
    assert experiment.data.external == {"other": "/data/far/c"}


def test_overrides_are_separated_by_spaces(recipe: str) -> None:
    experiment = read_experiment({"recipe": recipe, "set": "seed=7 data.size_px=32", "data-root": "/data"})
    assert (experiment.seed, experiment.data.size_px) == (7, 32)


def test_the_place_of_the_data_does_not_change_the_digest(recipe: str) -> None:
    digests = {read_experiment({"recipe": recipe, "set": "", "data-root": root}).digest for root in ("/a", "/b")}
    assert len(digests) == 1


@pytest.mark.parametrize(("key", "value"), [("recipe", ""), ("recipe", "recipe.yaml"), ("data-root", "")])
def test_a_path_that_is_not_absolute_is_refused(recipe: str, key: str, value: str) -> None:
    config = {"recipe": recipe, "set": "", "data-root": "/data", key: value}
    with pytest.raises(ConfigError, match=rf"run config needs {key}.*absolute path.*flwr run \. -c"):
        read_experiment(config)

import math
import re
from pathlib import Path

import pytest

from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.errors import ConfigError
from cmrfed.sweep.points import read_sweep, settings_of
from tests.sweep_world import BASE, GRID, make_sweep

HEAD = "name: s\nrecipe: base.yaml\n"


def test_a_grid_is_all_combinations_in_order(tmp_path):
    sweep = make_sweep(tmp_path)
    assert len(sweep.points) == 12
    assert sweep.axes == ("family", "epsilon", "seed")
    assert [p.title for p in sweep.points[:3]] == [
        "family ddpm, epsilon inf, seed 0", "family ddpm, epsilon inf, seed 1", "family ddpm, epsilon 8, seed 0"
    ]  # fmt: skip
    assert {p.epsilon for p in sweep.points} == {math.inf, 8.0, 2.0}
    assert len({p.name for p in sweep.points}) == 12
    assert all(re.fullmatch(r"[a-z0-9.-]+", p.name) for p in sweep.points)


def test_several_grids_are_the_points_of_each_in_order(tmp_path):
    both = "grid:\n  - {epsilon: {inf: {}}, seed: [0, 1]}\n  - {epsilon: {8: {epsilon: 8, synthesis.patients: 3}}}\n"
    sweep = make_sweep(tmp_path, HEAD + both)
    assert [p.title for p in sweep.points] == ["epsilon inf, seed 0", "epsilon inf, seed 1", "epsilon 8"]
    assert sweep.axes == ("epsilon", "seed")
    assert sweep.points[2].epsilon == 8
    assert sweep.points[2].experiment.synthesis.patients == 3


def test_an_infinite_epsilon_is_the_recipe_without_privacy(tmp_path):
    point = make_sweep(tmp_path, HEAD + "grid: {epsilon: [.inf]}").points[0]
    assert point.experiment.digest == resolve(tmp_path / "base.yaml").digest


def test_epsilon_zero_is_the_public_start_alone(tmp_path):
    tiny = "{rounds: 1, local_steps: 1}"
    base = BASE + f"pretrain: {{patients: 2, scanners: 1, mask: {tiny}, image: {tiny}}}\n"
    point = make_sweep(tmp_path, HEAD + "grid: {epsilon: [0, 4]}", base).points[0]
    assert point.epsilon == 0
    assert not point.experiment.steps()
    assert not point.experiment.privacy.private


def test_short_names_stand_for_settings(tmp_path):
    sweep = make_sweep(tmp_path, HEAD + "grid: {sites: [2, 3], strategy: [fedavg, fedadam]}")
    first = sweep.points[1].experiment
    assert (first.sites, first.federation.sites, first.data.phantom.sites) == (2, 2, 2)
    assert first.federation.strategy.name == "fedadam"


def test_points_may_be_listed(tmp_path):
    sweep = make_sweep(tmp_path, HEAD + "points: [{name: one, epsilon: 4}, {name: two, strategy: fedyogi}]")
    assert [point.labels for point in sweep.points] == [
        {"name": "one", "epsilon": "4"}, {"name": "two", "strategy": "fedyogi"}
    ]  # fmt: skip


def test_settings_for_all_points_lie_between_recipe_and_grid(tmp_path):
    sweep = make_sweep(tmp_path, HEAD + "set: {synthesis.patients: 7, seed: 5}\ngrid: {seed: [1, 2]}")
    assert [(p.experiment.synthesis.patients, p.experiment.seed) for p in sweep.points] == [(7, 1), (7, 2)]


def test_a_recipe_that_is_written_for_a_point_is_the_same_experiment(tmp_path):
    for point in make_sweep(tmp_path).points:
        again = Experiment.model_validate(point.experiment.model_dump(mode="json"))
        assert again.digest == point.experiment.digest
        assert settings_of(again) == settings_of(point.experiment)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs either grid or points"),
        ("grid: {seed: [0]}\npoints: [{seed: 0}]", "needs either grid or points"),
        ("grid: {}", "has no point"),
        ("grid: {seed: []}", r"grid\.seed has no value"),
        ("grid: []", "has no point"),
        ("grid: [{seed: [0]}, {}]", "a grid of the list has no axis"),
        ("grid: [{seed: [0]}, {seed: []}]", r"grid\.seed has no value"),
        ("grid: [{seed: [0]}, {seed: [1, 0]}]", "the same experiment"),
        ("grid: [{pretrain: {on: {seed: 1}}}]", "quote such a label"),
        ("grids: {seed: [0]}", "grids: no such key"),
        ("grid: {sed: [0]}", r"sed: no such setting \(did you mean seed\?\)"),
        ("grid: {seed: [0, 0]}", "the same experiment"),
        ("grid: {epsilon: [high]}", "epsilon high.*inf, 0 or a positive number"),
        ("grid: {epsilon: [-1]}", "epsilon -1"),
        ("grid: {epsilon: [0]}", "there are no pre-trained weights"),
        ("grid: {data.partition: [{sites: 2}]}", r"a value of grid\.data\.partition has no name"),
        ("grid: {pretrain: {on: {seed: 1}}}", "quote such a label"),
        ("grid: {a: {x: {seed: 1}}, b: {y: {seed: 2}}}", "a and b both set seed"),
        ("grid: {data.partition.scheme: [iid, group]}", r"data\.partition\.scheme has no effect here"),
        ("grid: {privacy.epsilon: [.inf]}", "a setting is not finite"),
        ("set: {name.more: 1}\ngrid: {seed: [1]}", "name.more goes through a value"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        make_sweep(tmp_path, HEAD + text)


def test_every_point_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"2 of 3 points.*sites 0: .*; sites 1: "):
        make_sweep(tmp_path, HEAD + "grid: {sites: [0, 1, 2]}")


def test_an_override_that_every_point_overwrites_is_refused(tmp_path):
    make_sweep(tmp_path)
    with pytest.raises(ConfigError, match="the sweep itself sets"):
        read_sweep(tmp_path / "sweep.yaml", ["seed=3"])
    assert read_sweep(tmp_path / "sweep.yaml", ["synthesis.patients=3"]).points[0].experiment.synthesis.patients == 3


def test_a_recipe_that_is_not_there(tmp_path):
    (tmp_path / "s.yaml").write_text(GRID)
    with pytest.raises(ConfigError, match="names a recipe that is not there"):
        read_sweep(tmp_path / "s.yaml")


@pytest.mark.parametrize("path", sorted(Path("configs/sweeps").glob("*.yaml")), ids=lambda path: path.name)
def test_every_sweep_of_the_project_can_be_read(path):
    overrides = [] if path.stem == "quick" else ["data.cohorts=[/cohort]"]
    assert len(read_sweep(path, overrides).points) >= 6


def test_heterogeneity_is_an_axis_of_one_cohort(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "s.yaml").write_text(HEAD + "grid: {data.partition.scheme: [iid, group]}")
    assert len(read_sweep(tmp_path / "s.yaml", ["data.cohorts=[/cohort]"]).points) == 2

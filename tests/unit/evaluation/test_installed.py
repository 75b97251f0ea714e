import sys
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from cmrfed.core.errors import ConfigError, EvaluationError
from cmrfed.core.settings.digests import digested
from cmrfed.evaluation.installed import (
    InstalledAttack,
    Sets,
    attack_scores,
    check_installed,
    installed_attacks,
    installed_metrics,
)
from cmrfed.evaluation.privacy.black_box import Cloud, contest
from cmrfed.evaluation.privacy.nearest import Points
from cmrfed.evaluation.results.catalogue import MEASURES
from cmrfed.evaluation.settings import AttackConfig, EvaluationConfig
from tests.evaluation_world import sliced
from tests.plugin_world import install

METRIC = """
import numpy as np
from cmrfed.evaluation.installed import InstalledMetric
from cmrfed.evaluation.results.catalogue import Measure, metric
from cmrfed.evaluation.results.result import Findings

BRIGHTNESS = Measure("fidelity.brightness", "Brightness", "mean grey value", "ratio", None)

def brightness(sets):
    return Findings(metrics=(metric("fidelity.brightness", float(sets.synthetic.images.mean())),))

PART = InstalledMetric((BRIGHTNESS,), brightness)
TAKEN = InstalledMetric((Measure("fidelity.kid", "KID", "another", "ratio", "lower"),), brightness)
FAILS = InstalledMetric((), lambda sets: 1 / 0)
"""
ATTACK = """
from cmrfed.evaluation.installed import InstalledAttack
WHITE = InstalledAttack("white-box", "nothing", lambda probe, slices, seed: slices)
BLACK = InstalledAttack("black-box", "nothing", lambda targets, released: targets[:, 0])
"""
NEAREST = InstalledAttack(
    "black-box",
    "minus the root mean square distance to the nearest slice",
    lambda targets, released: -np.sqrt(np.square(targets[:, None] - released[None]).mean(2)).min(1),
)


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "site")
    metrics = {name: f"paint_metrics:{part}" for name, part in
               {"brightness": "PART", "taken": "TAKEN", "fails": "FAILS", "word": "brightness"}.items()}  # fmt: skip
    install(tmp_path / "site", "cmrfed.metrics", "paint-metrics", metrics, METRIC)
    attacks = {"peek": "paint_attacks:WHITE", "first": "paint_attacks:BLACK"}
    install(tmp_path / "site", "cmrfed.attacks", "paint-attacks", attacks, ATTACK)
    yield
    MEASURES.pop("fidelity.brightness", None)
    for name in ("paint_metrics", "paint_attacks"):
        sys.modules.pop(name, None)


@pytest.fixture
def sets(tmp_path):
    slices = sliced(tmp_path / "real", range(2), "real")
    return Sets(replace(slices, name="synthetic"), slices, slices, 0)


def test_nothing_is_loaded_that_is_not_asked_for(plugins, sets):
    check_installed((), AttackConfig())
    assert not installed_metrics((), sets).metrics
    assert not {"paint_metrics", "paint_attacks"} & set(sys.modules)


def test_an_installed_metric_is_computed(plugins, sets):
    (found,) = installed_metrics(("brightness",), sets).metrics
    assert (found.id, found.name) == ("fidelity.brightness", "Brightness")
    assert found.value == pytest.approx(sets.synthetic.images.mean())


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("brightnes", ConfigError, r"there is no metric brightnes \(did you mean brightness\?\)"),
        ("word", ConfigError, r"paint_metrics:brightness of paint-metrics 1\.2 is no metric.*is no InstalledMetric"),
        ("taken", ConfigError, r"metric taken cannot be used. Got: fidelity\.kid cannot be registered"),
        ("fails", EvaluationError, r"metric fails of paint-metrics 1\.2 failed. Got: ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_a_metric_is_said(plugins, sets, name, kind, words):
    with pytest.raises(kind, match=words):
        installed_metrics((name,), sets)


def test_an_attack_that_would_not_run_is_refused_before_anything_is_computed(plugins):
    check_installed(("brightness",), AttackConfig(installed=("first",)))
    with pytest.raises(ConfigError, match=r"white-box attacks are turned off. Got: evaluation\.attacks\.white_box"):
        check_installed((), AttackConfig(installed=("peek",)))
    config = AttackConfig(white_box=True, installed=("peek", "first"))
    check_installed((), config)
    assert list(installed_attacks(config, "white-box")) == ["peek"]
    assert list(installed_attacks(config, "black-box")) == ["first"]


def test_an_installed_attack_is_scored_as_the_own_one_with_its_score_is():
    rng = np.random.default_rng(0)
    clouds = [
        Cloud.whole(Points(rng.normal(size=(12, 5)), np.repeat([f"{kind}{i}" for i in range(4)], 3))) for kind in "mos"
    ]
    found = contest(*clouds, installed={"own": NEAREST})
    for side in ("members", "others"):
        np.testing.assert_allclose(getattr(found["own"], side), getattr(found["nearest-neighbour"], side), rtol=1e-5)


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (lambda *_: np.zeros(3), r"Got: shape \(3,\) for 2 slices"),
        (lambda *_: np.array([0, np.nan]), "Got: NaN or infinity for 2 slices"),
        (lambda *_: 1 / 0, "Got: ZeroDivisionError"),
    ],
)
def test_scores_of_an_attack_are_one_finite_number_for_each_slice(score, words):
    with pytest.raises(EvaluationError, match=words):
        attack_scores("own", InstalledAttack("black-box", "", score), 2, np.zeros((2, 1)), np.zeros((4, 1)))


def test_settings_that_name_no_plugin_have_the_digest_that_they_had_before():
    written = digested(EvaluationConfig())
    assert "installed_metrics" not in written
    assert "installed" not in written["attacks"]
    with pytest.raises(ValidationError):
        EvaluationConfig(installed_metrics="brightness")

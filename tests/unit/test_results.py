"""What README and the recipe's header say of results is what the recorded evaluation says."""

import json
from pathlib import Path

import pytest

from cmrfed.config.experiment import resolve

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "docs" / "results" / "acdc.json").read_text(encoding="utf-8"))
METRICS = {metric["id"]: metric for metric in RECORD["metrics"]}
README = (ROOT / "README.md").read_text(encoding="utf-8")
HEADER = (ROOT / RECORD["recipe"]).read_text(encoding="utf-8")


def test_the_record_is_of_the_recipe_as_it_is():
    assert resolve(ROOT / RECORD["recipe"]).digest == RECORD["digest"]


def short(value: float, digits: int = 3) -> str:
    """.856, as the project writes numbers below 1."""
    return f"{value:.{digits}f}".removeprefix("0").replace("-0.", "-.")


def interval(metric: dict, digits: int = 3) -> str:
    value, low, high = (short(metric[key], digits) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


@pytest.mark.parametrize(
    ("metric", "digits"),
    [
        ("utility.dice.synthetic.holdout", 3),
        ("utility.dice.real.holdout", 3),
        ("utility.dice.both.holdout", 3),
        ("utility.dice-ratio.synthetic.holdout", 3),
        ("utility.dice-ratio.synthetic.sunnybrook", 3),
        ("fidelity.kid.synthetic.phantom-cnn-v1", 2),
        ("leakage.auc.calibrated-neighbour.pixels", 2),
    ],
)
def test_values_with_intervals_stand_in_readme_and_header(metric, digits):
    text = interval(METRICS[metric], digits)
    assert text in README
    assert text in HEADER


def test_shares_and_controls_stand_there_too():
    valid, nearer = METRICS["anatomy.valid-masks.synthetic"], METRICS["memorisation.nearer-to-training.pixels"]
    low, high = 100 * valid["low"], 100 * valid["high"]
    for text in (
        f"{100 * valid['value']:.1f} % ({low:.1f} to {high:.1f})",
        f"{100 * valid['reference']:.1f} %",
        f"{100 * nearer['value']:.0f} %",
        f"{100 * METRICS['memorisation.copies.pixels']['value']:.1f} %",
        short(METRICS["fidelity.kid.blurred-training.phantom-cnn-v1"]["value"], 2),
    ):
        assert text in README
        assert text in HEADER


def test_no_stronger_attack_was_left_out():
    black_box = [metric for name, metric in METRICS.items() if name.startswith("leakage.auc.")]
    assert len(black_box) == 8
    assert max(black_box, key=lambda metric: metric["value"])["id"] == "leakage.auc.calibrated-neighbour.pixels"

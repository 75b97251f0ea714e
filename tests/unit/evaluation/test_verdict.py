import pytest

from cmrfed.evaluation.results import catalogue
from cmrfed.evaluation.results.result import Estimate, Findings
from cmrfed.evaluation.verdict import verdicts

MEASURED = {"space": "pixels"}


def metric(key, value, *, low=None, high=None, of=catalogue.NONE, reference=None):
    return catalogue.metric(key, Estimate(value, low, high), of, reference=reference)


def judged(axis, *metrics):
    return next(verdict for verdict in verdicts(Findings(metrics=metrics)) if verdict.axis == axis)


def kids(value):
    arms = (("synthetic", value, None), ("training", 0.01, 0.05), ("blurred-training", 1.0, None))
    return tuple(metric("fidelity.kid", v, high=high, of={"arm": arm, "space": "x"}) for arm, v, high in arms)


@pytest.mark.parametrize(("value", "level"), [(0.05, "good"), (0.06, "fair"), (1.1, "poor")])
def test_fidelity_is_judged_by_its_yardsticks(value, level):
    verdict = judged("fidelity", *kids(value))
    assert verdict.level == level
    assert verdict.text.startswith(f"KID (x) is {value:.4f}")
    assert verdict.word == level.capitalize()


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_fidelity_is_not_judged_without_all_of_its_numbers(left_out):
    found = [kid for number, kid in enumerate(kids(0.01)) if number != left_out]
    assert judged("fidelity", *found).level == "not-measured"


def shapes(*excess, valid=1.0):
    quantities = ("area", "eccentricity", "roundness")
    made = tuple(
        metric("anatomy.shape-distance", 0.2 + e, reference=0.2, of={"structure": "lv", "quantity": q})
        for q, e in zip(quantities, excess, strict=False)
    )
    return (*made, metric("anatomy.valid-masks", valid, of={"arm": "synthetic"}, reference=0.95))


@pytest.mark.parametrize(
    ("metrics", "level"),
    [
        (shapes(0.1, 0.2, 0.3), "good"),
        (shapes(0.1, 0.2, 0.9), "fair"),
        (shapes(0.1, 0.2, 0.3, valid=0.8), "fair"),
        (shapes(0.8, 0.9, 0.1), "poor"),
    ],
)
def test_anatomy(metrics, level):
    assert judged("anatomy", *metrics).level == level


def test_clinical_distances_have_units_of_their_own_and_do_not_judge_shapes():
    volume = metric("anatomy.clinical-distance", 90.0, of={"quantity": "lv-edv"}, reference=1.0)
    assert judged("anatomy", *shapes(0.1), volume).level == "good"


def test_post_processed_masks_are_said_to_be():
    drawn = metric("anatomy.valid-masks", 0.9, of={"arm": "as-drawn"}, reference=0.95)
    assert "100% of synthetic masks are valid (90% as drawn), 95%" in judged("anatomy", *shapes(0.1), drawn).text
    assert "as drawn" not in judged("anatomy", *shapes(0.1)).text


@pytest.mark.parametrize(
    ("nearer", "copies", "level"),
    [
        ((0.52, 0.45), (0.0, 0.0), "none-found"),
        ((0.62, 0.55), (0.0, 0.0), "some-sign"),
        ((0.52, 0.45), (0.03, 0.02), "some-sign"),
        ((0.9, 0.8), (0.5, 0.4), "strong-sign"),
    ],
)
def test_memorisation(nearer, copies, level):
    verdict = judged(
        "memorisation",
        metric("memorisation.nearer-to-training", nearer[0], low=nearer[1], reference=0.5, of=MEASURED),
        metric("memorisation.copies", copies[0], low=copies[1], reference=0.01, of=MEASURED),
    )
    assert verdict.level == level
    assert "no guarantee" in verdict.text


RATIO = {"arm": "synthetic", "test": "holdout"}


@pytest.mark.parametrize(("ratio", "level"), [(0.98, "good"), (0.92, "fair"), (0.5, "poor")])
def test_utility(ratio, level):
    gain = metric("utility.dice-gain", 0.02, low=0.01, high=0.03, of={"arm": "both", "test": "holdout"})
    verdict = judged("utility", metric("utility.dice-ratio", ratio, of=RATIO), gain)
    assert verdict.level == level
    assert "+0.020 (interval over patients above 0)" in verdict.text


def test_utility_is_judged_without_an_arm_of_both():
    verdict = judged("utility", metric("utility.dice-ratio", 0.98, of=RATIO))
    assert verdict.words.startswith("Good: A segmenter trained on synthetic slices alone reaches 0.980")
    assert "adding synthetic" not in verdict.text


def test_utility_is_that_of_the_reference_segmenter_on_the_holdout():
    others = ({"segmenter": "nnunet"}, {"test": "far away"})
    found = [metric("utility.dice-ratio", 0.1, of=RATIO | other) for other in others]
    assert judged("utility", *found).level == "not-measured"
    assert judged("utility", *found, metric("utility.dice-ratio", 0.98, of=RATIO)).level == "good"


def test_nothing_measured_is_said():
    assert all(verdict.level == "not-measured" for verdict in verdicts(Findings()))
    assert all(verdict.word == "Not measured" and verdict.text for verdict in verdicts(Findings()))

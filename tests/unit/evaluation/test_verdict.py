import pytest

from cmrfed.evaluation.result import Findings, Metric
from cmrfed.evaluation.verdict import verdict


def metric(axis, name, value, **kw):
    return Metric(axis=axis, name=name, value=value, **kw)


def kids(value):
    return (
        metric("fidelity", "KID (x)", value),
        metric("fidelity", "KID (x), training against hold-out", 0.01, high=0.05),
        metric("fidelity", "KID (x), blurred training against hold-out", 1.0),
    )


@pytest.mark.parametrize(("value", "word"), [(0.05, "Good"), (0.06, "Fair"), (1.1, "Poor")])
def test_fidelity_is_judged_by_its_yardsticks(value, word):
    text = verdict(Findings(metrics=kids(value)))["fidelity"]
    assert text.startswith(f"{word}: KID (x) is {value:.4f}")


def shapes(*excess, valid=1.0):
    unit = "SD of hold-out patients"
    made = tuple(metric("anatomy", f"s{i}", 0.2 + e, reference=0.2, unit=unit) for i, e in enumerate(excess))
    return (*made, metric("anatomy", "Anatomically valid masks", valid, reference=0.95))


@pytest.mark.parametrize(
    ("metrics", "word"),
    [
        (shapes(0.1, 0.2, 0.3), "Good"),
        (shapes(0.1, 0.2, 0.9), "Fair"),
        (shapes(0.1, 0.2, 0.3, valid=0.8), "Fair"),
        (shapes(0.8, 0.9, 0.1), "Poor"),
    ],
)
def test_anatomy(metrics, word):
    assert verdict(Findings(metrics=metrics))["anatomy"].startswith(f"{word}:")


def test_post_processed_masks_are_said_to_be():
    drawn = metric("anatomy", "Anatomically valid masks, as drawn", 0.9, reference=0.95)
    assert (
        "100% of synthetic masks are valid (90% as drawn), 95%"
        in verdict(Findings(metrics=(*shapes(0.1), drawn)))["anatomy"]
    )
    assert "as drawn" not in verdict(Findings(metrics=shapes(0.1)))["anatomy"]


@pytest.mark.parametrize(
    ("nearer", "copies", "word"),
    [
        ((0.52, 0.45), (0.0, 0.0), "No sign of copying found"),
        ((0.62, 0.55), (0.0, 0.0), "Some sign of memorisation"),
        ((0.52, 0.45), (0.03, 0.02), "Some sign of memorisation"),
        ((0.9, 0.8), (0.5, 0.4), "Strong sign of copying"),
    ],
)
def test_memorisation(nearer, copies, word):
    metrics = (
        metric("memorisation", "Nearer to training than to hold-out (pixels)", nearer[0], low=nearer[1], reference=0.5),
        metric("memorisation", "Copies of training slices (pixels)", copies[0], low=copies[1], reference=0.01),
    )
    text = verdict(Findings(metrics=metrics))["memorisation"]
    assert text.startswith(f"{word}:")
    assert "no guarantee" in text


@pytest.mark.parametrize(("ratio", "word"), [(0.98, "Good"), (0.92, "Fair"), (0.5, "Poor")])
def test_utility(ratio, word):
    metrics = (
        metric("utility", "Dice ratio synthetic / real, hold-out", ratio),
        metric("utility", "Dice gain of adding synthetic, hold-out", 0.02, low=0.01, high=0.03),
    )
    text = verdict(Findings(metrics=metrics))["utility"]
    assert text.startswith(f"{word}:")
    assert "+0.020 (the interval over patients lies above 0)" in text


def test_usefulness_is_judged_without_an_arm_of_both():
    text = verdict(Findings(metrics=(metric("utility", "Dice ratio synthetic / real, hold-out", 0.98),)))["utility"]
    assert text.startswith("Good: a segmenter trained on synthetic slices alone reaches 0.980")
    assert "adding synthetic" not in text


def test_nothing_measured_is_said():
    assert all(text.startswith("Not measured") for text in verdict(Findings()).values())

import pytest

from cmrfed.evaluation.results.catalogue import metric, series, unavailable
from cmrfed.evaluation.results.result import Estimate, EvaluationReport, Verdict
from cmrfed.report.results import axes, cards, duration, trade_off_chart


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert duration(seconds) == text


DICE = {"arm": "real", "test": "holdout"}
AREA = {"structure": "lv", "quantity": "area"}


def test_each_metric_keeps_its_interval_n_direction_and_reference():
    dice = metric("utility.dice", Estimate(0.8, 0.7, 0.9), DICE, n=12, reference=0.82)
    (axis,) = axes(EvaluationReport(metrics=(dice,)))
    (row,) = axis.rows
    assert (row.value, row.interval, row.n, row.reference) == ("0.8", "0.7 to 0.9", "12", "0.82")
    assert (row.arrow, row.direction, row.unit) == ("↑", "higher is better", "Dice, 0 to 1")


def test_what_is_not_known_is_not_made_up():
    (axis,) = axes(EvaluationReport(metrics=(metric("fidelity.spread", 3.0),)))
    (row,) = axis.rows
    assert (row.interval, row.n, row.reference, row.arrow) == ("–", "–", "–", "")


def test_axes_have_one_order_and_figures_stand_beside_their_table():
    drawn = (
        series("utility.dice-per-patient", {"real": (0.8, 0.9)}, {"test": "holdout"}),
        series("anatomy.shape", {"holdout": (3.0, 4.0)}, AREA, unit="pixels"),
    )
    metrics = (metric("utility.dice", 0.8, DICE), metric("fidelity.psnr", 0.1))
    found = axes(EvaluationReport(metrics=metrics, series=drawn))
    assert [axis.key for axis in found] == ["fidelity", "anatomy", "utility"]
    assert [chart.title for axis in found for chart in axis.charts] == ["LV area", "Dice per patient, hold-out"]
    assert found[2].charts[0].dots[1].tip == "real only, no. 2: 0.9"
    assert found[1].charts[0].y_label == "LV area (pixels)"


def test_a_series_without_numbers_is_not_drawn():
    assert axes(EvaluationReport(series=(series("anatomy.shape", {"holdout": (), "synthetic": ()}, AREA),))) == []


def test_cards_hold_the_words_of_verdicts_and_the_tone_of_their_levels():
    verdicts = (
        Verdict(axis="utility", level="good", word="Splendid", text="It reaches 0.98.", rule="Good from 0.97."),
        Verdict(axis="fidelity", level="not-measured", word="Not measured", text="No KID."),
    )
    first, second = cards(EvaluationReport(verdicts=verdicts))
    assert (first.tag, first.tone, first.text, first.rule) == ("Not measured", "", "No KID.", "")
    assert (second.tag, second.tone, second.text) == ("Splendid", "good", "It reaches 0.98.")
    assert second.rule == "Good from 0.97."


def test_finding_no_copies_is_not_praised():
    for axis in ("memorisation", "leakage"):
        (card,) = cards(EvaluationReport(verdicts=(Verdict(axis=axis, level="none-found", word="w", text="t"),)))
        assert card.tone == ""


def test_many_values_are_drawn_as_histograms():
    many = series("anatomy.shape", {"holdout": tuple(float(i) for i in range(200))}, AREA, unit="pixels")
    (axis,) = axes(EvaluationReport(series=(many,)))
    assert [path.kind for path in axis.charts[0].paths] == ["outline"]


def auc(attack, space, *interval):
    return metric("leakage.auc", Estimate(*interval), {"attack": attack, "space": space})


def test_attacks_of_one_kind_share_a_figure_beside_their_table():
    scores = {"members": (3.0, 2.0), "others": (1.0, 0.0)}
    attacks = (("nearest-neighbour", "pixels"), ("neighbour-ratio", "pixels"), ("loss", "white-box"))
    drawn = tuple(series("leakage.scores", scores, {"attack": a, "space": s}) for a, s in attacks)
    ceiling = series("leakage.ceiling", {"fpr": (0.0, 1.0), "tpr": (0.2, 1.0)})
    report = EvaluationReport(metrics=(auc("nearest-neighbour", "pixels", 1.0, None, None),), series=(*drawn, ceiling))
    (axis,) = axes(report)
    assert [c.title for c in axis.charts] == ["Membership inference: pixels", "Membership inference: white box"]
    assert axis.charts[0].legend == ("nearest neighbour", "neighbour ratio")
    assert all("ceiling" in [p.kind for p in c.paths] for c in axis.charts)


def test_utility_stands_against_the_attack_that_finds_most():
    ratio = metric("utility.dice-ratio", Estimate(0.9, 0.8, 0.95), {"arm": "synthetic", "test": "holdout"})
    weak, inverted = auc("near", "pixels", 0.6, 0.5, 0.7), auc("loss", "white-box", 0.2, 0.1, 0.35)
    failed = unavailable("leakage.auc", "failed its control", {"attack": "far", "space": "pixels"})
    chart = trade_off_chart(EvaluationReport(metrics=(ratio, weak, inverted, failed)))
    assert chart.rows[1] == ("AUC, loss (white box)", "0.8", "0.65", "0.9")
    assert "0.9 of the Dice of real slices, AUC 0.8" in chart.dots[0].tip
    for part in ((ratio, failed), (weak,)):
        assert trade_off_chart(EvaluationReport(metrics=part)) is None

import pytest

from cmrfed.evaluation.result import EvaluationReport, Metric
from cmrfed.report.results import axes, cards, duration, trade_off_chart


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert duration(seconds) == text


def test_each_metric_keeps_its_interval_n_direction_and_reference():
    metric = Metric(axis="utility", name="Dice", value=0.8, low=0.7, high=0.9, n=12, reference=0.82)
    (axis,) = axes(EvaluationReport(metrics=(metric.model_copy(update={"higher_is_better": True}),)))
    (row,) = axis.rows
    assert (row.value, row.interval, row.n, row.reference) == ("0.8", "0.7 to 0.9", "12", "0.82")
    assert (row.arrow, row.direction) == ("↑", "higher is better")


def test_what_is_not_known_is_not_made_up():
    (axis,) = axes(EvaluationReport(metrics=(Metric(axis="fidelity", name="FID", value=3.0),)))
    (row,) = axis.rows
    assert (row.interval, row.n, row.reference, row.arrow) == ("–", "–", "–", "")


def test_axes_have_one_order_and_figures_stand_beside_their_table():
    series = {"Dice per patient, hold-out": {"real only": (0.8, 0.9)}, "LV area": {"real": (3.0, 4.0)}}
    metrics = (Metric(axis="utility", name="Dice", value=0.8), Metric(axis="fidelity", name="KID", value=0.1))
    found = axes(EvaluationReport(metrics=metrics, series=series))
    assert [axis.key for axis in found] == ["fidelity", "anatomy", "utility"]
    assert [chart.title for axis in found for chart in axis.charts] == ["LV area", "Dice per patient, hold-out"]
    assert found[2].charts[0].dots[1].tip == "real only, no. 2: 0.9"


def test_a_series_without_numbers_is_not_drawn():
    assert axes(EvaluationReport(series={"LV area": {"real": (), "synthetic": ()}})) == []


def test_cards_hold_the_judges_words():
    words = {"utility": "Good: it reaches 0.98. Rule: good from 0.97.", "fidelity": "Not measured: no KID."}
    first, second = cards(EvaluationReport(verdict=words))
    assert (first.tag, first.tone, first.text, first.rule) == ("Not measured", "", "No KID.", "")
    assert (second.tag, second.tone, second.text, second.rule) == (
        "Good",
        "good",
        "It reaches 0.98.",
        "Good from 0.97.",
    )


def test_finding_no_copies_is_not_praised():
    (card,) = cards(EvaluationReport(verdict={"memorisation": "No sign of copying found: 1 % copies."}))
    assert card.tone == ""


def test_many_values_are_drawn_as_histograms():
    series = {"LV area": {"real": tuple(float(i) for i in range(200))}}
    (axis,) = axes(EvaluationReport(series=series))
    assert [path.kind for path in axis.charts[0].paths] == ["outline"]


def test_attacks_of_one_kind_share_a_figure_beside_their_table():
    scores = {"members": (3.0, 2.0), "others": (1.0, 0.0)}
    series = {f"Membership scores, {name}": scores for name in ("a (pixels)", "b (pixels)", "loss (white box)")}
    series["Membership ceiling"] = {"FPR": (0.0, 1.0), "TPR": (0.2, 1.0)}
    (axis,) = axes(
        EvaluationReport(metrics=(Metric(axis="leakage", name="AUC, a (pixels)", value=1.0),), series=series)
    )
    assert [c.title for c in axis.charts] == ["Membership attacks: pixels", "Membership attacks: white box"]
    assert axis.charts[0].legend == ("a", "b")
    assert all("ceiling" in [p.kind for p in c.paths] for c in axis.charts)


def test_usefulness_stands_against_the_attack_that_tells_most():
    ratio = Metric(axis="utility", name="Dice ratio synthetic / real, hold-out", value=0.9, low=0.8, high=0.95)
    weak = Metric(axis="leakage", name="AUC, near (pixels)", value=0.6, low=0.5, high=0.7)
    inverted = Metric(axis="leakage", name="AUC, loss (white box)", value=0.2, low=0.1, high=0.35)
    failed = Metric(axis="leakage", name="AUC, far (pixels)", unavailable="failed its control")
    chart = trade_off_chart(EvaluationReport(metrics=(ratio, weak, inverted, failed)))
    assert chart.rows[1] == ("AUC, loss (white box)", "0.8", "0.65", "0.9")
    assert "0.9 of the Dice of real slices, AUC 0.8" in chart.dots[0].tip
    for part in ((ratio, failed), (weak,)):
        assert trade_off_chart(EvaluationReport(metrics=part)) is None

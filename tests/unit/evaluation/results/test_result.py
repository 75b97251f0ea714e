import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cmrfed.evaluation.results.reading import read_evaluation
from cmrfed.evaluation.results.result import (
    QUALIFIERS,
    EvaluationReport,
    Findings,
    Metric,
    Notice,
    Series,
    Verdict,
    bootstrap,
    mean_interval,
    slug,
)


def metric(**kw):
    return Metric(**({"axis": "fidelity", "measure": "kid", "name": "KID", "value": 0.1} | kw))


@pytest.mark.parametrize("kw", [{"value": None}, {"unavailable": "no weights"}])
def test_a_metric_has_a_value_or_a_reason_never_both_or_none(kw):
    with pytest.raises(ValidationError, match="a value or the reason"):
        metric(**kw)


def test_no_number_that_is_none(tmp_path):
    with pytest.raises(ValidationError, match="finite"):
        metric(value=float("nan"))


def series(name, **groups):
    return Series(axis="anatomy", measure=name, kind="values", name=name, label=name, groups=groups)


def test_findings_add_up_and_series_of_one_id_become_one():
    both = Findings(metrics=(metric(),), series=(series("a", x=(1.0,)),)) + Findings(
        metrics=(metric(measure="fid"),), warnings=(Notice(text="w"),), series=(series("a", y=(2.0,)), series("b"))
    )
    assert [m.id for m in both.metrics] == ["fidelity.kid", "fidelity.fid"]
    assert both.warnings == (Notice(text="w"),)
    assert [(s.id, s.groups) for s in both.series] == [("anatomy.a", {"x": (1.0,), "y": (2.0,)}), ("anatomy.b", {})]
    assert both.find("fidelity.fid").measure == "fid"
    assert both.find("fidelity.psnr") is None


def test_the_report_is_read_back(tmp_path):
    verdict = Verdict(axis="fidelity", level="good", word="Good", text="…")
    report = EvaluationReport(metrics=(metric(low=0.0, high=0.2, n=3),), verdicts=(verdict,), series=(series("a"),))
    report.write(tmp_path)
    assert read_evaluation(tmp_path / "evaluation.json") == report
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert next(iter(rows[0])) == "id"
    assert set(rows[0]) == set(Metric.model_fields)
    assert (rows[0]["id"], rows[0]["name"]) == ("fidelity.kid", "KID")
    assert float(rows[0]["high"]) == 0.2


# --- ids ------------------------------------------------------------------------------------------
@given(st.text(min_size=1))
def test_whatever_a_user_calls_a_test_set_it_makes_a_segment(name):
    made = metric(axis="utility", measure="dice", arm="real", test=name)
    assert made.id == f"utility.dice.real.{slug(name)}"
    assert made.test == name


@given(st.sets(st.sampled_from(QUALIFIERS)), st.sets(st.sampled_from(QUALIFIERS)))
def test_qualifiers_stand_in_one_order_and_others_give_another_id(some, others):
    ids = [metric(**{name: name for name in chosen}).id for chosen in (some, others)]
    assert ids[0] == ".".join(["fidelity", "kid", *(name for name in QUALIFIERS if name in some)])
    assert (ids[0] == ids[1]) == (some == others)


def test_an_id_that_does_not_fit_its_fields_is_refused():
    with pytest.raises(ValidationError, match=r"does not fit its fields, which give fidelity\.kid"):
        metric(id="fidelity.fid")


def test_an_id_comes_once(tmp_path):
    with pytest.raises(ValidationError, match=r"come twice: fidelity\.kid"):
        EvaluationReport(metrics=(metric(), metric(name="another name")))


@pytest.mark.parametrize("measure", ["", "Dice", "a.b", "a b", "-a"])
def test_a_measure_is_one_segment(measure):
    with pytest.raises(ValidationError):
        metric(measure=measure)


def test_the_interval_of_a_mean_has_the_width_of_theory():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean, low, high = mean_interval(values)
    assert mean == values.mean()
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)


def test_one_patient_has_no_interval():
    assert bootstrap(np.ones((1, 2)), lambda drawn: drawn.mean((1, 2))) == (None, None)
    assert mean_interval(np.array([0.5])) == (0.5, None, None)

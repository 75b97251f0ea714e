import csv
import json

import numpy as np
import pytest
from pydantic import ValidationError

from cmrfed.evaluation.result import EvaluationReport, Findings, Metric, bootstrap, mean_interval


def metric(**kw):
    return Metric(**({"axis": "fidelity", "name": "KID", "value": 0.1} | kw))


@pytest.mark.parametrize("kw", [{"value": None}, {"unavailable": "no weights"}])
def test_a_metric_has_a_value_or_a_reason_never_both_or_none(kw):
    with pytest.raises(ValidationError, match="a value or the reason"):
        metric(**kw)


def test_no_number_that_is_none(tmp_path):
    with pytest.raises(ValidationError, match="finite"):
        metric(value=float("nan"))


def test_findings_add_up():
    both = Findings(metrics=(metric(),), series={"a": {"x": (1.0,)}}) + Findings(
        metrics=(metric(name="FID"),), warnings=("w",), series={"b": {}}
    )
    assert [m.name for m in both.metrics] == ["KID", "FID"]
    assert both.warnings == ("w",)
    assert set(both.series) == {"a", "b"}
    assert both.find("FID").name == "FID"
    assert both.find("PSNR") is None


def test_the_report_is_read_back(tmp_path):
    report = EvaluationReport(metrics=(metric(low=0.0, high=0.2, n=3),), verdict={"fidelity": "Good: …"})
    report.write(tmp_path)
    assert EvaluationReport.model_validate(json.loads((tmp_path / "evaluation.json").read_text())) == report
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert rows[0]["name"] == "KID"
    assert float(rows[0]["high"]) == 0.2


def test_the_interval_of_a_mean_has_the_width_of_theory():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean, low, high = mean_interval(values)
    assert mean == values.mean()
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)


def test_one_patient_has_no_interval():
    assert bootstrap(np.ones((1, 2)), lambda drawn: drawn.mean((1, 2))) == (None, None)
    assert mean_interval(np.array([0.5])) == (0.5, None, None)

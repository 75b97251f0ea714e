"""evaluation.json of this version and of the one before."""

import json
from pathlib import Path

import pytest

from cmrfed.core.artifacts import read_json
from cmrfed.core.errors import DataError
from cmrfed.evaluation.results import catalogue
from cmrfed.evaluation.results.reading import json_schema, read_evaluation
from cmrfed.evaluation.verdict import verdicts

OLD = Path(__file__).parents[3] / "golden" / "evaluation-1.json"
"""Written by version 0.1 from drawn hearts: all arms, sites, an external set, a claim that is refuted, nnU-Net."""
SCHEMA = Path(__file__).parents[4] / "docs" / "evaluation.schema.json"


@pytest.fixture(scope="module")
def old():
    return read_evaluation(OLD)


def test_no_number_of_an_old_evaluation_is_lost_or_changed(old):
    said = read_json(OLD)
    assert len(old.metrics) == len(said["metrics"]) > 150
    for metric, before in zip(old.metrics, said["metrics"], strict=True):
        same = set(before) - {"unit"}
        assert {name: getattr(metric, name) for name in same} == {name: before[name] for name in same}
    assert [list(series.groups.values()) for series in old.series] == [
        [tuple(values) for values in groups.values()] for groups in said["series"].values()
    ]


def test_all_its_names_become_ids_that_are_known(old):
    """But for what is the user's own, the catalogue calls them what they were called."""
    assert {metric.key for metric in old.metrics} <= set(catalogue.MEASURES)
    assert {series.key for series in old.series} == set(catalogue.PLOTS)
    assert {metric.unit for metric in old.metrics} - {None} <= set(catalogue.UNITS)
    renamed = {"tpr", "clinical-distance", "clinical-error"}
    for metric in old.metrics:
        of = {name: getattr(metric, name) for name in catalogue.MEASURES[metric.key].qualifiers}
        if metric.segmenter is None and metric.measure not in renamed and metric.arm != "mixed-25":
            assert catalogue.name_of(metric.key, of) == metric.name


@pytest.mark.parametrize(
    ("name", "metric_id"),
    [
        ("KID (phantom-cnn-v1)", "fidelity.kid.synthetic.phantom-cnn-v1"),
        ("KID (phantom-cnn-v1), training against hold-out", "fidelity.kid.training.phantom-cnn-v1"),
        ("PSNR, reconstruction", "fidelity.psnr.reconstruction"),
        ("LV ejection fraction, distance to hold-out", "anatomy.clinical-distance.lv-ef"),
        ("TPR at 0.1% FPR, black box", "leakage.tpr.black-box.fpr-1e-3"),
        ("AUC, calibrated neighbour (pixels)", "leakage.auc.calibrated-neighbour.pixels"),
        ("AUC, SecMI (white box)", "leakage.auc.secmi.white-box"),
        ("Dice, trained on synthetic only, tested on far away: LV", "utility.dice.synthetic.far-away.lv"),
        (
            "Dice, trained on real only, without augmentation, tested on hold-out",
            "utility.dice.real-unaugmented.holdout",
        ),
        ("Dice, trained on real and 25% synthetic, tested on hold-out", "utility.dice.mixed-25.holdout"),
        ("Dice ratio synthetic / real, hold-out", "utility.dice-ratio.synthetic.holdout"),
        (
            "Dice gain of adding synthetic to the patients of one site, far away",
            "utility.dice-gain.site-synthetic.far-away",
        ),
        (
            "HD95, trained on real and synthetic, tested on hold-out (nnU-Net v2, 2d, 2 epochs of 3 steps)",
            "utility.hd95.both.holdout.nnunet-2d-2x3",
        ),
    ],
)
def test_what_old_names_stand_for(old, name, metric_id):
    (metric,) = [metric for metric in old.metrics if metric.name == name]
    assert metric.id == metric_id


def test_its_verdicts_and_warnings_are_what_they_were(old):
    """The levels that were read from words are those that the same numbers give."""
    said = read_json(OLD)
    assert [(v.axis, v.level) for v in old.verdicts] == [(v.axis, v.level) for v in verdicts(old)]
    assert old.verdict("leakage").level == "claim-refuted"
    for verdict in old.verdicts:
        assert said["verdict"][verdict.axis].lower() == verdict.words.lower()
    assert [warning.text for warning in old.warnings] == said["warnings"]
    assert [warning.code for warning in old.warnings] == [None, None, "claim-refuted"]


def test_a_name_that_is_not_known_keeps_its_number(tmp_path):
    metric = {"axis": "anatomy", "name": "Fractal dimension, of my own", "value": 1.5}
    (tmp_path / "e.json").write_text(json.dumps({"metrics": [metric]}))
    (read,) = read_evaluation(tmp_path / "e.json").metrics
    assert (read.id, read.name, read.value) == ("anatomy.fractal-dimension-of-my-own", metric["name"], 1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 3}', r"written by a later version\. Got: schema version 3"),
        ('{"schema_version": 2, "metrics": [{"axis": "utility"}]}', r"cannot be used"),
        ('{"metrics": [{"value": 1}]}', r"cannot be used"),
        ('{"metrics": 3}', r"cannot be used"),
        ("[]", r"cannot be used"),
        ('{"schema_version": "two"}', r"cannot be used"),
    ],
)
def test_what_is_no_evaluation_is_refused(tmp_path, text, message):
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_evaluation(tmp_path / "e.json")


def test_the_schema_of_the_documentation_is_that_of_the_code():
    """If this fails: python -m cmrfed.evaluation.results.schema docs."""
    assert read_json(SCHEMA) == json_schema()

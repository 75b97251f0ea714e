"""Words are made in one place and nothing selects by them; a metric takes one file."""

from pathlib import Path

import pytest

from cmrfed.core.artifacts import read_json
from cmrfed.evaluation.results import catalogue
from cmrfed.evaluation.results.catalogue import Measure, metric, name_of, register, say, series, unavailable
from cmrfed.evaluation.results.reading import read_evaluation
from cmrfed.evaluation.results.result import Estimate, EvaluationReport, Findings
from cmrfed.evaluation.results.schema import with_table
from cmrfed.evaluation.verdict import verdicts
from cmrfed.figures.tables import TABLES
from cmrfed.report.methods import paragraphs
from cmrfed.report.results import axes, cards, trade_off_chart
from cmrfed.sweep.headline import headline
from cmrfed.sweep.summary import curves
from cmrfed.sweep.table import read_table

ROOT = Path(__file__).parents[4]
OLD = Path(__file__).parents[3] / "golden" / "evaluation-1.json"
STUDY = ROOT / "docs" / "img" / "study" / "study.parquet"


def remade(found: Findings) -> Findings:
    """The same findings with the names that the catalogue gives now."""
    metrics = [
        m.model_copy(update={"name": name_of(m.key, {q: getattr(m, q) for q in catalogue.MEASURES[m.key].qualifiers})})
        for m in found.metrics
    ]
    plots = [s.model_copy(update={"name": f"{s.id}?", "label": "?"}) for s in found.series]
    notices = [warning.model_copy(update={"text": "?"}) for warning in found.warnings]
    return Findings(metrics=metrics, series=plots, warnings=notices)


def selected(found: Findings, table: list[dict]) -> dict[str, object]:
    """Every number and level that reports, figures and sweeps choose."""
    report = EvaluationReport(metrics=found.metrics, series=found.series, verdicts=verdicts(found))
    trade = trade_off_chart(report)
    return {
        "levels": [(verdict.axis, verdict.level) for verdict in report.verdicts],
        "tones": [card.tone for card in cards(report)],
        "rows": [(axis.key, [(row.value, row.interval) for row in axis.rows]) for axis in axes(report)],
        "charts": [(axis.key, [[path.d for path in c.paths] for c in axis.charts]) for axis in axes(report)],
        "trade-off": [row[1:] for row in trade.rows],
        "tables": [[(m.id, m.value) for m in each.of(report)] for each in TABLES],
        "sources": [paragraph.sources for paragraph in paragraphs(None, report.metrics)],
        "sweep": [(c.question, c.panel, c.line, c.levels) for c in curves(table)],
        "headline": [line.count("unavailable") for line in headline("s", table).splitlines() if "|" in line],
        "cells": [line.split("|")[5:] for line in headline("s", table).splitlines() if "| federated" in line],
    }


def nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace every text of the catalogue by another."""
    number = iter(range(10_000))
    texts = [catalogue.TITLES, catalogue.UNITS, catalogue.LEVELS, catalogue.SENTENCES, catalogue.SWEEP]
    for words in [*texts, *catalogue.WORDS.values()]:
        for key in words:
            monkeypatch.setitem(words, key, f"nonsense {next(number)}")
    for key in catalogue.HEADINGS:
        monkeypatch.setitem(catalogue.HEADINGS, key, f"nonsense {next(number)} {{test}}")
    for key, measure in catalogue.MEASURES.items():
        other = Measure(key, f"nonsense {next(number)}", "", measure.unit, measure.better, measure.qualifiers)
        monkeypatch.setitem(catalogue.MEASURES, key, other)


def test_words_decide_nothing(monkeypatch):
    found, table = read_evaluation(OLD), read_table(STUDY)
    before = selected(remade(found), table)
    assert before["levels"] == [(verdict.axis, verdict.level) for verdict in found.verdicts]
    assert "claim-refuted" in dict(before["levels"]).values()
    nonsense(monkeypatch)
    renamed = [row | {"metric": f"nonsense of {row['metric_id']}", "unit": "nonsense"} for row in table]
    changed = remade(found)
    assert all(metric.name.startswith("nonsense") for metric in changed.metrics)
    assert all(card.tag.startswith("nonsense") for card in cards(EvaluationReport(verdicts=verdicts(changed))))
    after = selected(changed, renamed)
    for part, chosen in before.items():
        assert after[part] == chosen, part


# --- names ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "of", "name"),
    [
        ("fidelity.kid", {"arm": "synthetic", "space": "x"}, "KID (x)"),
        ("fidelity.kid", {"arm": "training", "space": "x"}, "KID (x), training against hold-out"),
        ("fidelity.psnr", {"arm": "paired"}, "PSNR, mask-paired"),
        ("anatomy.valid-masks", {"arm": "as-drawn"}, "Anatomically valid masks, as drawn"),
        ("leakage.tpr", {"space": "black-box", "quantity": "fpr-1e-2"}, "TPR at a fixed FPR (black box, 1% FPR)"),
        ("utility.dice", {"arm": "real", "test": "holdout"}, "Dice, trained on real only, tested on hold-out"),
        ("utility.dice", {"arm": "own", "test": "my set", "structure": "lv"},
         "Dice, trained on own, tested on my set: LV"),
        ("utility.dice", {"segmenter": "nnunet"}, "Dice (nnunet)"),
        ("utility.dice-gain", {"arm": "both", "test": "holdout"}, "Dice gain of adding synthetic, hold-out"),
        ("fidelity.kid", {}, "KID"),
    ],
)  # fmt: skip
def test_names(key, of, name):
    assert name_of(key, of) == name


def test_every_measure_and_plot_says_what_it_needs():
    """All patterns can be filled with the qualifiers that a measure has, and with no other."""
    for measure in catalogue.MEASURES.values():
        assert metric(measure.key, 0.0, dict.fromkeys(measure.qualifiers, "x")).name
        assert catalogue._asked(measure.name) <= set(measure.qualifiers), measure.key
        assert measure.unit is None or measure.unit in catalogue.UNITS
    for plot in catalogue.PLOTS.values():
        made = series(plot.key, {"a": [1.0]}, dict.fromkeys(plot.qualifiers, "x"), unit="mm")
        assert "{" not in made.name + made.label


def test_a_qualifier_that_a_measure_has_not_is_refused():
    with pytest.raises(ValueError, match=r"fidelity\.psnr has no test"):
        metric("fidelity.psnr", 1.0, {"test": "holdout"})


def test_the_table_of_the_documentation_is_that_of_the_catalogue():
    """If this fails: python -m cmrfed.evaluation.results.schema docs."""
    page = (ROOT / "docs" / "evaluation.md").read_text()
    assert catalogue.table() in page
    assert with_table(page) == page


def test_verdicts_say_their_numbers():
    assert say("memorisation.share", value=0.5, space="pixels") == "50% in pixels"


# --- a metric of one's own ------------------------------------------------------------------------
@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(catalogue, "MEASURES", dict(catalogue.MEASURES))
    return register(
        Measure("fidelity.sharpness", "Sharpness ({space})", "energy of edges", "ratio", "higher", ("space",))
    )


def test_a_metric_takes_one_file(own, tmp_path):
    """Registered beside its computation, it is in evaluation.json, metrics.csv, the report and the documentation."""
    found = metric(own.key, Estimate(0.9, 0.8, 1.0), {"space": "pixels"}, n=4, reference=1.0)
    missing = unavailable(own.key, "no edges. Do: draw some", {"space": "My features"})
    EvaluationReport(metrics=(found, missing)).write(tmp_path)
    read = read_evaluation(tmp_path / "evaluation.json")
    assert [(m.id, m.name) for m in read.metrics] == [
        ("fidelity.sharpness.pixels", "Sharpness (pixels)"),
        ("fidelity.sharpness.my-features", "Sharpness (My features)"),
    ]
    (axis,) = axes(read)
    assert (axis.key, axis.rows[0].value, axis.rows[0].direction) == ("fidelity", "0.9", "higher is better")
    assert axis.rows[1].unavailable == "no edges. Do: draw some"
    assert "fidelity.sharpness.pixels,fidelity,Sharpness (pixels),0.9" in (tmp_path / "metrics.csv").read_text()
    assert "| `fidelity.sharpness.<space>` | energy of edges | ratio | higher |" in catalogue.table()


def test_what_was_written_can_be_read_where_the_metric_is_not_registered(own, tmp_path, monkeypatch):
    EvaluationReport(metrics=(metric(own.key, 0.9, {"space": "pixels"}),)).write(tmp_path)
    monkeypatch.delitem(catalogue.MEASURES, own.key)
    (row,) = axes(read_evaluation(tmp_path / "evaluation.json"))[0].rows
    assert (row.name, row.value, row.unit) == ("Sharpness (pixels)", "0.9", "ratio")


def test_a_key_stands_for_one_measure(own):
    assert register(own) is own
    with pytest.raises(ValueError, match=r"fidelity\.sharpness cannot be registered: it is another measure already"):
        register(Measure(own.key, "Other", "other", None, None))
    with pytest.raises(ValueError, match=r"cannot be registered: \['colour'\]"):
        register(Measure("fidelity.colour", "Colour", "colour", None, None, ("colour",)))


def test_registering_leaves_the_ids_of_version_one_alone():
    assert len({m["name"] for m in read_json(OLD)["metrics"]}) == len({m.id for m in read_evaluation(OLD).metrics})

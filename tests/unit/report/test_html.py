import re
import shutil

import pytest

from cmrfed.core.artifacts import read_json, write_json
from cmrfed.core.errors import DataError
from cmrfed.data.preparation.account import Account, facts
from cmrfed.evaluation.results.result import EvaluationReport, Metric
from cmrfed.report.html import write_report
from tests.run_folder import write_run_folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run_folder(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def text_of(folder):
    """The words of the report, without markup and embedded pictures."""
    page = write_report(folder).read_text()
    page = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_a_finished_run_is_told_in_full(finished):
    text = text_of(finished)
    for words in (
        "Fair KID is 0.0123; real patients have 0.0010. Rule. Good up to 0.001, fair up to 0.02.",
        "This page shows real patients",
        "Privacy: not differentially private",
        "Only 10 patients are held out",
        "0.786 ↑",
        "0.74 to 0.82",
        "unavailable : there are no backbone weights",
        "image, round 5: site-1 missing (no reply within 60 s).",
        "DCM 5, NOR 2",
        "20 to train on, 10 held out",
        "2 min 11 s",
        "Li T, Sahu AK",
    ):
        assert words in text


def test_what_preparation_noted_is_counted(folder):
    assert "What preparation found and noted" not in text_of(folder)
    run = read_json(folder / "run.json")
    counted = Account(found=32, accepted=30, set_aside=2, skipped=0)
    found = facts(counted, [("slices turned: the file begins at the apex",)] * 3)
    write_json(folder / "run.json", run | {"data": found.model_dump(mode="json")})
    text = text_of(folder)
    assert "32 patients found: 30 accepted, 2 set aside, 0 skipped" in text
    assert "3 patients: slices turned: the file begins at the apex" in text
    assert "These are counts of patients without noise." in text
    manifest = read_json(folder / "synthetic" / "manifest.json")
    manifest["privacy"] |= {"differentially_private": True, "unit": "patient"}
    write_json(folder / "synthetic" / "manifest.json", manifest)
    assert "counts of patients without noise: the guarantee does not cover them." in text_of(folder)


def test_the_page_is_one_file_that_names_no_other(finished):
    page = write_report(finished).read_text()
    for address in re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", page):
        assert address.startswith(("data:", "#"))
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("evaluation", "There is no verdict: this data set has not been evaluated yet."),
        ("evaluation", "There is no evaluation in this folder yet."),
        ("synthetic", "Privacy: no statement found"),
        ("mask", "Images: loss per site"),
    ],
)
def test_a_missing_part_becomes_a_sentence(folder, missing, sentence):
    shutil.rmtree(folder / missing)
    assert sentence in text_of(folder)


def test_losses_that_stay_at_the_sites_are_not_called_missing_rounds(folder):
    for path in folder.glob("*/round-*/metrics.json"):
        metrics = read_json(path)
        for row in metrics["sites"].values():
            row.update(loss=None, status="ok")
        write_json(path, metrics)
    assert "There are no learning curves: the sites keep their losses to themselves." in text_of(folder)


def test_the_audit_stands_beside_the_claim(folder):
    run = read_json(folder / "run.json")
    plan = {"stage": "mask", "noise_multiplier": 1.25, "sampling_rate": 0.5, "steps": 40, "draws": 8}
    plan |= {
        "clip_norm": 1.0,
        "trained_parameters": 1234,
        "released_numbers": 1234,
        "epsilon_alone": 4.5,
        "noise_to_signal": 2.2,
    }
    write_json(folder / "run.json", run | {"privacy_plan": [plan]})
    assert "1234 4.50 2.2 × not audited" in " ".join(text_of(folder).split())
    write_json(folder / "run.json", run | {"privacy_plan": [plan | {"released_numbers": 32}]})
    assert "1234 in 32 public directions 4.50" in " ".join(text_of(folder).split())
    found = {"stage": "mask", "mu": 2.4, "lower": 2.1, "upper": 2.7, "theory": 2.5, "confidence": 0.99, "passed": True}
    found |= {"canaries": 100, "steps": 10, "noise_multiplier": 1.25}
    write_json(folder / "audit.json", [found])
    assert "µ = 2.400 (2.100 to 2.700 at 99%), theory 2.500: passed" in text_of(folder)


def test_a_run_that_has_only_begun_can_be_reported(folder):
    for part in ("evaluation", "synthetic", "mask", "image"):
        shutil.rmtree(folder / part)
    run = read_json(folder / "run.json")
    begun = {key: run[key] for key in ("experiment", "digest", "versions", "started")}
    write_json(folder / "run.json", begun | {"finished": None, "timings_s": {}, "peak_memory_mb": 0})
    text = text_of(folder)
    assert "not finished" in text
    assert "no round was trained" in text
    assert "There are no pictures yet" in text


def test_an_evaluation_folder_alone_can_be_reported(folder):
    text = text_of(folder / "evaluation")
    assert "This folder holds an evaluation alone" in text
    assert "0.0123" in text
    assert "nothing is known of a guarantee" in text


def test_a_page_without_real_patients_does_not_warn_of_them(folder):
    (folder / "evaluation" / "pictures" / "holdout.png").unlink()
    assert "shows real patients" not in text_of(folder)


def test_a_phantom_is_not_passed_off_as_patients(folder):
    assert "No patient was involved" not in text_of(folder)
    run = read_json(folder / "run.json")
    run["experiment"]["data"] |= {"phantom": {"patients": 24}, "cohorts": []}
    write_json(folder / "run.json", run)
    text = text_of(folder)
    assert "No patient was involved" in text
    assert "shows real patients" not in text


def test_words_from_files_cannot_become_markup(folder):
    bad = Metric(axis="fidelity", measure="own", name="<script>alert(1)</script>", unavailable="<b>no</b>")
    EvaluationReport(metrics=(bad,)).write(folder / "evaluation")
    page = write_report(folder).read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page


def test_a_private_data_set_is_called_private(folder):
    path = folder / "synthetic" / "manifest.json"
    manifest = read_json(path)
    statement = "Site-level guarantee: epsilon 8 at delta 1e-5."
    manifest["privacy"] = {"differentially_private": True, "unit": "patient", "statement": statement}
    write_json(path, manifest)
    text = text_of(folder)
    assert "Privacy: differentially private, per patient" in text
    assert statement in text


def test_a_folder_without_anything_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"neither run\.json nor evaluation\.json"):
        write_report(tmp_path)


def test_a_torn_file_is_named(folder):
    (folder / "run.json").write_text('{"experiment": ')
    with pytest.raises(DataError, match=r"run\.json is not JSON"):
        write_report(folder)


def test_the_report_can_be_written_again(finished):
    first = write_report(finished).read_text()
    assert write_report(finished).read_text() == first

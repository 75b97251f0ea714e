"""What is no finished run is refused in words; the command makes every figure of those that are."""

import json

import pytest

from cmrfed.core.artifacts import read_json, write_json
from cmrfed.core.errors import ConfigError, DataError
from cmrfed.figures.make import make_figures
from cmrfed.figures.pipeline import facts_of
from cmrfed.figures.study import read_run, read_runs
from tests.unit.figures.study_world import FAMILIES, write_run, write_split


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"is not a run\. Got: no run\.json\. Expected: .* Do: cmrfed run"):
        read_run(tmp_path)
    with pytest.raises(DataError, match="Got: no such folder"):
        read_run(tmp_path / "nowhere")
    run = write_run(tmp_path / "run")
    write_json(run / "run.json", read_json(run / "run.json") | {"finished": None})
    with pytest.raises(DataError, match=r"is not finished\. Got: .* Expected: .* Do: finish it"):
        read_run(run)
    (run / "evaluation" / "evaluation.json").unlink()
    with pytest.raises(DataError, match=r"has no evaluation\. Got: no evaluation/evaluation\.json\. Expected: .* Do: "):
        read_run(run)


def test_labels_are_families_and_names_where_a_family_comes_twice(tmp_path):
    folders = [write_run(tmp_path / "a", "LDM"), write_run(tmp_path / "b", "FM", name="one")]
    folders += [write_run(tmp_path / "c", "FM", name="two")]
    assert [run.label for run in read_runs(folders)] == ["LDM", "one", "two"]
    again = write_run(tmp_path / "d", "FM", name="two")
    assert [run.label for run in read_runs([*folders, again])] == ["LDM", "one", "two c", "two d"]
    with pytest.raises(DataError, match="given twice"):
        read_runs([again, again])


def test_a_family_that_is_not_known_is_an_error(tmp_path):
    run = write_run(tmp_path / "run")
    record = read_json(run / "run.json")
    record["experiment"]["image"]["generator"]["process"]["kind"] = "ddmp"
    write_json(run / "run.json", record)
    with pytest.raises(DataError, match=r"run\.json cannot be used\. Got: experiment\.image\.generator\.process"):
        read_run(run)


def test_a_drawing_tells_no_patient_counts_of_a_private_run(tmp_path):
    folder = write_run(tmp_path / "run")
    assert facts_of(read_run(folder)).sites[0] == "north · 5 patients"
    assert facts_of(read_run(folder)).privacy == "no differential privacy"
    path = folder / "synthetic" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["privacy"] |= {"differentially_private": True, "unit": "patient", "epsilon": 8.0, "delta": 1e-3}
    path.write_text(json.dumps(manifest))
    facts = facts_of(read_run(folder))
    assert facts.sites[0] == "north"
    assert facts.privacy == "differentially private (patient): ε = 8, δ = 1.0e-03"


def test_the_command_makes_every_figure_and_names_the_runs(tmp_path, call):
    folders = [write_run(tmp_path / label, label) for label in FAMILIES]
    cohort, out = write_split(folders, tmp_path / "cohort"), tmp_path / "out"
    status, _, told = call("figures", *folders, "--out", out, "--cohort", cohort.root, "--show-real")
    assert status == 0, told
    names = {"pipeline", "denoising", "grid", "shapes"}
    made = {f"{name}.{kind}" for name in names for kind in ("svg", "pdf")} | {"tables.md", "tables.csv"}
    assert {path.name for path in out.iterdir()} == made
    assert all(path.stat().st_size < 400_000 for path in out.iterdir())
    again = tmp_path / "again"
    status, _, told = call("figures", *folders, "--out", again)
    assert status == 0
    assert "shapes: left out" in told
    assert "no --cohort DIR" in told
    assert (again / "denoising.svg").read_bytes() == (out / "denoising.svg").read_bytes()
    assert not (again / "shapes.svg").exists()


def test_the_cohort_must_be_that_of_the_runs_and_hold_outs_the_same(tmp_path):
    folders = [write_run(tmp_path / label, label) for label in ("DDPM", "FM")]
    cohort, out = write_split(folders, tmp_path / "cohort"), tmp_path / "out"
    with pytest.raises(ConfigError, match="no real patient to show"):
        make_figures(folders, out, None, show_real=True)
    split = read_json(folders[1] / "split.json")
    write_json(folders[1] / "split.json", split | {"holdout": split["train"]})
    with pytest.raises(DataError, match="hold out different patients"):
        make_figures(folders, out, cohort.root)
    write_json(folders[1] / "split.json", split | {"cohort": "ab" * 32})
    with pytest.raises(DataError, match="made on other patients"):
        make_figures(folders, out, cohort.root)
    assert not out.exists()

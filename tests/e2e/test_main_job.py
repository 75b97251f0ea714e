"""The main job through the command line: phantom to report, and each command on what the one before left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cmrfed.core.artifacts import digest_folder
from cmrfed.data.synthetic import SyntheticDataset
from tests.release import manifests_that_claim, strangers, telling_files

RECIPE = """
name: tiny
data:
  phantom: {patients: 9, sites: 3}
  size_px: 32
  partition: {sites: 3}
mask:
  generator:
    process: {kind: ddpm, prediction: sample, schedule: linear}
    backbone: {channels: [8, 16], patch_px: 4, norm_groups: 4}
    sampler: {name: dpm++, steps: 2}
  training: {rounds: 2, local_steps: 2, batch_size: 4}
image:
  generator:
    backbone: {channels: [8, 16], patch_px: 2, norm_groups: 4}
    sampler: {name: euler, steps: 2}
  training: {rounds: 2, local_steps: 2, batch_size: 4}
synthesis: {patients: 3, slices: [3, 4]}
evaluation:
  segmenter: {steps: 3, seeds: 1, channels: [8, 16], batch_size: 4}
  attacks: {white_box: true}
compute: {threads: 1}
"""


def cmrfed(*words: object, timeout: float = 1100) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cmrfed", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=os.environ | {"COLUMNS": "200"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, finished."""
    folder = tmp_path_factory.mktemp("main-job")
    (folder / "tiny.yaml").write_text(RECIPE)
    done = cmrfed("run", folder / "tiny.yaml", "--run-dir", folder / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "run" / "report.html")
    return folder / "run"


def test_a_run_leaves_data_set_numbers_and_report(finished):
    record = json.loads((finished / "run.json").read_text())
    assert record["finished"]
    assert set(record["timings_s"]) == {"data", "mask", "image", "synthesis", "evaluation"}
    assert [site["patients"] for site in record["sites"]] == [1, 2, 3], "each patient is placed by itself"
    dataset = SyntheticDataset.open(finished / "synthetic")
    assert len(list(dataset.cases())) == len(dataset) == 6
    assert not dataset.manifest.privacy.differentially_private
    numbers = json.loads((finished / "evaluation" / "evaluation.json").read_text())
    axes = {"fidelity", "anatomy", "memorisation", "leakage", "utility"}
    assert {metric["axis"] for metric in numbers["metrics"]} == axes
    attacked = {m["id"]: m["unavailable"] for m in numbers["metrics"] if m["axis"] == "leakage"}
    assert set(attacked) == {"leakage.membership.black-box", "leakage.membership.white-box"}
    assert all("hold out" in reason for reason in attacked.values()), "3 patients are held out: too few"
    page = (finished / "report.html").read_text()
    assert "Not differentially private" in page


def test_a_run_leaves_no_file_that_is_not_in_the_catalogue(finished):
    assert strangers(finished) == []
    assert telling_files(finished) == []
    assert manifests_that_claim(finished) == []
    assert "| `synthetic/` | the synthetic data set | no |" in (finished / "CONTENTS.md").read_text()


def test_no_stage_sees_a_hold_out_patient(finished):
    split = json.loads((finished / "split.json").read_text())
    seen = {p for site in (finished / "sites").glob("*/site.json") for p in json.loads(site.read_text())["patients"]}
    assert seen == set(split["train"])
    assert not seen & set(split["holdout"])


def test_the_same_command_again_changes_nothing(finished, call):
    before = {name: digest_folder(finished / name) for name in ("generators", "synthetic", "evaluation")}
    status, _, told = call("run", finished.parent / "tiny.yaml", "--run-dir", finished)
    assert status == 0, told
    assert before == {name: digest_folder(finished / name) for name in before}


def test_another_recipe_is_refused(finished, call):
    status, _, told = call("run", finished.parent / "tiny.yaml", "--run-dir", finished, "--set", "seed=1")
    assert status == 1
    assert "holds another run" in told
    assert "Traceback" not in told


def test_a_run_feeds_synthesize_export_evaluate_and_report(finished, tmp_path, call):
    out = tmp_path / "more"
    status, _, told = call("synthesize", finished, "--out", out, "--patients", 2, "--seed", 5)
    assert status == 0, told
    assert SyntheticDataset.open(out).manifest.patients == 2
    status, _, told = call("export", "nnunet", out, tmp_path / "raw")
    assert status == 0, told
    assert (tmp_path / "raw" / "Dataset501_CMRFedSynthetic" / "dataset.json").exists()
    sites = finished / "data"
    status, _, told = call(
        *("evaluate", "--synthetic", out, "--train", sites / "site-0", "--holdout", sites / "site-1"),
        *("--external", f"other={sites / 'site-2'}", "--out", tmp_path / "judged", "--set", "utility=false"),
        *("--generator", finished / "generators" / "image"),
    )
    assert status == 0, told
    assert (tmp_path / "judged" / "metrics.csv").exists()
    assert call("report", tmp_path / "judged")[0] == 0


def test_dry_run_prints_the_plan_and_touches_nothing(tmp_path, call):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    status, out, told = call("run", tmp_path / "tiny.yaml", "--run-dir", tmp_path / "run", "--dry-run")
    assert status == 0, told
    assert "slices_seen_per_site: 16" in out
    assert not (tmp_path / "run").exists()

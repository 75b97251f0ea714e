"""The main job under privacy through the command line: the claim, the ledgers and the report say the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cmrfed.pipeline.files.contents import CONTENTS
from tests.e2e.test_main_job import RECIPE, cmrfed
from tests.release import cohorts_of, files_of, manifests_that_claim, strangers, telling_files

PRIVATE = """
federation: {weighting: equal}
privacy:
  unit: patient
  epsilon: 9
  delta: 0.01
  declared_patients: 2
  mask: {sampling_rate: 0.5, noise_multiplicity: 2}
  image: {sampling_rate: 0.5, noise_multiplicity: 2, trained: ["*bias", "*norm*"]}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private run folder, finished."""
    folder = tmp_path_factory.mktemp("private-job")
    (folder / "tiny.yaml").write_text(RECIPE + PRIVATE)
    done = cmrfed("run", folder / "tiny.yaml", "--run-dir", folder / "run", "--set", "evaluation.utility=false")
    assert done.returncode == 0, done.stderr
    assert "target 9" in done.stderr, "the plan comes before the training"
    return folder / "run"


def test_manifest_ledgers_and_report_agree(finished: Path, call: Callable) -> None:
    claim = json.loads((finished / "synthetic" / "manifest.json").read_text())["privacy"]
    assert claim["differentially_private"]
    assert claim["epsilon"] <= 9
    for number in range(3):
        status, out, told = call("ledger", finished / "sites" / f"{number:02d}", "--json")
        assert status == 0, told
        total = json.loads(out)["total"][0]
        assert (total["delta"], total["prv"]) == (claim["delta"], pytest.approx(claim["epsilon"], abs=1e-3))
    page = (finished / "report.html").read_text()
    assert "Privacy: differentially private, per patient" in page
    assert f"ε ≤ {claim['epsilon']:g}" in page
    assert page.count("theory") == 2, "the audit of each stage stands beside the claim"


def test_a_data_set_that_is_drawn_later_carries_the_same_claim(finished: Path, tmp_path: Path, call: Callable) -> None:
    status, _, told = call("synthesize", finished, "--out", tmp_path / "more", "--patients", 1, "--seed", 9)
    assert status == 0, told
    first, later = (
        json.loads((folder / "manifest.json").read_text())["privacy"]
        for folder in (finished / "synthetic", tmp_path / "more")
    )
    assert later == first


def test_synthesis_asks_no_patient_for_anything(finished: Path, tmp_path: Path, call: Callable) -> None:
    gone = finished / "data"
    gone.rename(tmp_path / "data")
    try:
        status, _, told = call("synthesize", finished, "--out", tmp_path / "more", "--patients", 1)
        assert status == 0, told
    finally:
        (tmp_path / "data").rename(gone)
    assert json.loads((tmp_path / "more" / "manifest.json").read_text())["spacing_mm"] is None


def test_only_what_was_drawn_carries_the_claim_and_nothing_that_may_leave_holds_a_patient(finished: Path) -> None:
    assert strangers(finished) == []
    assert telling_files(finished) == []
    assert manifests_that_claim(finished) == ["synthetic"]
    page = (finished / CONTENTS).read_text()
    assert "| `synthetic/` | the synthetic data set | yes |" in page
    assert "NOT FOR RELEASE" in page


def test_images_of_real_masks_name_no_patient_and_are_not_exported(
    finished: Path, tmp_path: Path, call: Callable
) -> None:
    split = json.loads((finished / "split.json").read_text())
    names = split["holdout"] + split["train"]
    paired = finished / "paired"
    for path in files_of(paired):
        assert not any(name in path for name in names)
        if path.endswith((".csv", ".json", ".txt")):
            assert not any(name in (paired / path).read_text() for name in names)
    assert json.loads((paired / "manifest.json").read_text())["patients"] == len(split["holdout"])
    assert len(cohorts_of(finished)[0].patient_ids) == len(names), "real masks were sought in all cohorts"
    status, _, told = call("export", "nnunet", paired, tmp_path / "raw")
    assert status == 1
    assert "is not for release" in told

"""A tiny sweep through the command line, killed in its middle: points are runs, ∞ is the recipe without privacy."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmrfed.core.artifacts import digest_state
from cmrfed.generators.generator import Generator
from cmrfed.privacy.accountant import epsilon
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.sweep.table import read_table
from tests.e2e.test_main_job import RECIPE, cmrfed
from tests.e2e.test_private_job import PRIVATE

SWEEP = """
name: tiny-sweep
recipe: tiny.yaml
set: {evaluation.utility: false, evaluation.attacks: {white_box: false}}
grid: {epsilon: [9, inf, 4]}
"""
WITHOUT = "federation: {weighting: equal}\nevaluation: {utility: false}\n"

pytestmark = pytest.mark.timeout(3000)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep-job")
    (folder / "tiny.yaml").write_text(RECIPE + PRIVATE)
    (folder / "sweep.yaml").write_text(SWEEP)
    _kill_in_the_middle(folder)
    done = cmrfed("sweep", folder / "sweep.yaml", "--run-dir", folder / "run", "--jobs", 2, timeout=1700)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "run" / "report.html")
    assert "Not for release. Over the 2 private points" in done.stderr
    return folder / "run"


def _kill_in_the_middle(folder: Path) -> None:
    """Begin the sweep, and end all its processes when its second point trains its images."""
    command = [sys.executable, "-m", "cmrfed", "sweep", folder / "sweep.yaml", "--run-dir", folder / "run"]
    with (folder / "killed.log").open("wb") as log:
        process = subprocess.Popen([*command, "--jobs", "1"], stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + 1200
    while not any((folder / "run" / "points").glob("epsilon-inf.*/image/round-*")):
        assert process.poll() is None, (folder / "killed.log").read_text()
        assert time.monotonic() < end, "the second point did not come to its images"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def point(folder: Path, start: str) -> Path:
    return next((folder / "points").glob(f"{start}.*"))


def test_every_point_is_a_run_that_shares_the_phantom(finished, call):
    points = sorted((finished / "points").iterdir())
    assert len(points) == 3
    assert len({(place / "data").resolve() for place in points}) == 1
    assert all((place / "report.html").exists() for place in points)
    status, _, told = call("run", points[0] / "recipe.yaml", "--run-dir", points[0])
    assert status == 0, told


def test_an_infinite_epsilon_has_the_weights_of_the_recipe_without_privacy(finished, tmp_path, call):
    (tmp_path / "plain.yaml").write_text(RECIPE.partition("evaluation:")[0] + WITHOUT + "compute: {threads: 1}\n")
    status, _, told = call("run", tmp_path / "plain.yaml", "--run-dir", tmp_path / "run")
    assert status == 0, told
    for stage in ("mask", "image"):
        folders = tmp_path / "run" / "generators" / stage, point(finished, "epsilon-inf") / "generators" / stage
        first, second = (digest_state(Generator.load(folder).network.state_dict()) for folder in folders)
        assert first == second


def test_the_research_ledger_is_the_composition_of_the_sites_ledgers(finished):
    by_hand = []
    for eps in (9, 4):
        ledger = PrivacyLedger(point(finished, f"epsilon-{eps}") / "sites" / "00")
        by_hand += ledger.history().events
        assert ledger.history().epsilon(0.01).prv <= eps
    table = read_table(finished / "results.parquet")
    assert {row["epsilon_of_all_points"] for row in table} == {epsilon(by_hand, 0.01).prv}
    claimed = {row["epsilon"]: row["epsilon_claimed"] for row in table}
    assert claimed[4.0] <= 4
    assert claimed[9.0] <= 9
    sigma = {row["epsilon"]: row["sigma_image"] for row in table}
    assert sigma[4.0] > sigma[9.0]


def test_table_and_page_are_whole(finished):
    table = read_table(finished / "results.csv")
    measured = json.loads((point(finished, "epsilon-9") / "evaluation" / "evaluation.json").read_text())["metrics"]
    assert len([row for row in table if row["epsilon"] == 9.0]) == len(measured)
    records = {record["digest"]: record for record in json.loads((finished / "runs.json").read_text())}
    assert {row["recipe_digest"] for row in table} == set(records)
    assert all("cohorts" not in record["experiment"]["data"] for record in records.values())
    page = (finished / "report.html").read_text()
    assert "Not for release" in page
    assert (finished / "figures" / "drawn-all-points.pdf").exists()
    assert (finished / "figures" / "fidelity-against-epsilon.svg").exists()

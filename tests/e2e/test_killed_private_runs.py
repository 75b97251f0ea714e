"""A private run that is killed at any moment has paid for all that left it, and says the same thing twice."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=[30, 100], ids="{} kills".format)
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `killed_private_runs` prints, and how many kills it was asked for."""
    folder = str(tmp_path_factory.mktemp("killed"))
    command = [sys.executable, "-m", "tests.e2e.killed_private_runs", folder, str(request.param)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"wanted": request.param}


def moments(told: dict) -> list[dict]:
    """Every kill and every end, in order."""
    return [*told["kills"], *told["finished"]]


def test_the_kills_hit_paid_rounds_in_training_and_sites_that_had_answered(told: dict) -> None:
    assert len(told["kills"]) == told["wanted"]
    sites = [site for kill in told["kills"] for site in kill["sites"].values()]
    assert any(site["reservations"] > site["releases"] for site in sites)
    assert any(site["releases"] for site in sites)
    assert {"kill_before", "kill_after_s"} <= {key for kill in told["kills"] for key in kill}


def test_no_ledger_is_ever_below_what_an_observer_of_the_replies_counts(told: dict) -> None:
    below = [
        (moment["run"], name, site)
        for moment in moments(told)
        for name, site in moment["sites"].items()
        if site["spent"] < site["observed"] or site["reservations"] < site["releases"]
    ]
    assert not below


def test_what_was_spent_never_decreases_over_kills(told: dict) -> None:
    for end in told["finished"]:
        run = [moment["sites"] for moment in moments(told) if moment["run"] == end["run"]]
        for site in end["sites"]:
            assert all(a[site]["spent"] <= b[site]["spent"] for a, b in pairwise(run)), (end["run"], site)


def test_every_run_completes_with_finite_weights_that_load(told: dict) -> None:
    assert told["finished"]
    assert all(end["finite"] and end["whole"] for end in told["finished"])
    assert all(site["releases"] >= 3 for end in told["finished"] for site in end["sites"].values())


def test_no_request_is_answered_with_two_different_updates(told: dict) -> None:
    assert [end["run"] for end in told["finished"] if end["answered twice"]] == []

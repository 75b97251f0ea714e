"""A run that is killed before any one of its operations on the disk resumes to the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("every", [pytest.param(7, id="some"), pytest.param(1, id="all")])
def test_killed_at_save_points_it_resumes_to_the_same_weights(tmp_path: Path, every: int) -> None:
    command = [sys.executable, "-m", "tests.e2e.killed_runs", str(tmp_path), str(every)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["operations"] > 50, "two rounds of two sites touch the disk often"
    odd = [number for number, outcome in told["resumed"].items() if outcome != told["whole"]]
    assert len(told["resumed"]) == -(-told["operations"] // every)
    assert not odd

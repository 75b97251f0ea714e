"""Points on a Ray cluster (of this machine alone) are the points of processes, and fail alike."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cmrfed.core.errors import ConfigError
from cmrfed.sweep.results import run
from cmrfed.sweep.work import on_ray
from tests.sweep_world import give_orders, make_sweep, nothing_shared, stub

ROOT = Path(__file__).parents[3]
SMALL = "name: s\nrecipe: base.yaml\ngrid: {epsilon: [inf, 8, 2]}"
HEAD = """
import ray, sys
about = ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level="error")
print(about.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def address():
    """Of a cluster that ends with this test."""
    environment = os.environ | {"RAY_DISABLE_IMPORT_WARNING": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", HEAD]
    head = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    yield head.stdout.readline().strip()
    head.communicate()


def go(sweep, folder, address):
    command = on_ray(stub, address) if address else stub
    return run(sweep, folder, 2, command=command, prepare=nothing_shared, share_cores=not address)


def test_points_on_a_cluster_leave_the_table_of_processes(tmp_path, address):
    sweep, here, there = make_sweep(tmp_path, SMALL), tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        give_orders(sweep, folder)
    assert [s.status for s in go(sweep, here, None)] == ["finished"] * 3
    assert [s.status for s in go(sweep, there, address)] == ["finished"] * 3
    assert (here / "results.csv").read_bytes() == (there / "results.csv").read_bytes()


def test_a_point_that_fails_on_a_cluster_says_why_and_stops_no_other(tmp_path, address):
    sweep, folder = make_sweep(tmp_path, SMALL), tmp_path / "run"
    give_orders(sweep, folder, **{sweep.points[1].name: {"error": "the disk is full. Do: make room."}})
    standing = go(sweep, folder, address)
    assert [s.status for s in standing] == ["finished", "failed", "finished"]
    assert standing[1].reason == "the disk is full. Do: make room."


def test_a_cluster_that_is_not_there_is_named():
    command = [sys.executable, "-m", "cmrfed.sweep.on_ray", "127.0.0.1:1", "1", sys.executable, "-c", "pass"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 1
    assert "error: no Ray cluster answers at 127.0.0.1:1." in done.stdout


def test_a_command_is_told_apart_from_what_the_cluster_is_told(tmp_path):
    (tmp_path / "recipe.yaml").write_text("compute: {threads: 3}")
    words = on_ray(lambda recipe: ["python", str(recipe)], "auto")(tmp_path / "recipe.yaml")
    assert words[1:] == ["-m", "cmrfed.sweep.on_ray", "auto", "3", "python", str(tmp_path / "recipe.yaml")]


def test_without_ray_it_is_said_before_anything_starts(monkeypatch):
    monkeypatch.setattr("cmrfed.sweep.work.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"a Ray cluster needs Ray.*pip install 'cmrfed\[simulation\]'"):
        on_ray(stub, "auto")

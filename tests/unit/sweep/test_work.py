"""Points as processes: kill and resume, failures, what is done again and what is not."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cmrfed.core.artifacts import read_json, write_json
from cmrfed.core.errors import ConfigError
from cmrfed.sweep.results import run
from cmrfed.sweep.work import RECIPE, at_work, make_shared, states
from tests.sweep_world import calls, give_orders, make_sweep, nothing_shared, stub

LEAVES = f"import os, sys\nsys.path += {sys.path!r}\nfrom cmrfed.core.errors import ERROR_FILE, leave_error\n"
SMALL = "name: s\nrecipe: base.yaml\ngrid: {epsilon: [inf, 8, 2]}"
ONE = "name: s\nrecipe: base.yaml\ngrid: {epsilon: [inf]}"
PARENT = """
import sys
from pathlib import Path
from cmrfed.sweep.points import read_sweep
from cmrfed.sweep.results import run
from tests.sweep_world import nothing_shared, stub
run(read_sweep(Path(sys.argv[1])), Path(sys.argv[2]), 2, command=stub, prepare=nothing_shared)
"""


def go(sweep, folder, jobs=2):
    return run(sweep, folder, jobs, command=stub, prepare=nothing_shared)


def test_points_run_once_and_only_what_is_not_finished(tmp_path):
    sweep, folder = make_sweep(tmp_path, SMALL), tmp_path / "run"
    give_orders(sweep, folder)
    assert [s.status for s in go(sweep, folder)] == ["finished"] * 3
    table = (folder / "results.csv").read_bytes()
    go(sweep, folder)
    assert sorted(calls(folder)) == sorted(p.name for p in sweep.points)
    assert (folder / "results.csv").read_bytes() == table


def test_a_line_of_one_epsilon_is_asked_for_no_knee(tmp_path):
    grids = (
        "grid:\n  - {epsilon: [inf, 8, 2], part: {all: {}}}\n  - {epsilon: [4], part: {few: {synthesis.patients: 3}}}"
    )
    sweep, folder = make_sweep(tmp_path, f"name: s\nrecipe: base.yaml\n{grids}"), tmp_path / "run"
    give_orders(sweep, folder)
    go(sweep, folder)
    page = (folder / "report.html").read_text()
    assert "<b>part all.</b>" in page
    assert "<b>part few.</b>" not in page


def test_a_point_that_fails_does_not_stop_the_others_and_is_tried_again(tmp_path):
    sweep, folder = make_sweep(tmp_path, SMALL), tmp_path / "run"
    bad = sweep.points[1]
    give_orders(sweep, folder, **{bad.name: {"error": "the disk is full. Do: make room."}})
    standing = {s.point.name: s for s in go(sweep, folder, jobs=1)}
    assert standing[bad.name].status == "failed"
    assert standing[bad.name].reason == "the disk is full. Do: make room."
    assert sum(s.status == "finished" for s in standing.values()) == 2
    assert "the disk is full" in (folder / "results.csv").read_text()
    assert "the disk is full" in (folder / "report.html").read_text()
    give_orders(sweep, folder)
    assert [s.status for s in go(sweep, folder)] == ["finished"] * 3
    assert len(calls(folder)) == 4


def test_it_says_how_long_the_rest_will_take(tmp_path, capsys):
    sweep, folder = make_sweep(tmp_path, SMALL), tmp_path / "run"
    give_orders(sweep, folder)
    asked = []

    def foretell(points, threads):
        asked.append(([point.name for point in points], threads))
        return {point.name: 6000.0 for point in points}

    run(sweep, folder, 2, command=stub, prepare=nothing_shared, foretell=foretell)
    told = capsys.readouterr().err
    assert "About 3 h 20 min for 3 points, 2 at a time." in told
    assert re.search(r"\[1/3\].*done in \d+ s, about .* left", told)
    assert re.search(r"\[3/3\].*done in \d+ s\n", told)
    share = max(1, min(sweep.points[0].experiment.compute.threads, (os.cpu_count() or 1) // 2))
    assert asked == [([point.name for point in sweep.points], share)]
    run(sweep, folder, 2, command=stub, prepare=nothing_shared, foretell=foretell)
    assert len(asked) == 1, "nothing is timed where nothing is left"


def test_a_point_that_ends_well_without_a_result_has_failed(tmp_path):
    sweep, folder = make_sweep(tmp_path, ONE), tmp_path / "run"
    done = run(sweep, folder, 1, command=lambda _: [sys.executable, "-c", ""], prepare=nothing_shared)
    assert {s.status for s in done} == {"failed"}
    assert "is not finished" in done[0].reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL; perhaps there is too little memory"),
        ("raise SystemExit(3)", "status 3 and said nothing"),
        ("import sys; sys.exit('last words')", "last words"),
        (LEAVES + "leave_error('the disk is full')\nsys.exit('error: of something else')", "the disk is full"),
        (LEAVES + "open(os.environ[ERROR_FILE], 'w').write('torn')\nsys.exit('last words')", "last words"),
    ],
)
def test_why_a_process_failed(tmp_path, code, reason):
    sweep = make_sweep(tmp_path, ONE)
    done = run(sweep, tmp_path / "run", 3, command=lambda _: [sys.executable, "-c", code], prepare=nothing_shared)
    assert reason in done[0].reason


def test_the_command_line_leaves_its_error_for_the_sweep(tmp_path):
    """Of a recipe that cannot be used: its words, without what stands before them in the log, and its code."""
    sweep = make_sweep(tmp_path, ONE)
    bad = [sys.executable, "-m", "cmrfed", "run", str(tmp_path / "none.yaml"), "--run-dir", str(tmp_path / "x")]
    done = run(sweep, tmp_path / "run", 1, command=lambda _: bad, prepare=nothing_shared)
    assert done[0].reason.startswith("there is no recipe")
    assert set(read_json(done[0].folder / "log.error.json")) == {"error", "code"}


def test_what_cannot_be_prepared_fails_its_points_alone(tmp_path):
    sweep, folder = make_sweep(tmp_path, SMALL), tmp_path / "run"
    give_orders(sweep, folder)
    broken = {sweep.points[0].name: "no pre-trained weights"}
    done = run(sweep, folder, 1, command=stub, prepare=lambda *_: broken)
    assert [s.status for s in done] == ["failed", "finished", "finished"]
    assert done[0].reason == "no pre-trained weights"


def test_a_changed_point_is_a_point_of_its_own(tmp_path):
    sweep, folder = make_sweep(tmp_path, SMALL), tmp_path / "run"
    give_orders(sweep, folder)
    go(sweep, folder)
    changed = make_sweep(tmp_path, SMALL + "\nset: {synthesis.patients: 3}")
    assert [s.status for s in states(changed, folder)] == ["unfinished"] * 3


def test_cores_are_shared_out_over_processes(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    base = tmp_path / "base"
    sweep = make_sweep(base, SMALL)
    for jobs in (1, 64):
        run(sweep, tmp_path / str(jobs), jobs, command=lambda _: [sys.executable, "-c", ""], prepare=nothing_shared)
    trees = [
        yaml.safe_load((tmp_path / jobs / "points" / sweep.points[0].name / RECIPE).read_text()) for jobs in ("1", "64")
    ]
    assert trees[0]["compute"]["threads"] == min(2, os.cpu_count() or 1)
    assert trees[1]["compute"]["threads"] == 1


def test_two_sweeps_do_not_work_in_one_folder(tmp_path):
    sweep = make_sweep(tmp_path, SMALL)
    with at_work(tmp_path / "run"), pytest.raises(ConfigError, match=f"sweep is at work.*{os.getpid()}"):
        go(sweep, tmp_path / "run")


def start(folder: Path, sweep_file: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(sweep_file), str(folder)],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def wait_for(condition, seconds=120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_killed_in_the_middle_and_resumed_the_table_is_the_same(tmp_path):
    sweep = make_sweep(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    give_orders(sweep, whole)
    go(sweep, whole)
    slow = {p.name: {"seconds": 60} for p in sweep.points[5:]}
    give_orders(sweep, killed, **slow)
    process = start(killed, tmp_path / "sweep.yaml")
    wait_for(lambda: len(calls(killed)) >= 7)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = [s.status for s in states(sweep, killed)]
    assert before.count("finished") == 5
    give_orders(sweep, killed)
    go(sweep, killed)
    for name in ("results.csv", "runs.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    finished = [p.name for p, status in zip(sweep.points, before, strict=True) if status == "finished"]
    assert all(calls(killed).count(name) == 1 for name in finished)


def test_a_killed_parent_whose_points_go_on_keeps_the_folder(tmp_path):
    sweep, folder = make_sweep(tmp_path, SMALL), tmp_path / "run"
    give_orders(sweep, folder, **{p.name: {"seconds": 60} for p in sweep.points})
    process = start(folder, tmp_path / "sweep.yaml")
    wait_for(lambda: len(calls(folder)) >= 2)
    process.kill()
    process.wait()
    try:
        with pytest.raises(ConfigError, match="points of one that was killed"):
            go(sweep, folder)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    give_orders(sweep, folder)
    wait_for(lambda: _free(folder))
    assert [s.status for s in go(sweep, folder)] == ["finished"] * 3


def _free(folder: Path) -> bool:
    try:
        with at_work(folder):
            return True
    except ConfigError:
        return False


def test_the_phantom_is_drawn_once_and_points_find_it(tmp_path):
    base = "name: s\nrecipe: base.yaml\ngrid: {seed: [0, 1]}"
    sweep, folder = make_sweep(tmp_path, base), tmp_path / "run"
    for state in states(sweep, folder):
        state.folder.mkdir(parents=True)
    with at_work(folder) as lock:
        assert make_shared(states(sweep, folder), folder, 1, lock) == {}
    first, second = (state.folder / "data" / "phantom.json" for state in states(sweep, folder))
    assert first.samefile(second)
    assert len(list((folder / "shared").glob("data-*"))) == 1
    assert all((state.folder / "evaluation" / "segmenters").is_dir() for state in states(sweep, folder))


def test_a_cohort_that_is_not_there_fails_its_points(tmp_path):
    base = (
        "name: s\nrecipe: base.yaml\ngrid: {data: {a: {data.cohorts: [/no, /nowhere], data.partition.sites: 2}, b: {}}}"
    )
    sweep, folder = make_sweep(tmp_path, base), tmp_path / "run"
    with at_work(folder) as lock:
        broken = make_shared(states(sweep, folder), folder, 1, lock)
    assert list(broken) == [sweep.points[0].name]
    assert "/no" in broken[sweep.points[0].name]


def test_a_damaged_record_is_not_taken_for_a_finished_point(tmp_path):
    sweep, folder = make_sweep(tmp_path, SMALL), tmp_path / "run"
    give_orders(sweep, folder)
    state = go(sweep, folder)[0]
    (state.folder / "run.json").write_text("{")
    assert states(sweep, folder)[0].status == "unfinished"
    write_json(state.folder / "run.json", {"experiment": {}, "finished": "now"})
    assert states(sweep, folder)[0].status == "unfinished"
    assert read_json(folder / "points" / sweep.points[1].name / "run.json")["finished"]

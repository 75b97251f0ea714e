import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cmrfed.deploy import supervisor
from cmrfed.deploy.supervisor import Supervisor, Worker
from tests.support import descendants, is_running

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


PATIENCE_S = 120
"""Longest wait for what takes a moment on an idle machine."""


def run_until(done: Callable[[], bool], *workers: Worker, folder: Path) -> None:
    """Supervise until something has happened."""
    made = Supervisor(workers, folder, dict(os.environ))

    def end() -> None:
        wait_for(done)
        made._ending = True

    thread = threading.Thread(target=end)
    thread.start()
    made.run()
    thread.join()
    assert done()


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)


def has_passed(seconds: float) -> Callable[[], bool]:
    start = time.monotonic()
    return lambda: time.monotonic() > start + seconds


def test_a_process_that_ends_is_started_again_and_its_reason_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.05)
    command = [sys.executable, "-S", "-c", "print('port is taken', flush=True); raise SystemExit(3)"]
    worker = Worker("gate", command, lambda said: "free the port" if "port is taken" in said else None)
    worker.pause = 0.05
    log = tmp_path / "gate.log"
    run_until(lambda: log.exists() and log.read_text().count("port is taken") >= 3, worker, folder=tmp_path)
    told = "".join(capsys.readouterr())
    assert "gate ended (exit status 3) and is started again: free the port" in " ".join(told.split())
    assert told.count("free the port") == 1  # the same reason is told once


def test_pauses_grow_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 0.4)
    worker = Worker("w", [sys.executable, "-S", "-c", "raise SystemExit(1)"])
    worker.pause = 0.1
    paused: list[float] = []

    def has_grown() -> bool:
        paused.append(worker.pause)
        return worker.pause == 0.4

    run_until(has_grown, worker, folder=tmp_path)
    assert paused == sorted(paused)


def test_what_is_not_ready_is_not_started(tmp_path: Path) -> None:
    worker = Worker("w", SLEEPER, ready=lambda: False)
    run_until(has_passed(0.6), worker, folder=tmp_path)
    assert worker.process is None


def test_all_end_with_their_supervisor(tmp_path: Path) -> None:
    worker = Worker("w", SLEEPER)
    run_until(lambda: worker.process is not None, worker, folder=tmp_path)
    assert worker.process is not None
    assert worker.process.poll() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' parent-death signal")
def test_workers_do_not_outlive_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from cmrfed.deploy.supervisor import *\n"
        f"Supervisor([Worker('w', {SLEEPER!r})], Path({str(tmp_path)!r}), dict(os.environ)).run()"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    log = tmp_path / "w.log"
    wait_for(lambda: log.exists() and "up" in log.read_text())
    children = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert children
    wait_for(lambda: not any(map(is_running, children)))
    assert not any(map(is_running, children))

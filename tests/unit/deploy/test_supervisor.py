import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cmrfed.deploy import supervisor
from cmrfed.deploy.supervisor import Supervisor, Worker

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def run_for(seconds: float, *workers: Worker, folder: Path) -> Supervisor:
    made = Supervisor(workers, folder, dict(os.environ))
    threading.Timer(seconds, lambda: setattr(made, "_ending", True)).start()
    made.run()
    return made


def test_a_process_that_ends_is_started_again_and_its_reason_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.05)
    command = [sys.executable, "-S", "-c", "print('port is taken', flush=True); raise SystemExit(3)"]
    worker = Worker("gate", command, lambda said: "free the port" if "port is taken" in said else None)
    worker.pause = 0.05
    run_for(2.0, worker, folder=tmp_path)
    assert (tmp_path / "gate.log").read_text().count("port is taken") >= 2
    told = "".join(capsys.readouterr())
    assert "gate ended (exit status 3) and is started again: free the port" in " ".join(told.split())
    assert told.count("free the port") == 1  # the same reason is told once


def test_pauses_grow_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 0.4)
    worker = Worker("w", [sys.executable, "-S", "-c", "raise SystemExit(1)"])
    worker.pause = 0.1
    run_for(2.5, worker, folder=tmp_path)
    assert worker.pause == 0.4


def test_what_is_not_ready_is_not_started(tmp_path: Path) -> None:
    worker = Worker("w", SLEEPER, ready=lambda: False)
    run_for(0.6, worker, folder=tmp_path)
    assert worker.process is None


def test_all_end_with_their_supervisor(tmp_path: Path) -> None:
    worker = Worker("w", SLEEPER)
    run_for(0.8, worker, folder=tmp_path)
    assert worker.process is not None
    assert worker.process.poll() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' parent-death signal")
def test_workers_do_not_outlive_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from cmrfed.deploy.supervisor import *\n"
        f"Supervisor([Worker('w', {SLEEPER!r})], Path({str(tmp_path)!r}), dict(os.environ)).run()"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not (tmp_path / "w.log").exists() or "up" not in (tmp_path / "w.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)

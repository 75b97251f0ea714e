import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cmrfed.core import owner
from cmrfed.core.errors import ConfigError, InUse
from cmrfed.core.owner import LOCK, RECORD, OwnerRecord, owned

HOLD = """
import sys, time
from pathlib import Path
from cmrfed.core.owner import owned
with owned(Path(sys.argv[1]), "the run folder"):
    {inside}
    print("held", flush=True)
    time.sleep(60)
"""
FORK = "import os; r, w = os.pipe(); child = os.fork(); child or (os.write(w, b'.'), time.sleep(60)); os.read(r, 1)"
FORK += "; print(child, flush=True)"
"""The fork is at work, and has let go of the lock, before its pid is told."""
SPAWN = "import subprocess; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True)"


def _holder(folder: Path, inside: str = "print(0)") -> tuple[subprocess.Popen[str], int]:
    """A process that owns ``folder``, and the pid of what it has started."""
    code = HOLD.format(inside=inside)
    process = subprocess.Popen(
        [sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    child = int(process.stdout.readline())
    assert process.stdout.readline() == "held\n"
    return process, child


@pytest.fixture
def held(tmp_path):
    process, _ = _holder(tmp_path)
    yield process
    process.kill()
    process.wait()


def test_a_second_owner_is_refused_with_the_first_ones_pid_and_touches_nothing(tmp_path, held):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    with pytest.raises(InUse, match=rf"pid {held.pid} on \S+, since \d{{4}}-.*one process at a time"):
        owned(tmp_path, "the run folder").__enter__()
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("inside", [FORK, SPAWN], ids=["a fork", "another program"])
def test_a_folder_is_free_once_its_owner_is_killed_though_its_children_live_on(tmp_path, inside):
    process, child = _holder(tmp_path, inside)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        os.kill(child, 0)  # it is alive
        assert json.loads((tmp_path / RECORD).read_text("utf-8"))["pid"] == process.pid
        with owned(tmp_path, "the run folder"):
            assert owner.owner(tmp_path).pid == os.getpid()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_record_alone_refuses_nobody_whoever_has_its_pid_now(tmp_path):
    for pid in (os.getppid(), 2**22 - 3):
        left = OwnerRecord(pid=pid, host="here", since="2026-01-01", command="cmrfed run", started="long ago 1")
        (tmp_path / RECORD).write_text(left.model_dump_json(), encoding="utf-8")
        with owned(tmp_path, "the run folder"):
            pass
    assert not (tmp_path / RECORD).exists()


def test_a_pid_that_another_process_has_now_is_not_named_as_the_owner(tmp_path, held):
    true = OwnerRecord.model_validate_json((tmp_path / RECORD).read_bytes())
    reused = true.model_copy(update={"pid": os.getppid()})
    (tmp_path / RECORD).write_text(reused.model_dump_json(), encoding="utf-8")
    assert owner.owner(tmp_path) is None
    with pytest.raises(InUse, match="a process that left no") as refused:
        owned(tmp_path, "the run folder").__enter__()
    assert f"pid {os.getppid()}" not in str(refused.value)


def test_a_record_of_another_machine_is_shown_as_it_is(tmp_path, held):
    far = OwnerRecord(pid=1, host="node-17", since="2026-01-01", command="cmrfed run")
    (tmp_path / RECORD).write_text(far.model_dump_json(), encoding="utf-8")
    with pytest.raises(InUse, match="pid 1 on node-17"):
        owned(tmp_path, "the run folder").__enter__()


def test_who_waits_takes_over_when_the_owner_ends(tmp_path):
    process, _ = _holder(tmp_path)
    threading.Timer(0.3, process.kill).start()
    with owned(tmp_path, "the ledger", wait_s=20):
        assert owner.owner(tmp_path).pid == os.getpid()
    process.wait()


def test_the_owning_thread_may_ask_again_and_another_thread_is_refused(tmp_path):
    refused = []

    def ask():
        try:
            with owned(tmp_path, "the run folder"):
                pass
        except InUse as error:
            refused.append(error)

    with owned(tmp_path, "the run folder"), owned(tmp_path / ".." / tmp_path.name, "the run folder"):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert f"pid {os.getpid()}" in str(refused[0])
    ask()
    assert len(refused) == 1


def test_a_fork_of_the_owner_is_a_process_of_its_own(tmp_path):
    with owned(tmp_path, "the run folder"):
        child = os.fork()
        if not child:  # pragma: no cover - another process
            try:
                with owned(tmp_path, "the run folder"):
                    os._exit(1)
            except InUse:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (tmp_path / RECORD).exists()


def test_an_owner_that_fails_leaves_the_folder_free(tmp_path):
    with pytest.raises(ZeroDivisionError), owned(tmp_path, "the run folder"):
        _ = 1 / 0
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    with owned(tmp_path, "the run folder"):
        pass


def test_of_many_that_start_at_once_one_becomes_the_owner(tmp_path):
    code = HOLD.format(inside="print(0)")
    command = [sys.executable, "-c", code, tmp_path]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    started = [subprocess.Popen(command, **pipes) for _ in range(4)]
    deadline = time.monotonic() + 60
    while sum(process.poll() is None for process in started) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    (one,) = [process for process in started if process.poll() is None]
    one.kill()
    said = [process.communicate()[1] for process in started if process is not one]
    assert all(f"pid {one.pid} on" in text for text in said)


@pytest.mark.parametrize("trouble", ["a file in its place", "no permission"])
def test_a_folder_that_cannot_be_owned_is_a_paragraph(tmp_path, monkeypatch, trouble):
    place = tmp_path / "run"
    if trouble == "a file in its place":
        place.write_text("", encoding="utf-8")
    else:

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(owner.FileLock, "acquire", refuse)
    with pytest.raises(ConfigError, match=r"cannot be locked for this process.*local disk"):
        owned(place, "the run folder").__enter__()

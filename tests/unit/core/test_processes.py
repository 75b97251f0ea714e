import gc
import os
import signal
import subprocess
import sys
import time

import pytest

from cmrfed.core.processes import end_with_parent, loading

PARENT = """
import signal, subprocess, sys, time
from cmrfed.core.processes import end_with_parent, loading
child = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: end_with_parent(signal.SIGKILL))
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a service of Linux")
def test_a_process_ends_with_the_one_that_started_it():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 10
    while _runs(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(child)


def test_no_garbage_is_looked_for_while_modules_are_loaded():
    assert gc.isenabled()
    with loading():
        assert not gc.isenabled()
        with loading():
            pass
        assert not gc.isenabled(), "the outer one ends it"
    assert gc.isenabled()
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()


def test_a_process_of_our_own_leaves_what_it_has_loaded_out_of_later_collections():
    code = """
import gc
from cmrfed.core.processes import loading
with loading():
    import json
assert gc.isenabled() and gc.get_freeze_count() == 0, "the process may be somebody else's"
with loading(for_good=True):
    import json
frozen = gc.get_freeze_count()
assert gc.isenabled() and frozen
kept = [[] for _ in range(1000)]
with loading(for_good=True):
    pass
assert gc.get_freeze_count() <= frozen, "once, or garbage would pile up"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    end_with_parent()

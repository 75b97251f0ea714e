"""Kills a run before its operations on the disk, resumes it, and prints what came out.

Runs as a program of its own, single-threaded, so that it can fork: ``python -m tests.e2e.killed_runs FOLDER EVERY``.
EVERY is 1 for a kill before each operation, 2 for every second one, … Prints JSON: {"whole": outcome, "operations": n,
"resumed": {i: outcome of the run killed before operation i, …}}.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from cmrfed.core.artifacts import digest_folder, digest_state, load_state
from tests.federation_world import federated_run, make_sites, tiny_stage

OPERATIONS = ("fsync", "replace", "rename", "unlink", "rmdir")
ROUNDS = 2


def train(run_dir: Path) -> None:
    federated_run(run_dir, tiny_stage(rounds=ROUNDS, steps=1), sites=2, strategy={"name": "fedadam"}).start_or_resume()


def outcome(run_dir: Path) -> list[str]:
    """Digests of all that a run leaves: weights, average, moments, generator."""
    last = run_dir / "image" / f"round-{ROUNDS:04d}"
    states = [digest_state(load_state(last / f"{n}.safetensors")[0]) for n in ("global", "ema", "strategy")]
    return [*states, digest_folder(run_dir / "generators" / "image")]


def count_operations(before_each: Callable[[int], None]) -> list[int]:
    """Call ``before_each`` with the number of every operation on the disk; return a list that holds the count."""
    count, fsync = [0], os.fsync
    for name in OPERATIONS:
        original = getattr(os, name)

        def counted(*args, original=original, **kwargs):
            before_each(count[0])
            count[0] += 1
            # a killed process loses nothing that it handed to the system, so the real fsync would only take time
            return None if original is fsync else original(*args, **kwargs)

        setattr(os, name, counted)
    return count


def in_child(run_dir: Path, kill_before: int | None = None) -> int:
    """Train in a forked process; return how it ended (0, or minus the signal)."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

        def before_each(number: int) -> None:
            if number == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

        count = count_operations(before_each)
        train(run_dir)
        (run_dir / "operations").write_text(str(count[0]))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, every: int) -> None:
    make_sites(folder / "fresh", 2)
    shutil.copytree(folder / "fresh", folder / "whole")
    assert in_child(folder / "whole") == 0
    operations = int((folder / "whole" / "operations").read_text())
    resumed = {}
    for number in range(0, operations, every):
        run_dir = folder / f"killed-{number}"
        shutil.copytree(folder / "fresh", run_dir)
        assert in_child(run_dir, kill_before=number) == -signal.SIGKILL
        assert in_child(run_dir) == 0
        resumed[number] = outcome(run_dir)
        shutil.rmtree(run_dir)
    print(json.dumps({"whole": outcome(folder / "whole"), "operations": operations, "resumed": resumed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

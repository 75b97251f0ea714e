"""Phantom patients a second of CPU time, of this code and of another revision's.

The aim is five times as many as in version 0.1, in one process on one thread.

How it is measured: each code draws the same patients in a process of its own, imports not counted; the two take turns,
since a shared machine is now faster and now slower, and the ratio is the median over the turns. CPU seconds are those
of the process, wall seconds are shown beside them.

    python -m benchmarks.phantom                       # against version 0.1, from the history of the source tree
    python -m benchmarks.phantom --before HEAD~1
    python -m benchmarks.phantom --quick               # one patient, one turn: shows that it runs
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks import run_benchmark

ROOT = Path(__file__).parent.parent
BEFORE = "cc7b208a"
"""Version 0.1."""
DRAW = """
import sys, time
from cmrfed.data.phantom import phantom_patient
from cmrfed.data.phantom.write import PhantomConfig
count = int(sys.argv[1])
config = PhantomConfig(patients=count, sites=4, seed=5)
phantom_patient(config, 0, count + 1)
cpu, wall = time.process_time(), time.perf_counter()
for number in range(count):
    phantom_patient(config, number % 4, number + 1)
print((time.process_time() - cpu) / count, (time.perf_counter() - wall) / count)
"""


def unpacked(revision: str, folder: Path) -> Path:
    """The package as it was at a revision."""
    done = subprocess.run(["git", "archive", revision, "cmrfed"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()
        sys.exit(f"error: there is no revision {revision}. Got: {why}. Do: give --before REVISION of this source tree")
    with tarfile.TarFile(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def seconds_a_patient(tree: Path, patients: int) -> tuple[float, float]:
    """CPU and wall seconds."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRAW, str(patients)]
    done = subprocess.run(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, check=True, text=True, encoding="utf-8"
    )
    cpu, wall = map(float, done.stdout.split())
    return cpu, wall


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default=BEFORE, help="revision of this source tree to compare with")
    parser.add_argument("--patients", type=int, default=8, help="patients of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one patient, one turn")
    args = parser.parse_args()
    patients, turns = (1, 1) if args.quick else (args.patients, args.turns)
    with tempfile.TemporaryDirectory() as folder:
        trees = {"before": unpacked(args.before, Path(folder)), "now": ROOT}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
        for _ in range(turns):
            for name, tree in trees.items():
                found[name].append(seconds_a_patient(tree, patients))
    print(f"{'code':<8}{'patients per CPU second':>26}{'CPU s a patient':>18}{'wall s a patient':>18}")
    for name, times in found.items():
        cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:<8}{1 / cpu:>26.2f}{cpu:>18.3f}{wall:>18.3f}")
    ratio = statistics.median(b[0] / a[0] for b, a in zip(found["before"], found["now"], strict=True))
    print(f"\npatients per CPU second, now : before ({args.before}) = {ratio:.2f} (aim against version 0.1: >= 5)")


if __name__ == "__main__":
    run_benchmark(main)

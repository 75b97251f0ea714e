"""Steps a second of processes that share cores, with OpenMP's threads spinning while they wait, and sleeping.

The question is whether CMRFed should let threads sleep: with as many threads as cores in each of two processes,
sleeping has to give more steps a second than spinning, and one process alone must lose nothing (at least .98).

How it is measured: processes train the image stage of configs/recipes/demo.yaml on phantom patients for a fixed time,
started together when all are ready. Policies take turns; medians over the turns of the steps of all processes together.

    python -m benchmarks.wait_policy
    python -m benchmarks.wait_policy --quick     # tiny networks: shows that it runs
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import run_benchmark
from cmrfed.core.machine import cores

POLICIES = ("ACTIVE", "PASSIVE")
"""Values of OMP_WAIT_POLICY: waiting threads spin, or sleep."""


def work(seconds: float, threads: int, quick: bool) -> None:
    """In a process of its own: be ready, wait for a line, then train for some time and print steps a second."""
    import torch

    from benchmarks.training import QUICK, RECIPE, phantom_cohort
    from cmrfed.config.experiment import resolve
    from cmrfed.generators.generator import Generator
    from cmrfed.training.loop import LocalTrainer

    torch.set_num_threads(threads)
    experiment = resolve(RECIPE.parent / "demo.yaml", QUICK if quick else [])
    with tempfile.TemporaryDirectory() as folder:
        cohort = phantom_cohort(Path(folder), 4, experiment.data.size_px)
        generator = Generator(experiment.generator("image"))
        trainer = LocalTrainer(generator, cohort, "image", 0, experiment.image.training, seed=0)
        trainer.run(0, 2)
        print("ready", flush=True)
        sys.stdin.readline()
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            trainer.run(2 + done, 2)
            done += 2
        print(done / (time.perf_counter() - start), flush=True)


def steps_a_second(policy: str, processes: int, args: argparse.Namespace) -> float:
    """Steps a second of all processes together."""
    command = [sys.executable, "-m", "benchmarks.wait_policy", "--work", "--seconds", str(args.seconds)]
    command += ["--threads", str(args.threads)] + (["--quick"] if args.quick else [])
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"OMP_WAIT_POLICY": policy}
    started = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
        )
        for _ in range(processes)
    ]
    for process in started:
        if process.stdout:
            process.stdout.readline()  # it is ready
    for process in started:
        if process.stdin:
            process.stdin.write("go\n")
            process.stdin.flush()
    return sum(float(process.communicate()[0].splitlines()[-1]) for process in started)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="of training, in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores(), help="in each process")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; its numbers mean nothing")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.seconds, args.threads, args.quick)
        return
    if args.quick:
        args.seconds, args.turns, args.threads = 0.5, 1, min(2, args.threads)
    print(f"{cores()} core(s), {args.threads} thread(s) in each process, {args.seconds:g} s a turn")
    for processes in (1, 2):
        found: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        for _ in range(args.turns):
            for policy in POLICIES:
                found[policy].append(steps_a_second(policy, processes, args))
        median = {policy: statistics.median(values) for policy, values in found.items()}
        print(", ".join(f"{policy.lower()} {value:.2f} steps a second" for policy, value in median.items()))
        ratio = median["PASSIVE"] / median["ACTIVE"]
        print(f"steps a second of {processes} process(es), sleeping : spinning = {ratio:.2f}")
    if args.quick:
        print("--quick: the network is tiny, and the numbers mean nothing")


if __name__ == "__main__":
    run_benchmark(main)

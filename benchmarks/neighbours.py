"""Nearest neighbours: time and memory of the search behind memorisation and leakage, beside scipy's cdist.

Aim: 10,000 against 10,000 vectors of 2048 numbers in less than a minute on 2 cores, without the full matrix.

How it is measured: both find, for every query, the nearest vector of every patient. "cdist" is what a user would write:
scipy.spatial.distance.cdist over the whole, then the least of each patient. They take turns; the table gives medians.
Memory is the peak above that of the vectors themselves, each in a process of its own.

    python -m benchmarks.neighbours
    python -m benchmarks.neighbours --quick        # few vectors: shows that it runs
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import cdist

from benchmarks import run_benchmark
from cmrfed.evaluation.privacy.nearest import neighbours

Search = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def ours(queries: np.ndarray, others: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Distance (N, P) as the evaluator computes it."""
    return neighbours(queries, others, owners).distance


def plain(queries: np.ndarray, others: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """The same by the whole matrix."""
    whole = cdist(queries, others)
    each = [whole[:, owners == patient].min(1) for patient in np.unique(owners)]
    return np.stack(each, 1) / np.sqrt(queries.shape[1])


WAYS: dict[str, Search] = {"blocks": ours, "cdist": plain}


def vectors(count: int, width: int, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries and others (N, D) as features come, float32, and the patient of each."""
    random = np.random.default_rng(0)
    queries, others = (random.normal(size=(count, width)).astype(np.float32) for _ in range(2))
    return queries, others, np.arange(count) % patients


def peak_mb(name: str, size: tuple[int, int, int], threads: int) -> float:
    """Peak memory of one search above that of its vectors."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (name, size, threads))


def _peak(name: str, size: tuple[int, int, int], threads: int) -> float:
    torch.set_num_threads(threads)
    WAYS[name](*vectors(8, 8, 2))  # what libraries take by themselves
    world = vectors(*size)
    before = _resident_mb("VmRSS:")
    WAYS[name](*world)
    return _resident_mb("VmHWM:") - before


def _resident_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed and memory of nearest neighbours; prints ratios.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few vectors, one turn")
    args = parser.parse_args()
    if args.quick:
        args.count, args.width, args.patients, args.turns = 200, 16, 10, 1
    torch.set_num_threads(args.threads)
    size = args.count, args.width, args.patients
    world = vectors(*size)
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(args.turns):
        found = {}
        for name, way in WAYS.items():
            start = time.monotonic()
            found[name] = way(*world)
            taken[name].append(time.monotonic() - start)
    gap = float(np.abs(found["blocks"] / found["cdist"] - 1).max())
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    print(f"{args.count} x {args.count} vectors of {args.width}, {args.patients} patients, {args.threads} thread(s)")
    for name in WAYS:
        print(f"{name:8}{seconds[name]:8.1f} s{peak_mb(name, size, args.threads):8.0f} MB")
    print(f"largest relative difference of a distance: {gap:.1e}")
    print(f"time, cdist : blocks = {seconds['cdist'] / seconds['blocks']:.1f} (aim: blocks in less than 60 s)")
    if args.quick:
        print("a quick run: the numbers mean nothing")


if __name__ == "__main__":
    run_benchmark(main)

"""How cost grows: processor time and memory against pixels, patients and sites.

Aim: time grows with pixels, patients and sites at most in proportion (exponent 1), and memory with patients and sites
not at all (exponent 0); judging compares each synthetic patient with each other one, which is the square of their
number but small (see `benchmarks.neighbours`).

How it is measured: each point is a process of its own, on made-up patients. Time is that of the processor over the
work alone; memory is the largest resident set of the process above that before the work. An exponent is that of the
power of the quantity by which the cost grew from the row before.

- phantom, prepare: simulated scans, and the cohort made of them.
- step, sample: a step and a slice of the recipe's image stage; of patients, a step draws the same number of slices.
- judge: everything but the segmenters, whose training has a fixed number of steps.
- round: one round of sites in one process (`benchmarks.scale`).

    python -m benchmarks.growth                    # about 10 minutes of one core
    python -m benchmarks.growth --work judge --patients 50 100 200 --pixels 128
    python -m benchmarks.growth --quick            # two points of a step: shows that it runs
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import run_benchmark
from benchmarks.gpu import experiment_of, made_up_cohort
from benchmarks.scale import TINY, point
from benchmarks.training import specification
from cmrfed.config.experiment import resolve_evaluation
from cmrfed.core.precision import arithmetic
from cmrfed.data.cohort import Cohort
from cmrfed.data.draws import gather
from cmrfed.data.phantom import write_phantom
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.settings import PhantomConfig
from cmrfed.data.synthetic import NOT_PRIVATE, Case, Manifest
from cmrfed.evaluation.evaluate import evaluate
from cmrfed.federation.server.run import StageSpec
from cmrfed.generators.autoencoder import build_autoencoder
from cmrfed.generators.generator import Generator
from cmrfed.synthesis.write import write_dataset
from cmrfed.training.batches import stage_inputs
from cmrfed.training.loop import LocalTrainer

STEPS, DRAWN = 5, 8
Work = Callable[[], object]


# --- the work -------------------------------------------------------------------------------------
def phantom(folder: Path, pixels: int, patients: int, sites: int, *, quick: bool) -> Work:
    """Simulate scans, which have pixels of their own."""
    return lambda: write_phantom(folder / "scans", PhantomConfig(patients=patients, sites=1, seed=0))


def preparation(folder: Path, pixels: int, patients: int, sites: int, *, quick: bool) -> Work:
    """Prepare simulated scans."""
    write_phantom(folder / "scans", PhantomConfig(patients=patients, sites=1, seed=0))
    return lambda: prepare(folder / "scans" / "site-0", folder / "c", "acdc", PrepareConfig(size_px=pixels))


def _generator(pixels: int, *, quick: bool) -> tuple[Generator, StageSpec]:
    spec = specification(experiment_of(pixels, quick=quick), "image", rounds=1, local_steps=10**6)
    config = spec.generator
    weights = build_autoencoder(config.autoencoder).state_dict() if config.autoencoder else None
    return Generator(config, 0, weights), spec


def step(folder: Path, pixels: int, patients: int, sites: int, *, quick: bool) -> Work:
    """Train for a few steps."""
    generator, spec = _generator(pixels, quick=quick)
    cohort = made_up_cohort(folder / "c", pixels, patients)
    trainer = LocalTrainer(generator, cohort, "image", 0, spec.training, seed=0)
    trainer.run(0, 1)
    return lambda: trainer.run(1, STEPS)


def sample(folder: Path, pixels: int, patients: int, sites: int, *, quick: bool) -> Work:
    """Draw a few slices of each patient."""
    generator, cohort = _generator(pixels, quick=quick)[0].eval(), made_up_cohort(folder / "c", pixels, patients)
    rows = cohort.rows[: DRAWN * patients // 2]
    _, cond = stage_inputs(gather(cohort, rows), "image", style=0)
    return lambda: generator.sample(cond, range(len(rows)), batch_size=DRAWN, precision=arithmetic("bf16", "cpu"))


def judge(folder: Path, pixels: int, patients: int, sites: int, *, quick: bool) -> Work:
    """Evaluate as many synthetic patients against 16 of each real set."""
    real = [made_up_cohort(folder / name, pixels, 16, seed) for seed, name in enumerate(("train", "holdout"), 1)]
    made = made_up_cohort(folder / "made", pixels, patients)
    manifest = Manifest(name="m", patients=patients, seed=0, generators={}, size_px=pixels, privacy=NOT_PRIVATE)
    write_dataset(folder / "synthetic", _cases(made), manifest)
    config = resolve_evaluation(["utility=false"])
    return lambda: evaluate(
        synthetic=folder / "synthetic", train=real[0], holdout=real[1], config=config, out=folder / "out"
    )


def _cases(cohort: Cohort) -> Iterator[Case]:
    for v in cohort.iter_volumes():
        if v.mask is not None:
            yield Case(f"{v.patient_id}_{v.phase.name}", v.patient_id, v.phase, v.image, v.mask, None, "s")


def federated_round(folder: Path, pixels: int, patients: int, sites: int, *, quick: bool) -> Work:
    """One round of simulated sites."""
    cohort = made_up_cohort(folder / "c", 32, patients)
    return lambda: point(sites, "none", TINY, cohort, folder)


WORKS = {
    "phantom": (phantom, ("patients",)),
    "prepare": (preparation, ("patients", "pixels")),
    "step": (step, ("pixels", "patients")),
    "sample": (sample, ("pixels", "patients")),
    "judge": (judge, ("patients", "pixels")),
    "round": (federated_round, ("sites",)),
}
"""Work => how it is made, and with what its cost is measured to grow."""
USUAL = {"pixels": 64, "patients": 8, "sites": 2}


# --- measuring ------------------------------------------------------------------------------------
def measured(work: str, at: dict[str, int], *, quick: bool) -> tuple[float, float]:
    """Processor seconds and peak MiB of one point, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.growth", "--point", work, json.dumps(at)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *(["--quick"] if quick else [])], stdout=subprocess.PIPE, encoding="utf-8", env=environment
    )
    if done.returncode:
        raise SystemExit(f"{work} at {at} failed: see above")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["cpu_s"], found["peak_mib"]


def take(work: str, at: dict[str, int], *, quick: bool) -> dict[str, float]:
    """Do one point in this process."""
    with tempfile.TemporaryDirectory() as folder:
        run = WORKS[work][0](Path(folder), at["pixels"], at["patients"], at["sites"], quick=quick)
        before, start = _peak_mib(), _cpu_s()
        run()
        return {"cpu_s": _cpu_s() - start, "peak_mib": max(_peak_mib() - before, 0.0)}


def _cpu_s() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def exponent(costs: tuple[float, float], sizes: tuple[int, int]) -> float | None:
    """Power of the size by which the cost grew; None where there is next to no cost."""
    if min(costs) <= 0:
        return None
    return math.log(costs[1] / costs[0]) / math.log(sizes[1] / sizes[0])


def table(args: argparse.Namespace) -> None:
    """Measure every point and print a line as soon as it is known."""
    print(f"{'work':<10}{'grows with':<12}{'at':>6}{'CPU s':>10}{'exponent':>10}{'peak MiB':>10}{'exponent':>10}")
    for work in args.work:
        for quantity in WORKS[work][1]:
            last: tuple[int, float, float] | None = None
            for size in getattr(args, quantity):
                cpu, peak = measured(work, USUAL | {quantity: size}, quick=args.quick)
                powers = [None, None]
                if last:
                    sizes = last[0], size
                    powers = [exponent((last[1], cpu), sizes), exponent((last[2], peak), sizes)]
                words = ["" if power is None else f"{power:.2f}" for power in powers]
                print(f"{work:<10}{quantity:<12}{size:>6}{cpu:>10.2f}{words[0]:>10}{peak:>10.0f}{words[1]:>10}",
                      flush=True)  # fmt: skip
                last = size, cpu, peak


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", choices=list(WORKS), nargs="+", default=list(WORKS))
    parser.add_argument("--pixels", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--patients", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--threads", type=int, default=1, help="one is used whatever is said here")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; its numbers mean nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.point:
        print(json.dumps(take(args.point[0], json.loads(args.point[1]), quick=args.quick)))
        return
    if args.quick:
        args.pixels, args.patients, args.sites, args.work = [32, 64], [2, 3], [2, 3], ["step"]
    table(args)
    if args.quick:
        print("--quick: the numbers mean nothing")


if __name__ == "__main__":
    run_benchmark(main)

"""What a step costs where the processor has no bfloat16: with the project's choice, in float32, and in bfloat16 anyway.

Aim: a step of the segmenter, and of training the image stage, takes no longer than 1.3 times the time in float32.

How it is measured: networks, batches and size are those of configs/recipes/demo.yaml, on phantom patients. The
project's choice is forced by CMRFED_NO_BF16=1, as on a processor without bfloat16; "bf16" computes in it whatever the
processor has, which is emulated where it has none. All three take turns within one process; medians over the turns.

    python -m benchmarks.emulated_bf16
    python -m benchmarks.emulated_bf16 --quick     # tiny networks: shows that it runs

The whole demo, forced, and in float32 everywhere:

    CMRFED_NO_BF16=1 cmrfed run configs/recipes/demo.yaml --run-dir runs/forced
    cmrfed run configs/recipes/demo.yaml --run-dir runs/float32 --set mask.training.precision=fp32 \
        --set image.training.precision=fp32 --set synthesis.precision=fp32 --set evaluation.segmenter.precision=fp32
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from benchmarks import run_benchmark
from benchmarks.training import QUICK, phantom_cohort
from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.precision import SWITCH, has_bf16
from cmrfed.core.settings.config import Precision
from cmrfed.data.cohort import Cohort
from cmrfed.evaluation.utility.segmenter import labelled_slices, train_segmenter
from cmrfed.generators.generator import Generator
from cmrfed.segmentation.settings import SegmenterConfig
from cmrfed.training.loop import LocalTrainer

RECIPE = Path(__file__).parent.parent / "configs" / "recipes" / "demo.yaml"
WAYS: tuple[tuple[str, Precision, bool | None], ...] = (
    ("forced: no bf16", "bf16", None),
    ("float32", "fp32", None),
    ("bf16", "bf16", True),
)
"""Name, precision of the settings, and whether the processor counts as one with bfloat16 (None: `SWITCH` is set)."""


def segmenter_steps(config: SegmenterConfig, cohort: Cohort, steps: int) -> None:
    """Train the reference segmenter for some steps."""
    slices = labelled_slices(cohort)
    train_segmenter(slices.images, slices.masks, config.model_copy(update={"steps": steps}), 0)


def training_steps(experiment: Experiment, precision: Precision, cohort: Cohort, steps: int) -> None:
    """Train the image stage at one site for some steps."""
    training = experiment.image.training.model_copy(update={"precision": precision})
    generator = Generator(experiment.generator("image"))
    LocalTrainer(generator, cohort, "image", 0, training, seed=0).run(0, steps)


def seconds(step: Callable[[], None], emulated: bool | None) -> float:
    """CPU seconds of a step, on a processor that is taken for one with or without bfloat16."""
    switch = mock.patch.dict(os.environ, {SWITCH: "1"} if emulated is None else {})
    with switch, mock.patch("cmrfed.core.precision.has_bf16", (lambda _: True) if emulated else has_bf16):
        before = time.process_time()
        step()
        return time.process_time() - before


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; its numbers mean nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps, turns = (1, 1) if args.quick else (args.steps, args.turns)
    experiment = resolve(RECIPE, QUICK if args.quick else [])
    there = "" if has_bf16("cpu") else "no "
    print(f"The processor has {there}bfloat16; {args.threads} thread(s), {steps} step(s) a turn")
    with tempfile.TemporaryDirectory() as folder:
        cohort = phantom_cohort(Path(folder), 4, experiment.data.size_px)
        segmenter = experiment.evaluation.segmenter
        jobs: dict[str, Callable[[Precision], Callable[[], None]]] = {
            "segmenter": lambda p: (
                lambda: segmenter_steps(segmenter.model_copy(update={"precision": p}), cohort, steps)
            ),
            "image stage": lambda p: lambda: training_steps(experiment, p, cohort, steps),
        }
        for job, make in jobs.items():
            taken: dict[str, list[float]] = {name: [] for name, _, _ in WAYS}
            for turn in range(turns + 1):  # the first only warms up
                for name, precision, emulated in WAYS:
                    spent = seconds(make(precision), emulated) / steps
                    taken[name] += [spent] if turn else []
            median = {name: statistics.median(times) for name, times in taken.items()}
            print(f"\n{job}: " + ", ".join(f"{name} {value:.3f} CPU s a step" for name, value in median.items()))
            forced, plain = median["forced: no bf16"], median["float32"]
            print(f"time of a step of the {job}, forced : float32 = {forced / plain:.2f} (aim: <= 1.3)")
            print(f"time of a step of the {job}, bf16 : float32 = {median['bf16'] / plain:.2f}")
    if args.quick:
        print("--quick: the network is tiny, and the numbers mean nothing")


if __name__ == "__main__":
    run_benchmark(main)

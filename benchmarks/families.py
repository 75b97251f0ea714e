"""One table over finished runs: quality as they measured it, and speed measured here, for every generator family.

The runs are those of configs/recipes/acdc-families: the same patients, masks, network, rounds, steps and batches, with
another family of image generator each. Quality is read from each run's evaluation.json. Speed is that of the image
generator alone, of this machine: steps of training with the recipe's batch and augmentation, and drawing with the
recipe's sampler, one family after the other in turns; medians.

    python -m benchmarks.families runs/ddpm runs/fm runs/ldm
"""

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks import run_benchmark
from cmrfed.core.artifacts import read_json
from cmrfed.core.precision import arithmetic
from cmrfed.core.progress import say
from cmrfed.data.cohort import Cohort
from cmrfed.data.draws import gather
from cmrfed.evaluation.results.reading import read_evaluation
from cmrfed.evaluation.results.result import EvaluationReport, Metric
from cmrfed.generators.generator import Generator
from cmrfed.pipeline.files.record import read_run
from cmrfed.training.batches import stage_inputs
from cmrfed.training.loop import LocalTrainer

QUALITY = {
    "KID": "fidelity.kid.synthetic.phantom-cnn-v1",
    "SSIM": "fidelity.ssim.paired",
    "Dice, synthetic only, hold-out": "utility.dice.synthetic.holdout",
    "the same over real": "utility.dice-ratio.synthetic.holdout",
}
"""Column => metric of the evaluation; Dice on every other data set is added."""
FLOOR = "fidelity.kid.training.phantom-cnn-v1"


@dataclass
class Family:
    """A finished run and what is measured of it here."""

    run_dir: Path
    train_s: list[float] = field(default_factory=list)
    draw_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.experiment = read_run(self.run_dir).experiment
        self.report = read_evaluation(self.run_dir / "evaluation" / "evaluation.json")
        site = read_json(self.run_dir / "sites" / "00" / "site.json")
        self.cohort = Cohort.open(site["cohort"]).select(site["patients"])
        self.generator = Generator.load(self.run_dir / "generators" / "image")
        self.trainer = LocalTrainer(
            Generator.load(self.run_dir / "generators" / "image"),
            self.cohort, "image", 0, self.experiment.image.training, seed=0,
        )  # fmt: skip

    @property
    def parameters(self) -> int:
        """Of the network that is trained."""
        return sum(p.numel() for p in self.generator.network.parameters())

    def turn(self, number: int, steps: int, images: int) -> None:
        """Train and draw once."""
        batch = self.experiment.image.training.batch_size
        start = time.monotonic()
        self.trainer.run(number * steps, steps)
        self.train_s.append((time.monotonic() - start) / (steps * batch))
        cond = stage_inputs(gather(self.cohort, self.cohort.rows[:images]), "image", style=0)[1]
        precision = arithmetic(self.experiment.synthesis.precision, "cpu")
        start = time.monotonic()
        self.generator.sample(cond, range(images), batch_size=images, precision=precision)
        self.draw_s.append((time.monotonic() - start) / images)

    def find(self, metric_id: str) -> Metric | None:
        """A metric of the run's evaluation."""
        return self.report.find(metric_id)

    def row(self, others: list[str]) -> list[str]:
        """Cells of the table, with the metrics ``others`` of other data sets."""
        names = [*QUALITY.values(), *others]
        speeds = [f"{1 / statistics.median(s[1:] or s):.1f}" for s in (self.train_s, self.draw_s)]
        return [self.experiment.name, *(cell(self.find(name)) for name in names), *speeds, f"{self.parameters:,}"]


def external(report: EvaluationReport) -> dict[str, str]:
    """Test set => metric of what synthetic slices teach for it, but for the hold-out."""
    found = report.select("utility.dice", arm="synthetic", structure=None, segmenter=None)
    return {str(m.test): m.id for m in found if m.test not in (None, "holdout")}


def cell(metric: Metric | None) -> str:
    """Value and interval."""
    if metric is None or metric.value is None:
        return "unavailable"
    interval = "" if metric.low is None or metric.high is None else f" ({metric.low:.3f} to {metric.high:.3f})"
    return f"{metric.value:.3f}{interval}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs")
    parser.add_argument("--steps", type=int, default=20, help="of training in a turn")
    parser.add_argument("--images", type=int, default=32, help="drawn in a turn")
    parser.add_argument("--turns", type=int, default=4, help="the first only warms up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    families = [Family(run) for run in args.runs]
    for turn in range(args.turns):
        for family in families:
            family.turn(turn, args.steps, args.images)
        say(f"turn {turn + 1} of {args.turns}")
    others = {test: metric_id for family in families for test, metric_id in external(family.report).items()}
    head = ["recipe", *QUALITY, *(f"Dice, {test}" for test in others), "training images/s", "images/s", "parameters"]
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join("---" for _ in head) + " |")
    for family in families:
        print("| " + " | ".join(family.row([*others.values()])) + " |")
    print(f"\n{FLOOR}: {cell(families[0].find(FLOOR))}; {args.threads} thread(s)")


if __name__ == "__main__":
    run_benchmark(main)

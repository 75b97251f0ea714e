"""What each lever of private training buys: loss on patients that no stage has seen, at one and the same ε.

Each way is the recipe with one setting changed, its noise calibrated anew to the recipe's ε, so that all ways cost
the patients the same. The stage is trained over the recipe's simulated sites from the same weights; the table
gives the loss on the hold-out patients, in the mean over --draws times and noises that are the same for all ways,
beside the loss of the start itself. "hardly any noise" costs another ε: it shows what the same steps would reach. The
noise of private training cannot be repeated, so each way is trained --repeats times, and least and most are given as
well.

    python -m benchmarks.private_levers --cohort cohorts/acdc
    python -m benchmarks.private_levers --cohort cohorts/acdc --way recipe --way 'image.training.ema_decay=0'
    python -m benchmarks.private_levers --quick      # a tiny network on phantom patients: shows that it runs
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import run_benchmark
from benchmarks.training import QUICK, phantom_cohort
from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.precision import arithmetic, autocast
from cmrfed.data.cohort import Cohort
from cmrfed.data.draws import gather
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.federation.server.run import FederatedRun
from cmrfed.generators.condition import UNKNOWN
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import GeneratorConfig
from cmrfed.pipeline.data import Data, open_data, write_sites
from cmrfed.pipeline.pretrain import pretrained
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.training import stage_specs
from cmrfed.training.batches import stage_inputs

RECIPE = Path(__file__).parent.parent / "configs" / "recipes" / "acdc-private.yaml"
NAMED = "[unet.conv_in.*, unet.conv_out.*, unet.conv_norm_out.*, '*norm*']"
WAYS = {
    "recipe": [],
    "hardly any noise": ["privacy.epsilon=1000"],
    "random weights, no pre-training": ["pretrain.image=null"],
    "K = 1": ["privacy.image.noise_multiplicity=1"],
    "K = 32": ["privacy.image.noise_multiplicity=32"],
    "no averaging of weights": ["image.training.ema_decay=0"],
    "times in the middle": ["image.generator.process.timestep_sampling=logit_normal"],
    "one local step, FedAdam": [
        "federation.strategy={name: fedadam, server_learning_rate: 3.0e-3}",
        "image.training.rounds=20", "image.training.local_steps=1",
        "image.training.optimizer=sgd", "image.training.learning_rate=1.0",
    ],
    "half the patients in a step": ["privacy.image.sampling_rate=0.25"],
    "twice the steps": ["image.training.rounds=10"],
    "8 directions": ["privacy.image.subspace.rank=8"],
    "named parameters, no directions": ["privacy.image.subspace=null", f"privacy.image.trained={NAMED}"],
    "all parameters, no directions": ["privacy.image.subspace=null"],
}  # fmt: skip
"""Way => what it changes in the recipe."""
QUICK_WAYS = ("recipe", "K = 1")
TINY = [
    *QUICK, "image.training={rounds: 1, local_steps: 1}", "data.partition={sites: 2, scheme: iid}",
    "privacy.image.subspace={rank: 2, patients: 4, scanners: 2, draws: 2}", "privacy.image.noise_multiplicity=2",
    "pretrain={patients: 2, scanners: 1, mask: {rounds: 1, local_steps: 1}, image: {rounds: 1, local_steps: 1}}",
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What one way came to."""

    losses: list[float]
    released: str
    noise: float | None
    seconds: float


def holdout_loss(made: Generator, usual: GeneratorConfig, cohort: Cohort, draws: int, batch: int = 64) -> float:
    """Mean loss of the image stage on all slices of a cohort; times and noises are the same for every way.

    Args:
        made: Has the weights.
        usual: The recipe's own settings: a way that draws its times otherwise is measured at the recipe's times.
        cohort: Hold-out patients.
        draws: Passes over them.
        batch: Slices at once.
    """
    generator = Generator(usual)
    generator.network.load_state_dict(made.network.state_dict())
    rng, total = torch.Generator().manual_seed(1), []
    dtype = arithmetic("bf16", "cpu")
    generator.network.eval()
    with torch.no_grad(), autocast("cpu", dtype):
        for _ in range(draws):
            for rows in np.array_split(cohort.rows, -(-len(cohort.rows) // batch)):
                raw, cond = stage_inputs(gather(cohort, rows), "image", UNKNOWN)
                total.append(generator.loss(raw, cond, rng).float())
    return float(torch.cat(total).mean())


def train(experiment: Experiment, data: Data, start: Path, folder: Path) -> Generator:
    """Train the image stage over simulated sites."""
    roots = write_sites(data, folder, experiment)
    spec = next(spec for spec in stage_specs(PrivacyPlan(experiment), start) if spec.name == "image")
    result = FederatedRun(
        LocalGrid(roots), folder, run_id="levers", seed=experiment.seed, digest=experiment.digest,
        federation=experiment.federation, stages=[spec], threads=experiment.compute.threads,
    ).start_or_resume()  # fmt: skip
    return Generator.load(result.generators["image"])


def measure(
    experiment: Experiment, usual: GeneratorConfig, data: Data, start: Path, folder: Path, args: argparse.Namespace
) -> Result:
    """Train one way as often as asked."""
    begin, losses = time.monotonic(), []
    for number in range(args.repeats if experiment.privacy.private else 1):
        generator = train(experiment, data, start, folder / str(number))
        losses.append(holdout_loss(generator, usual, data.holdout, args.draws))
    row = next((row for row in PrivacyPlan(experiment).rows if row.stage == "image"), None)
    released, noise = (str(row.released_numbers), row.noise_multiplier) if row else ("", None)
    return Result(losses, released, noise, (time.monotonic() - begin) / len(losses))


def show(name: str, result: Result) -> None:
    """Print a line of the table."""
    middle, noise = statistics.median(result.losses), "" if result.noise is None else f"{result.noise:.3f}"
    spread = f"{min(result.losses):.5f} to {max(result.losses):.5f}" if len(result.losses) > 1 else ""
    print(f"{name:<34}{middle:>9.5f}  {spread:<20}{noise:>7}{result.released:>10}{result.seconds:>7.0f} s", flush=True)


def main() -> None:
    """Parse, train every way, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--cohort", type=Path, help="a cohort folder; by default phantom patients are made")
    parser.add_argument("--start", type=Path, help="folder with the generators mask and image to start from")
    parser.add_argument("--way", action="append", help=f"one of {', '.join(WAYS)}; or settings, key=value, separated "
                                                       "by semicolons; by default all of the former")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], help="a setting of all ways")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--draws", type=int, default=4, help="times and noises of each hold-out slice")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; its numbers mean nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = args.way or (QUICK_WAYS if args.quick else WAYS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = [*(TINY if args.quick else []), *args.set, f"compute.threads={args.threads}"]
        cohort = args.cohort or phantom_cohort(folder / "data", 6, resolve(args.recipe, common).data.size_px).root
        common.append(f"data.cohorts=[{cohort.absolute()}]")
        experiment = resolve(args.recipe, common)
        data = open_data(experiment, folder / "run")
        start = args.start or pretrained(experiment, folder / "cache" if args.quick else None)
        print(f"{'way':<34}{'loss':>9}  {'least to most':<20}{'σ':>7}{'released':>10}{'time':>9}")
        usual = experiment.generator("image")
        first = holdout_loss(Generator.load(start / "image"), usual, data.holdout, args.draws)
        show("public pre-training", Result([first], "", None, 0))
        for number, way in enumerate(chosen):
            changed = resolve(args.recipe, [*common, *WAYS.get(way, way.split(";") if "=" in way else [])])
            show(way, measure(changed, usual, data, start, folder / f"way-{number}", args))
    if args.quick:
        print("--quick: the network is tiny, and the numbers mean nothing")


if __name__ == "__main__":
    run_benchmark(main)

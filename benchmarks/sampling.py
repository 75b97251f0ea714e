"""Sampling speed: images/s of the recipe's fast sampler, beside 1000-step DDPM ancestral sampling, with KID of both.

Aim: the fast sampler draws at least 40 times as many images a second, at a KID that is not worse.

How it is measured: "fast" is the recipe's generator and sampler; "ancestral" is a DDPM with the same network, drawn
with all 1000 ancestral steps (Ho et al., arXiv 2006.11239): the very same generator where the recipe's is a DDPM,
else one that predicts v. Both draw images for the same masks, those of patients that neither has trained on, in
batches of the same size and precision; the two take turns batch by batch, and the table gives medians. KID is between
the drawn images and the real images of the same patients; "real" is KID between the images of the training patients
and those of the hold-out patients: what a perfect generator would get. It may be below 0.

Without --run-dir generators are trained here on phantom patients for --steps steps each. With --run-dir the fast
generator is that of a finished run, images are compared with its hold-out patients, and only a DDPM that the run lacks
is trained here, on the run's training patients, for as many steps as all sites of the run took together (or --steps).

    python -m benchmarks.sampling                                    # about a minute of training
    python -m benchmarks.sampling --run-dir runs/acdc --images 256
    python -m benchmarks.sampling --quick                            # a tiny network: shows that it runs
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks import run_benchmark
from benchmarks.training import QUICK, phantom_cohort
from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.artifacts import read_json
from cmrfed.core.precision import arithmetic
from cmrfed.core.progress import say
from cmrfed.data.cohort import Cohort
from cmrfed.data.draws import gather
from cmrfed.data.partition import read_split
from cmrfed.data.settings import PhantomConfig
from cmrfed.evaluation.features.extractors import Extractor, PhantomFeatures, open_extractor
from cmrfed.evaluation.features.phantom_cnn import Recipe, load_or_train
from cmrfed.evaluation.fidelity.distances import kid
from cmrfed.evaluation.settings import FeatureConfig
from cmrfed.generators.condition import Condition
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import DDPMConfig, SamplerConfig
from cmrfed.pipeline.files.record import read_run
from cmrfed.training.batches import stage_inputs
from cmrfed.training.loop import LocalTrainer

RECIPE = Path(__file__).parent.parent / "configs" / "recipes" / "acdc.yaml"
SUBSETS = 100
QUICK_FEATURES = Recipe(phantom=PhantomConfig(patients=2, sites=2), steps=2, batch_size=4, size_px=32, crop_px=24)


@dataclass
class Contestant:
    """A generator with its sampler, and what it has done."""

    name: str
    generator: Generator
    trained: str
    seconds: list[float] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)

    def draw(self, cond: Condition, seeds: range, precision: torch.dtype) -> None:
        """Draw a batch and note how long it took."""
        start = time.monotonic()
        drawn = self.generator.sample(cond, seeds, batch_size=len(cond), precision=precision)
        self.seconds.append((time.monotonic() - start) / len(cond))
        self.images.append(drawn[:, 0].numpy())


# --- generators -------------------------------------------------------------------------------------
def train(generator: Generator, cohort: Cohort, experiment: Experiment, steps: int) -> Generator:
    """Train on one cohort, centrally: federation has no part in the speed of sampling."""
    config = experiment.image.training.model_copy(update={"rounds": 1, "local_steps": steps})
    trainer = LocalTrainer(generator, cohort, "image", 0, config, seed=0)
    start = time.monotonic()
    for done in range(0, steps, 50):
        trainer.run(done, min(50, steps - done))
        say(f"{generator.config.process.kind}: {min(done + 50, steps)}/{steps} steps, {time.monotonic() - start:.0f} s")
    return generator.eval()


def with_ancestral(fast: Generator, steps: int, material: "Material") -> Contestant:
    """The same network as a DDPM with ancestral steps: the same weights too, where the fast generator is a DDPM."""
    sampler = SamplerConfig(name="ancestral", steps=steps)
    if isinstance(fast.config.process, DDPMConfig):
        same = Generator(fast.config.model_copy(update={"sampler": sampler}))
        same.network.load_state_dict(fast.network.state_dict())
        return Contestant(f"ancestral, {steps} steps", same.eval(), "the same generator")
    update = {"process": DDPMConfig(), "sampler": sampler, "condition_dropout": 0.0}
    slow = train(Generator(fast.config.model_copy(update=update)), material.train, material.experiment, material.steps)
    return Contestant(f"ancestral, {steps} steps", slow, f"{material.steps} steps here")


@dataclass(frozen=True)
class Material:
    """What a benchmark works on."""

    experiment: Experiment
    train: Cohort
    holdout: Cohort
    fast: Generator | None
    steps: int


def from_run(run_dir: Path, steps: int | None) -> Material:
    """The recipe, patients and image generator of a finished run."""
    experiment, split = read_run(run_dir).experiment, read_split(run_dir)
    whole = Cohort.open(read_json(run_dir / "sites" / "00" / "site.json")["cohort"])
    training = experiment.image.training
    total = steps or experiment.sites * training.rounds * training.local_steps
    fast = Generator.load(run_dir / "generators" / "image")
    return Material(experiment, whole.select(split.train), whole.select(split.holdout), fast, total)


def from_phantom(recipe: Path, folder: Path, patients: int, steps: int, overrides: list[str]) -> Material:
    """A recipe on phantom patients."""
    experiment = resolve(recipe, overrides)
    parts = phantom_cohort(folder, patients, experiment.data.size_px).split({"train": 0.5, "holdout": 0.5}, 0)
    return Material(experiment, parts["train"], parts["holdout"], None, steps)


# --- measuring ----------------------------------------------------------------------------------------
def race(contestants: list[Contestant], cohort: Cohort, images: int, batch: int, precision: torch.dtype) -> None:
    """Let each draw images for the masks of a cohort, batch by batch in turns."""
    rows = np.random.default_rng(0).permutation(cohort.rows)
    rows = np.resize(rows, images)
    for start in range(0, images, batch):
        part = rows[start : start + batch]
        _, cond = stage_inputs(gather(cohort, part), "image", style=0)
        for contestant in contestants:
            contestant.draw(cond, range(start, start + len(part)), precision)
        say(f"{start + len(part)}/{images} images")


def report(contestants: list[Contestant], material: Material, extractor: Extractor) -> None:
    """Print the table and the ratio."""
    real = extractor(np.asarray(material.holdout.images[material.holdout.rows], np.float32))
    seen = extractor(np.asarray(material.train.images[material.train.rows], np.float32))
    rate = {}
    print(f"\n{'sampler':<22}{'images/s':>10}{'images':>8}{'KID':>12}  trained")
    for one in contestants:
        images = np.concatenate(one.images)
        rate[one.name] = 1 / statistics.median(one.seconds)
        distance = kid(extractor(images), real, SUBSETS, np.random.default_rng(0))
        print(f"{one.name:<22}{rate[one.name]:>10.2f}{len(images):>8}{distance:>12.4f}  {one.trained}")
    floor = kid(seen, real, SUBSETS, np.random.default_rng(0))
    print(f"{'real':<22}{'':>10}{len(seen):>8}{floor:>12.4f}  training patients against hold-out patients")
    fast, slow = contestants
    print(f"\nimages/s, {fast.name} : {slow.name} = {rate[fast.name] / rate[slow.name]:.1f} (aim: >= 40)")
    print(f"KID with features {extractor.name}, {len(real)} real slices")


def main() -> None:
    """Parse, train what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="ignored with --run-dir")
    parser.add_argument("--run-dir", type=Path, help="a finished run")
    parser.add_argument("--patients", type=int, default=16, help="phantom patients, without --run-dir")
    parser.add_argument("--steps", type=int, help="training steps; 200 without --run-dir")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--ancestral-steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; its numbers mean nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.patients, args.steps, args.images, args.batch, args.ancestral_steps = 4, 2, 8, 4, 10
    with tempfile.TemporaryDirectory() as folder:
        material = (
            from_run(args.run_dir, args.steps)
            if args.run_dir
            else from_phantom(args.recipe, Path(folder), args.patients, args.steps or 200, QUICK if args.quick else [])
        )
        compare(material, args, Path(folder))


def compare(material: Material, args: argparse.Namespace, folder: Path) -> None:
    """Train, race, report."""
    experiment, trained = (
        material.experiment,
        f"run {args.run_dir}" if material.fast else f"{material.steps} steps here",
    )
    fast = material.fast or train(Generator(experiment.generator("image")), material.train, experiment, material.steps)
    sampler = fast.config.sampler
    contestants = [
        Contestant(f"{sampler.name}, {sampler.steps} steps", fast, trained),
        with_ancestral(fast, args.ancestral_steps, material),
    ]
    race(contestants, material.holdout, args.images, args.batch, arithmetic(experiment.synthesis.precision, "cpu"))
    extractor = (
        PhantomFeatures(load_or_train(folder, QUICK_FEATURES)) if args.quick else open_extractor(FeatureConfig())
    )
    report(contestants, material, extractor)
    if args.quick:
        print("--quick: the networks have hardly been trained, and the numbers mean nothing")


if __name__ == "__main__":
    run_benchmark(main)

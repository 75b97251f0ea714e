"""Training speed: images/s of a federation of 4 simulated sites, beside a plain diffusers training loop.

Aim: federated training is at least as fast as a plain loop (ratio >= 1.0), and the federation itself (messages,
digests, state written to disk after each round, aggregation) costs at most 5 % of the time at 4 sites.

How it is measured: three ways of training the same network with the same batch, precision, optimizer and data, as many
steps each, in turns within one process; medians over the turns, the first of which only warms up.

- plain: a loop as in diffusers' own training examples (DataLoader over tensors in memory, UNet2DModel, AdamW, cosine
  rate with warm-up, clipped gradients). Its only difference from an unconditional example is the condition, given as
  further input channels.
- local: `LocalTrainer`, what a site runs; one cohort, no federation.
- federation: whole rounds of `FederatedRun` over 4 sites in one process, that take turns as they do in a simulation.

Augmentation is off everywhere: it is a choice about data, and the plain loop has none.

    python -m benchmarks.training                          # the image stage of configs/recipes/acdc.yaml on the phantom
    python -m benchmarks.training --stage mask --steps 40
    python -m benchmarks.training --quick                  # a few steps of a tiny network: shows that it runs
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import run_benchmark
from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.device import HOST
from cmrfed.core.precision import arithmetic, autocast
from cmrfed.data.cohort import Cohort
from cmrfed.data.draws import gather
from cmrfed.data.partition import partition
from cmrfed.data.phantom import write_phantom
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.settings import PartitionConfig, PhantomConfig
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.federation.server.run import FederatedRun, StageSpec
from cmrfed.federation.settings import FederationConfig
from cmrfed.federation.site.folder import SiteRecord
from cmrfed.federation.site.site import Site
from cmrfed.generators.autoencoder import build_autoencoder
from cmrfed.generators.generator import Generator
from cmrfed.generators.stages import StageName
from cmrfed.privacy.policy import SitePolicy
from cmrfed.training.batches import stage_inputs
from cmrfed.training.loop import LocalTrainer

RECIPE = Path(__file__).parent.parent / "configs" / "recipes" / "acdc.yaml"
SITES = 4
QUICK = ["data.size_px=32"] + [
    f"{stage}.{setting}"
    for stage in ("mask", "image")
    for setting in ("generator.backbone.channels=[8, 16]", "generator.backbone.norm_groups=4", "training.batch_size=2")
]


def phantom_cohort(folder: Path, patients: int, size_px: int) -> Cohort:
    """A cohort of phantom patients, through the importer that real scans go through."""
    write_phantom(folder / "scans", PhantomConfig(patients=patients, sites=1, seed=0))
    config = PrepareConfig(size_px=size_px)
    return prepare(folder / "scans" / "site-0", folder / "cohort", "acdc", config, name="phantom")


def specification(experiment: Experiment, stage: StageName, rounds: int, local_steps: int) -> StageSpec:
    """A stage of the recipe, without augmentation, for so many rounds."""
    settings = experiment.mask if stage == "mask" else experiment.image
    update = {"rounds": rounds, "local_steps": local_steps, "augment": None}
    return StageSpec(stage, experiment.generator(stage), settings.training.model_copy(update=update))


# --- the three ways -------------------------------------------------------------------------------
class Plain:
    """A training loop over diffusers, with nothing of CMRFed in it but the data and the size of the network.

    A latent generator's autoencoder encodes each batch, as in diffusers' examples.
    """

    def __init__(self, spec: StageSpec, cohort: Cohort, total_steps: int, device: torch.device = HOST) -> None:
        autoencoder = spec.generator.autoencoder
        weights = build_autoencoder(autoencoder).state_dict() if autoencoder else None
        generator, self.device = Generator(spec.generator, 0, weights).to(device), device
        self.encode = generator.codec.encode if autoencoder else None
        shaped = generator.network
        self.unet, self.patch = UNet2DModel.from_config(shaped.unet.config).to(device), shaped.patch_px
        raw, cond = stage_inputs(gather(cohort, cohort.rows), spec.name, style=0)
        clean = raw if spec.name == "image" else functional.one_hot(raw, 4).permute(0, 3, 1, 2).float() * 2 - 1
        data = TensorDataset(clean, shaped.condition_planes(cond))
        pinned = device != HOST
        self.batches = endless(
            DataLoader(data, spec.training.batch_size, shuffle=True, drop_last=True, pin_memory=pinned)
        )
        self.scheduler, self.flow = DDPMScheduler(), spec.generator.process.kind == "flow"
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=spec.training.learning_rate)
        self.rate = get_cosine_schedule_with_warmup(self.optimizer, spec.training.warmup_steps, total_steps)
        self.dtype = arithmetic(spec.training.precision, device.type)

    def run(self, steps: int) -> None:
        """Take steps."""
        self.unet.train()
        for _ in range(steps):
            clean, planes = (each.to(self.device, non_blocking=True) for each in next(self.batches))
            clean = self.encode(clean) if self.encode else clean
            noise = torch.randn_like(clean)
            noisy, time_, target = self._perturb(clean, noise)
            with autocast(self.device.type, self.dtype):
                inputs = torch.cat([functional.pixel_unshuffle(noisy, self.patch), planes], 1)
                out = functional.pixel_shuffle(self.unet(inputs, time_, return_dict=False)[0], self.patch)
                loss = functional.mse_loss(out.float(), target)
            loss.backward()
            nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
            loss.item()  # every example logs it

    def _perturb(self, clean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.flow:
            sigma = torch.rand(len(clean), 1, 1, 1, device=self.device)
            return (1 - sigma) * clean + sigma * noise, sigma.flatten() * 1000, noise - clean
        steps = torch.randint(1000, (len(clean),), device=self.device)
        return self.scheduler.add_noise(clean, noise, steps), steps, noise


def endless(loader: DataLoader) -> Iterator[tuple[Tensor, ...]]:
    """Epoch after epoch."""
    if not len(loader):
        raise SystemExit("The cohort has fewer slices than a batch: raise --patients.")
    while True:
        yield from loader


class Federation:
    """Whole rounds over simulated sites; each turn resumes the run from the disk for one round more."""

    def __init__(self, spec: StageSpec, cohort: Cohort, folder: Path, threads: int) -> None:
        self.spec, self.folder, self.threads, self.turn = spec, folder, threads, 0
        parts = partition(cohort, PartitionConfig(scheme="iid", sites=SITES), seed=0)
        self.roots = [folder / "sites" / f"{i:02d}" for i in range(SITES)]
        for i, (root, part) in enumerate(zip(self.roots, parts, strict=True)):
            style, patients = i % spec.generator.styles, part.patient_ids
            record = SiteRecord(name=f"site-{i}", style=style, cohort=str(cohort.root), patients=patients)
            Site.register(root, record, SitePolicy.of_simulation("none", None, 1e-3))

    def run(self) -> float:
        """Train one round, its state saved at the end; seconds."""
        self.turn += 1
        training = self.spec.training.model_copy(update={"rounds": self.turn})
        run = FederatedRun(
            LocalGrid(self.roots), self.folder, run_id="benchmark", seed=0, digest="0" * 64,
            federation=FederationConfig(sites=SITES), threads=self.threads,
            stages=[StageSpec(self.spec.name, self.spec.generator, training)],
        )  # fmt: skip
        start = time.monotonic()
        run.start_or_resume()
        return time.monotonic() - start


# --- measuring -------------------------------------------------------------------------------------
def seconds_of(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.monotonic()
    call()
    return time.monotonic() - start


def measure(
    spec: StageSpec, cohort: Cohort, folder: Path, *, turns: int, local_steps: int, threads: int
) -> dict[str, list[float]]:
    """Seconds of every turn, by way; the first turn is left out."""
    steps = SITES * local_steps
    plain = Plain(spec, cohort, steps * (turns + 1))
    local = LocalTrainer(Generator(spec.generator), cohort, spec.name, 0, spec.training, seed=0)
    federation = Federation(spec, cohort, folder, threads)
    times: dict[str, list[float]] = {"plain": [], "local": [], "federation": []}
    for turn in range(turns + 1):
        times["plain"].append(seconds_of(lambda: plain.run(steps)))
        times["local"].append(seconds_of(lambda first=turn * steps: local.run(first, steps)))
        times["federation"].append(federation.run())
    return {name: values[1:] for name, values in times.items()}


def report(times: dict[str, list[float]], images: int) -> None:
    """Print the table, the ratio and the overhead."""
    middle = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'way':<12}{'images/s':>10}{'median s':>10}{'min s':>10}{'max s':>10}")
    for name, values in times.items():
        rate = images / middle[name]
        print(f"{name:<12}{rate:>10.1f}{middle[name]:>10.2f}{min(values):>10.2f}{max(values):>10.2f}")
    pairs = list(zip(times["federation"], times["local"], times["plain"], strict=True))
    ratio = statistics.median(p / f for f, _, p in pairs)
    overhead = statistics.median(f / x - 1 for f, x, _ in pairs)
    print(f"\nimages/s, federation of {SITES} sites : plain diffusers loop = {ratio:.3f} (aim: >= 1.0)")
    print(f"overhead of federation at {SITES} sites = {100 * overhead:.1f} % (aim: <= 5 %)")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--stage", choices=["mask", "image"], default="image")
    parser.add_argument("--cohort", type=Path, help="a cohort folder; by default phantom patients are made")
    parser.add_argument("--patients", type=int, default=16, help="phantom patients")
    parser.add_argument("--steps", type=int, help="steps of each site in a round; by default the recipe's")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; its numbers mean nothing")
    args = parser.parse_args()
    if args.quick:
        args.patients, args.steps, args.turns = 12, 1, 1
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    experiment = resolve(args.recipe, QUICK if args.quick else [])
    stage = experiment.mask if args.stage == "mask" else experiment.image
    local_steps = args.steps or stage.training.local_steps
    with tempfile.TemporaryDirectory() as folder:
        spec = specification(experiment, args.stage, args.turns + 1, local_steps)
        cohort = (
            Cohort.open(args.cohort)
            if args.cohort
            else phantom_cohort(Path(folder) / "data", args.patients, experiment.data.size_px)
        )
        times = measure(
            spec, cohort, Path(folder) / "run", turns=args.turns, local_steps=local_steps, threads=args.threads
        )
    images = SITES * local_steps * spec.training.batch_size
    print(f"{args.stage} stage of {args.recipe.name}: {images} images a turn, {args.turns} turn(s), "
          f"{args.threads} thread(s), {spec.training.precision}, batch {spec.training.batch_size}")  # fmt: skip
    report(times, images)
    if args.quick:
        print("--quick: the network is tiny, and the numbers mean nothing")


if __name__ == "__main__":
    run_benchmark(main)

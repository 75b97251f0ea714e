"""What a GPU does with the recipes: training, sampling, private steps and evaluation, beside plain diffusers loops.

Aim: at least as fast as a plain diffusers loop over the same network (ratio >= 1.0) on the same device.

How it is measured: for each size the networks, batches and samplers of the recipe of that size (`acdc*.yaml`), on
made-up patients: what they show costs nothing. Each way first warms up, and is then timed for a few seconds with the
device waited for at both ends.

- training, steps/s: `LocalTrainer`, what a site runs, beside a loop as in diffusers' examples (`benchmarks.training`)
  with the same network, batch and arithmetic.
- sampling, slices/s: `Generator.sample` beside the scheduler's loop over the same network, as in diffusers' pipelines.
- private step, patients/s: `PrivateTrainer` with the draws of the private recipe; every patient is in every step.
- features, slices/s, and segmenter, steps/s: the evaluator's.

Ways: fp32 and bf16; channels-last; compiled (`torch.compile`). Both loops get the same. Ways that a device cannot do
are said to have failed, and what does not fit into the time is left out and said to be.

    python -m benchmarks.gpu                     # 10 minutes at most; writes gpu.json and gpu.md
    python -m benchmarks.gpu --sizes 128 --stages mask image
    python -m benchmarks.gpu --device cpu --sizes 128 --what training sampling --ways bf16   # a minute of a CPU
    python -m benchmarks.gpu --quick --device cpu    # a tiny network for moments: shows that it runs
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks import run_benchmark
from benchmarks.training import QUICK, Plain, specification
from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.device import HOST, device_name, synchronize, to_device, to_host
from cmrfed.core.device import resolve as resolve_device
from cmrfed.core.precision import arithmetic, autocast, granted
from cmrfed.core.rng import torch_generator
from cmrfed.core.settings.config import Precision
from cmrfed.data.cohort import Cohort, PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.draws import gather
from cmrfed.data.labels import Phase
from cmrfed.evaluation.features.extractors import PhantomFeatures
from cmrfed.evaluation.features.phantom_cnn import PhantomCnn
from cmrfed.evaluation.utility.segmenter import LabelledSlices, train_segmenter
from cmrfed.federation.server.run import StageSpec
from cmrfed.generators.autoencoder import build_autoencoder
from cmrfed.generators.generator import Generator
from cmrfed.generators.stages import StageName
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.settings import PrivateTraining
from cmrfed.segmentation.settings import SegmenterConfig
from cmrfed.training.batches import stage_inputs
from cmrfed.training.loop import LocalTrainer
from cmrfed.training.private import PrivateTrainer

RECIPES = Path(__file__).parent.parent / "configs" / "recipes"
PATIENTS, DEPTH, WARM, FIRST = 8, 6, 2, 10**6
WHAT = ("training", "sampling", "private step", "segmenter", "features")
SLICES = 64
"""Slices that are sampled at a time, by both loops."""


@dataclass(frozen=True)
class Way:
    """How networks compute."""

    precision: Precision
    channels_last: bool = False
    compiled: bool = False

    @property
    def words(self) -> str:
        """For the table."""
        more = [name for name, on in (("channels-last", self.channels_last), ("compiled", self.compiled)) if on]
        return ", ".join([self.precision, *more])

    def of(self, network: torch.nn.Module, backend: str) -> None:
        """Let a network compute in this way."""
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compiled:
            network.compile(backend=backend)


WAYS = (
    Way("fp32"),
    Way("bf16"),
    Way("bf16", channels_last=True),
    Way("bf16", channels_last=True, compiled=True),
    Way("fp32", channels_last=True),
    Way("fp32", compiled=True),
    Way("bf16", compiled=True),
    Way("fp32", channels_last=True, compiled=True),
)
"""In order of interest: the last ones are left out where time is up."""


@dataclass(frozen=True)
class Row:
    """One measurement: rates, or what went wrong."""

    size_px: int
    what: str
    way: str
    ours: float | None = None
    plain: float | None = None
    failed: str | None = None

    @property
    def ratio(self) -> float | None:
        """Ours over plain."""
        return self.ours / self.plain if self.ours and self.plain else None


# --- what is measured -----------------------------------------------------------------------------
def made_up_cohort(folder: Path, size_px: int, count: int = PATIENTS, seed: int = 0) -> Cohort:
    """Patients of noise with discs for hearts."""
    rows, columns = np.mgrid[:size_px, :size_px] - size_px / 2
    radius = np.hypot(rows, columns) / size_px
    mask = np.select([radius < 0.08, radius < 0.13, radius < 0.2], [3, 2, 1], 0).astype(np.uint8)
    random = np.random.default_rng(seed)

    def patients() -> Iterator[PreparedPatient]:
        for number in range(count):
            name, masks = f"p{seed}-{number}", np.repeat(mask[None], DEPTH, 0)
            volumes = tuple(
                Volume(name, phase, random.uniform(-1, 1, masks.shape).astype(np.float32), masks, None)
                for phase in Phase
            )
            yield PreparedPatient(PatientRecord(patient_id=name), volumes)

    return write_cohort(
        folder, patients(), name="made up", source="acdc", size_px=size_px, labels=(1, 2, 3), preparation={}
    )


def experiment_of(size_px: int, *, quick: bool) -> Experiment:
    """The recipe of a size, or acdc.yaml in that size."""
    names = [RECIPES / f"acdc-{size_px}.yaml", RECIPES / "acdc.yaml"]
    recipe = next(path for path in names if path.is_file())
    return resolve(recipe, [f"data.size_px={size_px}", *(QUICK[1:] if quick else [])])


class Bench:
    """One stage of one size on one device.

    Args:
        experiment: The recipe.
        stage: Which stage.
        cohort: Patients of its size.
        device: Where.
        args: Of the command line.
    """

    def __init__(
        self, experiment: Experiment, stage: StageName, cohort: Cohort, device: torch.device, args: argparse.Namespace
    ) -> None:
        self.stage: StageName = stage
        self.cohort, self.device, self.args = cohort, device, args
        self.spec = specification(experiment, stage, rounds=1, local_steps=FIRST)
        self.sampling = experiment.synthesis.precision

    def generator(self, way: Way) -> Generator:
        """The recipe's generator with random weights."""
        config = self.spec.generator
        weights = build_autoencoder(config.autoencoder).state_dict() if config.autoencoder else None
        generator = Generator(config, 0, weights).to(self.device)
        way.of(generator.network, self.args.backend)
        return generator

    def _spec(self, way: Way) -> StageSpec:
        training = self.spec.training.model_copy(update={"precision": way.precision})
        return StageSpec(self.stage, self.spec.generator, training)

    def rate(self, run: Callable[[int], object], each: int = 1) -> float:
        """Items a second of a call that takes a number of steps of ``each`` items."""
        return each * steps_per_second(run, self.device, self.args.seconds)

    def training(self, way: Way) -> tuple[float, float]:
        """Steps a second, ours and plain."""
        spec, taken = self._spec(way), 0
        trainer = LocalTrainer(self.generator(way), self.cohort, self.stage, 0, spec.training, seed=0)

        def ours(steps: int) -> None:
            nonlocal taken
            trainer.run(taken, steps)
            taken += steps

        plain = Plain(spec, self.cohort, FIRST, self.device)
        way.of(plain.unet, self.args.backend)
        return self.rate(ours), self.rate(plain.run)

    def sample(self, way: Way) -> tuple[float, float]:
        """Slices a second, ours and plain."""
        generator, other = self.generator(way).eval(), self.generator(Way(way.precision)).eval()
        way.of(other.network.unet, self.args.backend)
        count = 4 if self.args.quick else SLICES
        _, cond = stage_inputs(gather(self.cohort, np.resize(self.cohort.rows, count)), self.stage, style=0)
        dtype = arithmetic(way.precision, self.device.type)

        def ours(times: int) -> None:
            for _ in range(times):
                generator.sample(cond, range(count), batch_size=count, precision=dtype)

        @torch.no_grad()
        def plain(times: int) -> None:
            for _ in range(times):
                scheduler = other.sampler(other.config.sampler)
                planes = other.network.condition_planes(to_device(cond, self.device))
                shape = (count, other.codec.channels, other.size, other.size)
                array, patch = torch.randn(shape, device=self.device), other.network.patch_px
                with autocast(self.device.type, dtype):
                    for now in scheduler.timesteps:
                        inputs = torch.cat([functional.pixel_unshuffle(array, patch), planes], 1)
                        out = functional.pixel_shuffle(other.network.unet(inputs, now).sample.float(), patch)
                        array = scheduler.step(out, now, array, return_dict=False)[0]
                to_host(other.codec.decode(array))

        return self.rate(ours, count), self.rate(plain, count)

    def private(self, way: Way) -> tuple[float, None]:
        """Patients a second of the private step."""
        asked = resolve(RECIPES / "acdc-private.yaml", []).privacy.image
        draws = 2 if self.args.quick else asked.noise_multiplicity
        settings = {"noise_multiplier": 1.0, "sampling_rate": 1.0, "unit": "patient"}
        privacy = PrivateTraining(
            **settings, noise_multiplicity=draws, clip_norm=asked.clip_norm, declared_patients=PATIENTS
        )
        event = PrivacyEvent(**settings, steps=FIRST, run="benchmark", stage=self.stage, round=1, digest="")
        trainer = PrivateTrainer(
            self.generator(way), self.cohort, self.stage, 0, self._spec(way).training, privacy, event
        )
        return self.rate(lambda steps: trainer.run(0, steps), PATIENTS), None


def features(size_px: int, device: torch.device, args: argparse.Namespace) -> float:
    """Slices a second of the evaluator's feature extractor."""
    count = 8 if args.quick else 2048
    images = np.random.default_rng(0).uniform(-1, 1, (count, size_px, size_px)).astype(np.float32)
    extractor = PhantomFeatures(PhantomCnn(4), device)
    return count * steps_per_second(lambda times: [extractor(images) for _ in range(times)], device, args.seconds)


def segmenter(size_px: int, precision: Precision, device: torch.device, args: argparse.Namespace) -> float:
    """Steps a second of the reference segmenter, from a training that is long enough to forget its start."""
    random = torch_generator(0, "slices")
    images = torch.rand(64, 1, size_px, size_px, generator=random) * 2 - 1
    data = LabelledSlices(images, torch.randint(4, (64, size_px, size_px), generator=random).to(torch.uint8))
    small = {"channels": (4, 8), "batch_size": 2} if args.quick else {}

    def train(steps: int) -> None:
        config = SegmenterConfig(precision=precision, steps=steps, **small)
        train_segmenter(data.images, data.masks, config, 0, device=device)

    return steps_per_second(train, device, args.seconds)


def steps_per_second(run: Callable[[int], object], device: torch.device, least_s: float) -> float:
    """Steps a second of ``run(steps)``, over at least so many seconds, after a warm-up."""
    run(WARM)
    steps = 1
    while True:
        synchronize(device)
        start = time.monotonic()
        run(steps)
        synchronize(device)
        taken = time.monotonic() - start
        if taken >= least_s:
            return steps / taken
        steps = max(2 * steps, math.ceil(1.2 * steps * least_s / max(taken, 1e-6)))
        steps = min(steps, 100_000)


# --- the table ------------------------------------------------------------------------------------
Task = tuple[int, str, str, Callable[[], tuple[float, float | None]]]
"""Size, what, way, and the measurement."""


def tasks(device: torch.device, folder: Path, args: argparse.Namespace) -> Iterator[Task]:
    """All measurements, those of most interest first."""
    cohorts = {size: made_up_cohort(folder / str(size), size) for size in args.sizes}
    recipes = {size: experiment_of(size, quick=args.quick) for size in args.sizes}
    benches = [Bench(recipes[size], stage, cohorts[size], device, args) for size in args.sizes for stage in args.stages]
    for way in [way for way in (WAYS[:4] if args.quick else WAYS) if args.ways is None or way.words in args.ways]:
        for bench in benches:
            size, stage = bench.cohort.size_px, bench.stage
            yield size, f"{stage}: training, steps/s", way.words, lambda b=bench, w=way: b.training(w)
            yield size, f"{stage}: sampling, slices/s", way.words, lambda b=bench, w=way: b.sample(w)
            if way in WAYS[:3]:
                yield size, f"{stage}: private step, patients/s", way.words, lambda b=bench, w=way: b.private(w)
        if way in WAYS[:2]:
            for size in args.sizes:
                run = lambda s=size, p=way.precision: (segmenter(s, p, device, args), None)  # noqa: E731
                yield size, "segmenter, steps/s", f"{way.precision}, channels-last", run
        if way == WAYS[0]:
            for size in args.sizes:
                yield size, "features, slices/s", "fp32", lambda s=size: (features(s, device, args), None)


def measure(device: torch.device, folder: Path, args: argparse.Namespace) -> list[Row]:
    """Measure until all is done or time is up; a line for each as soon as it is known."""
    rows, end = [], time.monotonic() + 60 * args.minutes
    for size, what, way, run in tasks(device, folder, args):
        if args.what and not any(word in what for word in args.what):
            continue
        if time.monotonic() > end:
            rows.append(Row(size, what, way, failed="not measured: time was up"))
            continue
        if way.startswith("bf16") and granted("bf16", device.type) != "bf16" and not args.quick:
            rows.append(Row(size, what, way, failed="not measured: the device has no bf16 unit"))
            continue
        try:
            ours, plain = run()
            rows.append(Row(size, what, way, ours, plain))
        except Exception as error:  # a way that a device or a build of torch cannot do must not cost the others
            words = str(error).strip().partition("\n")[0][:120]
            rows.append(Row(size, what, way, failed=f"failed: {type(error).__name__}: {words}"))
        print(line(rows[-1]), flush=True)
    return sorted(rows, key=lambda row: (row.size_px, row.what))


HEAD = (
    "| size | what | way | ours | plain diffusers | ours : plain |\n| ---: | --- | --- | ---: | ---: | ---: |"  # table
)


def line(row: Row) -> str:
    """A row of the Markdown table."""
    numbers = [row.failed or "", "", ""]
    if row.failed is None:
        numbers = ["" if value is None else f"{value:.3g}" for value in (row.ours, row.plain, row.ratio)]
    return "| " + " | ".join([f"{row.size_px} px", row.what, row.way, *numbers]) + " |"


def report(rows: list[Row], device: torch.device, args: argparse.Namespace) -> None:
    """Write gpu.json and gpu.md, and print the latter."""
    where = f"{device_name(device)}, torch {torch.__version__}"
    if device == HOST:
        where += f", {torch.get_num_threads()} thread(s)"
    words = f"{where}\n\n{HEAD}\n" + "\n".join(map(line, rows)) + "\n"
    if args.quick:
        words += "\n--quick: the networks are tiny, and the numbers mean nothing\n"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpu.md").write_text(words, encoding="utf-8")
    about = {"device": device_name(device), "torch": torch.__version__, "quick": args.quick}
    rates = [asdict(row) | {"ratio": row.ratio} for row in rows]
    (args.out / "gpu.json").write_text(json.dumps(about | {"rows": rates}, indent=1), encoding="utf-8")
    print(f"\n{words}\nwritten to {args.out / 'gpu.md'} and {args.out / 'gpu.json'}")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="in pixels")
    parser.add_argument("--stages", choices=["mask", "image"], nargs="+", default=["image"])
    parser.add_argument("--what", choices=WHAT, nargs="+", help="measurements; by default all")
    parser.add_argument("--ways", nargs="+", help='such as bf16 or "fp32, compiled"; by default all')
    parser.add_argument("--minutes", type=float, default=9, help="after which nothing more is begun")
    parser.add_argument("--seconds", type=float, default=2, help="that each rate is measured for")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for gpu.json and gpu.md")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; its numbers mean nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        if args.quick:
            args.sizes, args.seconds, args.backend, args.out = [32], 0.02, "eager", Path(folder)
        report(measure(device, Path(folder), args), device, args)


if __name__ == "__main__":
    run_benchmark(main)

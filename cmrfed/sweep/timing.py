"""How long a point will take on this machine, from a few steps of each kind that are timed when it is asked."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from cmrfed.config.experiment import Experiment
from cmrfed.core.artifacts import digest_json
from cmrfed.core.device import resolve, synchronize
from cmrfed.core.precision import arithmetic, autocast
from cmrfed.core.settings.digests import digested
from cmrfed.data.labels import Label
from cmrfed.evaluation.features.phantom_cnn import NAME, Recipe, cached, made_up_step
from cmrfed.evaluation.utility.segmenter import build_segmenter
from cmrfed.federation.server.run import StageSpec
from cmrfed.generators.autoencoder import autoencoder_loss, build_autoencoder
from cmrfed.generators.condition import Condition
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import AutoencoderConfig, GeneratorConfig
from cmrfed.generators.stages import DRAWING, STAGES, StageName, drawn_by
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.training import stage_specs
from cmrfed.segmentation.settings import SegmenterConfig
from cmrfed.training.batches import stage_inputs
from cmrfed.training.rehearsal import made_up_slices

REPEATS = 2
"""Timed steps of each kind, after one that is not; their median counts."""
DRAWN = 16
"""Slices of the draw that is timed."""
COVERS = (
    "Times are estimates for this machine as it is now, from a few steps of each kind: training, drawing and "
    "segmenters, without start-ups, reading, and the rest of the evaluation."
)


class Clock:
    """Seconds of one step of each kind; each kind is timed once."""

    def __init__(self, threads: int, device: str = "auto") -> None:
        self.threads, self.device = threads, resolve(device)
        self._known: dict[str, float] = {}

    def _timed(self, key: object, make: Callable[[], Callable[[], object]]) -> float:
        name = digest_json(key)
        if name not in self._known:
            torch.set_num_threads(self.threads)
            step = make()
            self._known[name] = statistics.median([_seconds(step, self.device) for _ in range(1 + REPEATS)][1:])
        return self._known[name]

    def training_step(self, config: GeneratorConfig, batch: int, precision: str) -> float:
        """One optimizer step of a generator on ``batch`` slices, in seconds."""

        def make() -> Callable[[], None]:
            generator = _generator(config).to(self.device)
            optimizer = torch.optim.AdamW(generator.network.parameters(), fused=True)
            raw, cond = _slices(config, batch)
            raw, cond, rng = raw.to(self.device), cond.to(self.device), torch.Generator()
            dtype = arithmetic(precision, self.device.type)  # type: ignore[arg-type]

            def step() -> None:
                optimizer.zero_grad(set_to_none=True)
                with autocast(self.device.type, dtype):
                    loss = generator.loss(raw, cond, rng).mean()
                loss.backward()
                optimizer.step()

            return step

        return self._timed(["train", _plain(config), batch, precision], make)

    def drawing(self, config: GeneratorConfig, precision: str) -> float:
        """Drawing one slice of a batch with the configured sampler, in seconds."""

        def make() -> Callable[[], object]:
            generator = _generator(config).to(self.device).eval()
            _, cond = _slices(config, DRAWN)
            dtype = arithmetic(precision, self.device.type)  # type: ignore[arg-type]
            return lambda: generator.sample(cond, range(DRAWN), precision=dtype)

        return self._timed(["draw", digested(config), precision], make) / DRAWN

    def autoencoder_step(self, config: AutoencoderConfig, size_px: int, batch: int) -> float:
        """One optimizer step of an autoencoder on ``batch`` images, in seconds."""

        def make() -> Callable[[], None]:
            network = build_autoencoder(config).to(self.device)
            optimizer = torch.optim.AdamW(network.parameters(), fused=True)
            images, rng = torch.rand(batch, 1, size_px, size_px, device=self.device) * 2 - 1, torch.Generator()

            def step() -> None:
                optimizer.zero_grad(set_to_none=True)
                autoencoder_loss(network, images, rng, 1e-4).backward()
                optimizer.step()

            return step

        return self._timed(["autoencoder", digested(config), size_px, batch], make)

    def segmenter_step(self, config: SegmenterConfig, size_px: int) -> float:
        """One optimizer step of a segmenter, in seconds."""

        def make() -> Callable[[], None]:
            model = build_segmenter(config, 0).to(self.device)
            optimizer = torch.optim.AdamW(model.parameters())
            images = torch.rand(config.batch_size, 1, size_px, size_px, device=self.device) * 2 - 1
            labels = torch.randint(len(Label), (config.batch_size, size_px, size_px), device=self.device)
            dtype = arithmetic(config.precision, self.device.type)

            def step() -> None:
                optimizer.zero_grad(set_to_none=True)
                with autocast(self.device.type, dtype):
                    loss = F.cross_entropy(model(images).float(), labels)
                loss.backward()
                optimizer.step()

            return step

        return self._timed(["segmenter", digested(config), size_px], make)

    def extractor_step(self, recipe: Recipe) -> float:
        """One optimizer step of the feature extractor, which is always trained on the CPU, in seconds."""
        return self._timed(["extractor", digested(recipe)], lambda: made_up_step(recipe))


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


def _plain(config: GeneratorConfig) -> dict[str, object]:
    return digested(config, {"sampler"})


def _generator(config: GeneratorConfig) -> Generator:
    size = config.autoencoder
    return Generator(config, 0, dict(build_autoencoder(size).state_dict()) if size else None)


def _slices(config: GeneratorConfig, count: int) -> tuple[torch.Tensor, Condition]:
    """Made-up slices and conditions: how long a step takes depends on their number and size alone."""
    return stage_inputs(made_up_slices(count, config.size_px, torch.Generator()), drawn_by(config).name, style=0)


# --- a point ------------------------------------------------------------------------------------
def training_seconds(experiment: Experiment, clock: Clock) -> float:
    """Training at all sites, one after the other."""
    return sum(stage_seconds(experiment, clock).values())


def stage_seconds(experiment: Experiment, clock: Clock) -> dict[str, float]:
    """Training of each stage at all sites, one after the other."""
    specs = stage_specs(PrivacyPlan(experiment))
    return {spec.name: _stage(experiment, spec, clock) for spec in specs if spec.training.rounds}


def _stage(experiment: Experiment, spec: StageSpec, clock: Clock) -> float:
    training, private, size = spec.training, spec.privacy, spec.generator.autoencoder
    steps = experiment.sites * training.rounds * training.local_steps

    def step(slices: int) -> float:
        if STAGES[spec.name].trains_autoencoder and size:
            return clock.autoencoder_step(size, spec.generator.size_px, slices)
        if spec.generator.segmenter:
            network = spec.generator.segmenter
            config = SegmenterConfig(channels=network.channels, batch_size=max(slices, 2), precision=training.precision)
            return clock.segmenter_step(config, spec.generator.size_px)
        return clock.training_step(spec.generator, slices, training.precision)

    if private is None:
        return steps * step(training.batch_size)
    one = step(private.noise_multiplicity)  # one patient's gradient
    seconds = steps * private.sampling_rate * private.declared_patients * one
    if private.subspace:  # gradients of simulated patients, anew in every round, once for all sites of a process
        seconds += training.rounds * private.subspace.patients * step(private.subspace.draws)
    return seconds


def public_seconds(experiment: Experiment, stage: StageName, clock: Clock) -> float:
    """Pre-training of one stage on the phantom, or of the autoencoder ("autoencoder")."""
    if experiment.pretrain is None:
        return 0.0
    codec, size = experiment.pretrain.autoencoder, experiment.image.generator.autoencoder
    if STAGES[stage].trains_autoencoder:
        step = clock.autoencoder_step(size, experiment.data.size_px, codec.batch_size) if codec and size else 0.0
        return codec.steps * step if codec else 0.0
    training = experiment.pretrain.of(stage)
    if training is None:
        return 0.0
    step = clock.training_step(experiment.generator(stage), training.batch_size, training.precision)
    return training.rounds * training.local_steps * step


def public_segmenter_seconds(experiment: Experiment, clock: Clock) -> float:
    """Public training of the segmenter that then learns at the sites."""
    if experiment.segmenter is None:
        return 0.0
    config = experiment.segmenter.public
    return config.steps * clock.segmenter_step(config, experiment.data.size_px)


def drawing_seconds(experiment: Experiment, clock: Clock) -> float:
    """Drawing the synthetic set: masks and images of all slices of ED and ES."""
    config = experiment.synthesis
    slices = config.patients * sum(config.slices)  # two phases of the mean depth
    return slices * sum(clock.drawing(experiment.generator(stage), config.precision) for stage in DRAWING)


def segmenter_seconds(experiment: Experiment, steps: int, clock: Clock) -> float:
    """``steps`` steps of segmenters."""
    return steps * clock.segmenter_step(experiment.evaluation.segmenter, experiment.data.size_px) if steps else 0.0


def extractor_seconds(experiment: Experiment, clock: Clock) -> float:
    """Training of the feature extractor, where the user's cache does not have it yet."""
    config, recipe = experiment.evaluation.features, Recipe()
    if config.extractor != NAME or cached(Path(config.cache) if config.cache else None).exists():
        return 0.0
    return recipe.steps * clock.extractor_step(recipe)

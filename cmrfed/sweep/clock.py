"""Seconds of one step of each kind on this machine: the code of a run itself, on made-up data, for a few steps."""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cmrfed.core.artifacts import digest_json
from cmrfed.core.device import HOST, resolve, synchronize
from cmrfed.core.precision import arithmetic, autocast
from cmrfed.core.settings.digests import digested
from cmrfed.data.cohort import Cohort, PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.labels import Label, Phase
from cmrfed.evaluation.features.phantom_cnn import Recipe, made_up_step
from cmrfed.generators.autoencoder import autoencoder_loss, build_autoencoder
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import AutoencoderConfig, GeneratorConfig
from cmrfed.generators.stages import StageName, drawn_by
from cmrfed.generators.trainable import make_trainable
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.settings import PrivateTraining, Subspace
from cmrfed.segmentation.segmenter import train_segmenter
from cmrfed.segmentation.settings import SegmenterConfig
from cmrfed.training.batches import stage_inputs
from cmrfed.training.loop import LocalTrainer
from cmrfed.training.private import PrivateTrainer
from cmrfed.training.rehearsal import made_up_slices
from cmrfed.training.settings import AutoencoderTraining, TrainingConfig

REPEATS, MOST_REPEATS, LONG_ENOUGH_S = 2, 5, 1.0
"""Timed steps of each kind, after one that is not: at least, and at most where they take less than so long together.
Their median counts."""
DRAWN = 16
"""Slices of the draw that is timed."""
TOGETHER = 4
"""Steps of a segmenter that are timed together: it is built anew each time."""
PATIENTS, DEPTH = 4, 4
"""Made-up patients, and the slices of each in each phase."""
_NOBODY = 1e-9
"""Sampling rate at which nobody is in a step."""


class Clock:
    """Seconds of one step of each kind; each kind is timed once.

    Args:
        threads: Of the CPU.
        device: As a recipe names it.
    """

    def __init__(self, threads: int, device: str = "auto") -> None:
        self.threads, self.device = threads, resolve(device)
        self._known: dict[str, float] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="cmrfed-")

    def _timed(self, key: object, make: Callable[[], Callable[[], object]]) -> float:
        name = digest_json(key)
        if name not in self._known:
            torch.set_num_threads(self.threads)
            step = make()
            _seconds(step, self.device)
            found: list[float] = []
            while len(found) < REPEATS or (len(found) < MOST_REPEATS and sum(found) < LONG_ENOUGH_S):
                found.append(_seconds(step, self.device))
            self._known[name] = statistics.median(found)
        return self._known[name]

    # --- training -------------------------------------------------------------------------------
    def training_step(self, stage: StageName, config: GeneratorConfig, training: TrainingConfig) -> float:
        """One step of a stage at a site: reading, augmentation, gradient and optimizer, in seconds."""

        def make() -> Callable[[], object]:
            trainer = LocalTrainer(
                self._trainable(stage, config), self._cohort(config.size_px), stage, 0, training, seed=0
            )
            return partial(trainer.run, 0, 1)

        return self._timed(["train", stage, _plain(config), _work(training), training.batch_size], make)

    def private_step(
        self, stage: StageName, config: GeneratorConfig, training: TrainingConfig, privacy: PrivateTraining
    ) -> tuple[float, float]:
        """One private step in which nobody is, in seconds, and what each record in it adds."""

        def make(rate: float) -> Callable[[], object]:
            event = PrivacyEvent(
                noise_multiplier=privacy.noise_multiplier, sampling_rate=rate, steps=1 + MOST_REPEATS,
                run="timing", stage=stage, round=1, digest="", unit=privacy.unit,
            )  # fmt: skip
            trainer = PrivateTrainer(
                self._trainable(stage, config), self._cohort(config.size_px), stage, 0, training, privacy, event,
                _any_directions,
            )  # fmt: skip
            return partial(trainer.run, 0, 1)

        kind = [stage, _plain(config), _work(training), privacy.unit, privacy.noise_multiplicity, privacy.trained]
        kind.append(privacy.subspace.rank if privacy.subspace else 0)
        nobody, everybody = (self._timed(["private", rate, *kind], partial(make, rate)) for rate in (_NOBODY, 1.0))
        records = PATIENTS * (1 if privacy.unit == "patient" else 2 * DEPTH)
        return nobody, max(everybody - nobody, 0.0) / records

    def autoencoder_step(self, config: AutoencoderConfig, training: AutoencoderTraining, size_px: int) -> float:
        """One step of public training of an autoencoder, in seconds."""
        batch, dtype = training.batch_size, arithmetic(training.precision, self.device.type)

        def make() -> Callable[[], None]:
            network = build_autoencoder(config).to(self.device)
            optimizer = torch.optim.AdamW(network.parameters(), fused=True)
            images, rng = torch.rand(batch, 1, size_px, size_px, device=self.device) * 2 - 1, torch.Generator()

            def step() -> None:
                optimizer.zero_grad(set_to_none=True)
                with autocast(self.device.type, dtype):
                    loss = autoencoder_loss(network, images, rng, training.kl_weight)
                loss.backward()
                optimizer.step()

            return step

        return self._timed(["autoencoder", digested(config), size_px, batch, training.precision], make)

    # --- drawing and judging --------------------------------------------------------------------
    def drawing(self, config: GeneratorConfig, precision: str) -> float:
        """Drawing one slice of a batch with the configured sampler, in seconds."""

        def make() -> Callable[[], object]:
            generator = _generator(config).to(self.device).eval()
            batch = made_up_slices(DRAWN, config.size_px, torch.Generator())
            _, cond = stage_inputs(batch, drawn_by(config).name, style=0)
            dtype = arithmetic(precision, self.device.type)  # type: ignore[arg-type]
            return lambda: generator.sample(cond, range(DRAWN), precision=dtype)

        return self._timed(["draw", digested(config), precision], make) / DRAWN

    def segmenter_step(self, config: SegmenterConfig, size_px: int) -> float:
        """One step of a segmenter, in seconds."""

        def make() -> Callable[[], object]:
            some = config.model_copy(update={"steps": TOGETHER})
            batch = made_up_slices(2 * config.batch_size, size_px, torch.Generator())
            return lambda: train_segmenter(batch.image, batch.mask, some, 0, device=self.device)

        return self._timed(["segmenter", digested(config), size_px], make) / TOGETHER

    def extractor_step(self, recipe: Recipe) -> float:
        """One optimizer step of the feature extractor, which is always trained on the CPU, in seconds."""
        return self._timed(["extractor", digested(recipe)], lambda: made_up_step(recipe))

    # --- made up --------------------------------------------------------------------------------
    def _trainable(self, stage: StageName, config: GeneratorConfig) -> Generator:
        size = config.autoencoder
        made = make_trainable(stage, config, 0, dict(build_autoencoder(size).state_dict()) if size else None)
        return made.to(self.device)  # type: ignore[return-value]

    def _cohort(self, size_px: int) -> Cohort:
        """Made-up patients: how long a step takes depends on their size alone."""
        folder, random = Path(self._folder.name) / str(size_px), np.random.default_rng(0)
        shape = (DEPTH, size_px, size_px)

        def volume(name: str, phase: Phase) -> Volume:
            image = random.uniform(-1, 1, shape).astype(np.float32)
            return Volume(name, phase, image, random.integers(len(Label), size=shape, dtype=np.uint8), None)

        def patient(number: int) -> PreparedPatient:
            name = f"made-up-{number}"
            return PreparedPatient(PatientRecord(patient_id=name), tuple(volume(name, phase) for phase in Phase))

        if folder.is_dir():
            return Cohort.open(folder)
        made = map(patient, range(PATIENTS))
        return write_cohort(
            folder, made, name="made up", source="timing", size_px=size_px, labels=(1, 2, 3), preparation={}
        )


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


def _plain(config: GeneratorConfig) -> dict[str, object]:
    return digested(config, {"sampler"})


def _work(training: TrainingConfig) -> list[object]:
    """What of a training decides how long a step of it takes, beside its batch."""
    augment = training.augment
    return [training.precision, training.optimizer, augment.model_dump() if augment else None]


def _generator(config: GeneratorConfig) -> Generator:
    size = config.autoencoder
    return Generator(config, 0, dict(build_autoencoder(size).state_dict()) if size else None)


def _any_directions(generator: object, stage: StageName, config: Subspace, training: TrainingConfig) -> torch.Tensor:
    """Directions of the right shape: finding them is timed as the gradients that it takes."""
    network: torch.nn.Module = generator.network  # type: ignore[attr-defined]
    size = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return torch.randn(config.rank, size, device=HOST) / size**0.5

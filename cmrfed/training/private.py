"""Private training of one generator on one site's cohort: the steps that one reservation of the ledger has paid for."""

import fnmatch
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from cmrfed.core.errors import ConfigError, DataError
from cmrfed.core.precision import granted
from cmrfed.data.cohort import Cohort
from cmrfed.data.draws import NO_SLICE, SliceBatch
from cmrfed.generators.stages import StageName
from cmrfed.generators.trainable import Trainable
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig, PrivateSGD, StepNotes
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.settings import PrivateTraining, Subspace
from cmrfed.training.batches import training_inputs
from cmrfed.training.loop import LocalResult, check_size, make_optimizer
from cmrfed.training.reader import SliceReader
from cmrfed.training.rehearsal import made_up_slices, needed_bytes
from cmrfed.training.settings import TrainingConfig
from cmrfed.training.subspace import Coordinates, FindDirections, public_directions

_log = logging.getLogger("cmrfed")


def train_only(network: nn.Module, patterns: tuple[str, ...]) -> list[nn.Parameter]:
    """Let the parameters whose names match a pattern require gradients, and no others; return them.

    Raises:
        ConfigError: A pattern matches nothing.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError("no parameter has such a name", got=pattern, expected=f"such as {names[0]}, or *.bias")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    return [p for p in network.parameters() if p.requires_grad]


class PrivateTrainer:
    """Trains on one cohort with DP-SGD over its patients (or slices).

    Every draw (who is sampled, which slices, times and noise of the generator, noise of the mechanism) comes from the
    operating system's entropy: nobody who knows the recipe can repeat it. So two runs end in different weights.

    Args:
        generator: Trained in place.
        cohort: The site's patients.
        stage: What is trained.
        style: Number of the site's style.
        config: How to train; ``batch_size`` and ``max_grad_norm`` have no part in it.
        privacy: What was asked for.
        event: What was paid for: noise multiplier, sampling rate and number of steps.
        find_directions: Finds the public directions, where ``privacy`` has a subspace.

    Raises:
        DataError: The cohort is empty, of another size, or has no patient with masks.
        PrivacyError: The network cannot be trained privately.
    """

    def __init__(
        self,
        generator: Trainable,
        cohort: Cohort,
        stage: StageName,
        style: int,
        config: TrainingConfig,
        privacy: PrivateTraining,
        event: PrivacyEvent,
        find_directions: FindDirections = public_directions,
    ) -> None:
        check_size(generator, cohort)
        _open_arrays(cohort)
        self.generator, self.cohort, self.stage, self.style = generator, cohort, stage, style
        self.config, self.draws = config, privacy.noise_multiplicity
        self.records, self.alone = _records(cohort, event), event.unit == "slice"
        trained = train_only(generator.network, privacy.trained)
        self.coordinates = self._coordinates(privacy.subspace, find_directions)
        self.optimizer = make_optimizer(config, trained if self.coordinates is None else [self.coordinates.z])
        mechanism = MechanismConfig(
            clip_norm=privacy.clip_norm,
            declared_patients=privacy.declared_patients,
            precision=granted(config.precision, generator.device.type),
        )
        module = self.coordinates or generator.network
        self.steps = PrivateSGD(module, self.optimizer, event, len(self.records), mechanism)
        self.reader = SliceReader(cohort, generator.device, keep=False)
        self._random = torch.Generator().manual_seed(secrets.randbits(63))
        self._rows = np.random.default_rng(secrets.randbits(128))

    def _coordinates(self, subspace: Subspace | None, find_directions: FindDirections) -> Coordinates | None:
        if subspace is None:
            return None
        directions = find_directions(self.generator, self.stage, subspace, self.config)
        return Coordinates(self.generator.network, directions)

    @property
    def keeps_optimizer_state(self) -> bool:
        """Not where directions are found anew: the state of the round before belongs to others."""
        return self.coordinates is None

    def needed_bytes(self) -> int:
        """Estimate of the memory of a step; no patient is looked at, and little memory is taken."""
        return needed_bytes(self.generator.network, lambda: self._losses_of(self._made_up(1)), self.draws)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.generator.device

    def rehearse(self) -> float:
        """Put K made-up slices through a step, up to the noise; seconds of one record. No patient is looked at."""

        def losses(_: int) -> Tensor:
            return self._losses_of(self._made_up(self.draws))

        self.generator.network.train()
        return self.steps.rehearse(partial(self._record_losses(losses), 0))

    def _made_up(self, count: int) -> SliceBatch:
        return made_up_slices(count, self.generator.config.size_px, self._random)

    def run(self, first_step: int, steps: int) -> LocalResult:
        """Take ``steps`` steps; the number of the first one sets the learning rate.

        The losses and the number of items depend on the patients without noise: they stay at the site.
        """
        start = time.monotonic()
        self.generator.network.train()
        rates = [self.config.rate_at(step) for step in range(first_step, first_step + steps)]
        notes = [self._step(rate) for rate in rates]
        losses = [note.mean_loss for note in notes if note.mean_loss is not None]
        items, seconds = sum(note.sampled for note in notes) * self.draws, time.monotonic() - start
        return LocalResult(losses, items, seconds, self.steps.record_seconds)

    def _step(self, rate: float) -> StepNotes:
        notes = self.steps.step(self._record_losses(self._losses), learning_rate=rate)
        if self.coordinates is not None:
            self.coordinates.move()
        return notes

    def _record_losses(self, losses: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
        """Losses as the step needs them: by the weights, or by the coordinates along public directions."""
        return losses if self.coordinates is None else partial(self.coordinates.losses, losses)

    def _losses(self, record: int) -> Tensor:
        """Losses of K draws of one record, (K,)."""
        return self._losses_of(self.reader.read(self._rows.choice(self.records[record], size=self.draws)))

    def _losses_of(self, batch: SliceBatch) -> Tensor:
        if self.alone:  # a neighbour is another record: seen from here, it would be in two gradients
            nothing = torch.full_like(batch.mask, NO_SLICE)
            batch = replace(batch, basal=nothing, ed=nothing)
        raw, cond = training_inputs(
            batch, self.stage, self.style, self.config.augment, self._random, self.generator.device
        )
        return self.generator.loss(raw, cond, self._random)


def _open_arrays(cohort: Cohort) -> None:
    """Open the files of a cohort, which are opened when they are first used: not only where somebody is sampled."""
    shape = (cohort.header.slices, cohort.size_px, cohort.size_px)
    found = {"images": cohort.images.shape, "masks": cohort.masks.shape, "slices": cohort.slices.shape}
    wrong = [name for name, got in found.items() if got != (shape if name != "slices" else shape[:1])]
    if wrong:
        raise DataError(f"{cohort.root}/{wrong[0]}.npy is damaged", got=found[wrong[0]], do="prepare the cohort again")


def _records(cohort: Cohort, event: PrivacyEvent) -> list[np.ndarray]:
    """Rows of each record: of each patient, or of each slice.

    Patients without masks are left out. A refusal would tell the server that there is one.
    """
    pairs = zip(cohort.patients, cohort.rows_of, strict=True)
    by_patient = [np.asarray(rows) for patient, rows in pairs if patient.has_mask]
    if not by_patient:
        raise DataError(f"cohort {cohort.name} has patients without masks alone", do="annotate them")
    if len(by_patient) < len(cohort):
        _log.warning("%d patients without masks take no part", len(cohort) - len(by_patient))
    return by_patient if event.unit == "patient" else [rows[i : i + 1] for rows in by_patient for i in range(len(rows))]

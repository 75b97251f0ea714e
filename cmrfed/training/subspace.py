"""Private training in a public subspace: directions of simulated patients, and coordinates that real ones move.

With U (k, d) orthonormal, the weights are w = w0 + z U. A patient's gradient by z is U times its gradient by w: k
numbers, which are clipped and released with noise instead of d. U comes from public data and from weights that were
released before, so it costs no privacy (Zhou et al., arXiv 2007.03813; Yu et al., arXiv 2102.12677).
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cmrfed.core.artifacts import digest_json, digest_state
from cmrfed.core.device import to_device, to_host
from cmrfed.core.precision import arithmetic, autocast, full_precision
from cmrfed.core.rng import fold, numpy_generator, torch_generator
from cmrfed.data.cohort import Cohort
from cmrfed.data.public import public_patients
from cmrfed.data.settings import PublicPatients
from cmrfed.generators.condition import UNKNOWN
from cmrfed.generators.stages import StageName
from cmrfed.generators.trainable import Trainable
from cmrfed.privacy.dpsgd.clipping import StateGuard, check_module, checked_gradient, record_gradient
from cmrfed.privacy.settings import Subspace
from cmrfed.training.batches import training_inputs
from cmrfed.training.reader import SliceReader
from cmrfed.training.settings import TrainingConfig


class Coordinates(nn.Module):
    """z: where the weights stand along the public directions, from 0.

    Args:
        network: Its parameters that require a gradient are the w that move.
        directions: U, float32 (k, d), orthonormal rows.

    Raises:
        PrivacyError: The network cannot be trained privately.
    """

    def __init__(self, network: nn.Module, directions: Tensor) -> None:
        super().__init__()
        check_module(network)
        self.z = nn.Parameter(torch.zeros(len(directions), device=directions.device))
        self._network = (network,)  # in a tuple, so that its parameters are not this module's
        self._directions = directions
        self._moved = [p for p in network.parameters() if p.requires_grad]
        self._start = [p.detach().clone() for p in self._moved]
        self._guard = StateGuard(network)

    def losses(self, losses_of: Callable[[int], Tensor], record: int) -> Tensor:
        """The mean of a record's losses, as a function of z: its gradient by z is U times that by the weights."""
        losses = losses_of(record)
        gradient, finite = checked_gradient(losses, self._moved)
        self._guard.check()
        mean = torch.where(finite, losses.detach().float().mean(), torch.nan)
        with full_precision(self.z.device.type):
            slope = self._directions @ torch.cat([g.flatten() for g in gradient])
            slope = torch.where(finite, slope, torch.nan)  # such a record contributes nothing
            return mean + ((self.z - self.z.detach()) * slope).sum()

    @torch.no_grad()
    def move(self) -> None:
        """Put the weights where z says."""
        shift = self.z @ self._directions
        parts = shift.split([p.numel() for p in self._moved])
        for parameter, start, part in zip(self._moved, self._start, parts, strict=True):
            parameter.copy_(start + part.view_as(start))
        self._guard = StateGuard(self._network[0])


class FindDirections(Protocol):
    """Finds the public directions; see `public_directions`."""

    def __call__(self, generator: Trainable, stage: StageName, config: Subspace, training: TrainingConfig) -> Tensor:
        """float32 (k, d)."""


def public_directions(generator: Trainable, stage: StageName, config: Subspace, training: TrainingConfig) -> Tensor:
    """The directions in which gradients of simulated patients differ most from nothing, at the generator's weights.

    Sites that hold the same weights find the same ones. The simulated patients are kept in the user's cache.

    Args:
        generator: Its parameters that require a gradient are looked at.
        stage: What is trained.
        config: How many directions, of how many patients.
        training: Augmentation, as in training.

    Returns:
        float32 (k, d) with orthonormal rows, the strongest first; k is less than asked for where fewer are distinct.
    """
    cohort = _cohort(config, generator.config.size_px)
    return _strongest(_gradients(generator, cohort, stage, config, training), config.rank)


class LastDirections:
    """`public_directions` that keeps what it found last: simulated sites ask for the same one after another."""

    def __init__(self) -> None:
        self._found: tuple[str, Tensor] | None = None

    def __call__(self, generator: Trainable, stage: StageName, config: Subspace, training: TrainingConfig) -> Tensor:
        """As `public_directions`; the same tensor where weights, names and settings are the same."""
        names = [n for n, p in generator.network.named_parameters() if p.requires_grad]
        asked = [digest_state(generator.network.state_dict()), names, stage, config.model_dump(), training.model_dump()]
        key = digest_json(asked)
        if self._found is None or self._found[0] != key:
            self._found = None  # no two sets of directions in memory
            self._found = key, public_directions(generator, stage, config, training)
        return self._found[1]


def _cohort(config: Subspace, size_px: int) -> Cohort:
    public = PublicPatients(patients=config.patients, scanners=config.scanners, seed=config.seed)
    return public_patients(public, size_px, fold(config.seed, "public directions"))


def _gradients(
    generator: Trainable, cohort: Cohort, stage: StageName, config: Subspace, training: TrainingConfig
) -> Tensor:
    """One gradient of each simulated patient, (patients, d)."""
    rng, rows = torch_generator(config.seed, "directions"), numpy_generator(config.seed, "direction rows")
    device = generator.device
    moved = [p for p in generator.network.parameters() if p.requires_grad]
    dtype, out = arithmetic(training.precision, device.type), []
    reader = SliceReader(cohort, device)
    for own in cohort.rows_of:
        batch = reader.read(rows.choice(np.asarray(own), size=config.draws))
        raw, cond = training_inputs(batch, stage, UNKNOWN, training.augment, rng, device)
        with autocast(device.type, dtype):
            losses = generator.loss(raw, cond, rng)
        gradient = record_gradient(losses, moved)
        if gradient is not None:
            out.append(torch.cat([g.flatten() for g in gradient]))
    return torch.stack(out)


def _strongest(gradients: Tensor, rank: int) -> Tensor:
    """Right singular vectors (k, d) of the largest singular values, by way of the small Gram matrix."""
    values, vectors = torch.linalg.eigh(to_host(gradients @ gradients.T).double())
    kept = [i for i in range(len(values) - 1, -1, -1) if values[i] > 1e-6 * values[-1]][:rank]
    found = to_device((vectors[:, kept] / values[kept].sqrt()).float(), gradients.device).T @ gradients
    return torch.linalg.qr(found.T)[0].T.contiguous()  # orthonormal to rounding, however small the last ones are

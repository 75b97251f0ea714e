"""Training of one generator on one site's cohort, a run of steps at a time.

Every draw is a function of (seed, stage, style, step), so a run of steps that is repeated gives the same weights.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cmrfed.core.device import to_device, values
from cmrfed.core.errors import DataError, SiteRefused
from cmrfed.core.precision import arithmetic, autocast
from cmrfed.core.rng import numpy_generator, torch_generator
from cmrfed.data.cohort import Cohort
from cmrfed.data.draws import SliceBatch, draw_rows
from cmrfed.generators.condition import Condition
from cmrfed.generators.stages import StageName
from cmrfed.generators.trainable import Trainable
from cmrfed.training.batches import training_inputs
from cmrfed.training.reader import SliceReader
from cmrfed.training.rehearsal import made_up_slices, needed_bytes
from cmrfed.training.settings import AugmentConfig, TrainingConfig


def make_optimizer(config: TrainingConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), or plain SGD."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


@dataclass(frozen=True)
class LocalResult:
    """What a run of steps did: the mean loss of each step that had a batch, slices seen, and seconds."""

    losses: list[float]
    items: int
    seconds: float
    record_seconds: float = 0.0
    """Of private training: the part that depends on who was sampled."""


class Trainer(Protocol):
    """What trains at a site, privately or not."""

    optimizer: torch.optim.Optimizer

    @property
    def keeps_optimizer_state(self) -> bool:
        """Whether the optimizer's state of the round before holds in the next."""

    def needed_bytes(self) -> int:
        """Estimate of the memory of a step; no patient is looked at, and little memory is taken."""

    def run(self, first_step: int, steps: int) -> LocalResult:
        """Take ``steps`` steps, the first of which is number ``first_step`` of the stage."""


class LocalTrainer:
    """Trains on one cohort without privacy.

    Args:
        generator: Trained in place.
        cohort: The site's patients.
        stage: What is trained.
        style: Number of the site's style.
        config: How to train.
        seed: Of the experiment.

    Raises:
        DataError: The cohort is empty, of another size, or lacks masks.
    """

    def __init__(
        self,
        generator: Trainable,
        cohort: Cohort,
        stage: StageName,
        style: int,
        config: TrainingConfig,
        seed: int,
    ) -> None:
        check_fit(generator, cohort)
        self.generator, self.cohort, self.stage, self.style = generator, cohort, stage, style
        self.config, self.seed = config, seed
        self.reader = SliceReader(cohort, generator.device)
        self.parameters = [p for p in generator.network.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(config, self.parameters)

    keeps_optimizer_state = True

    def run(
        self,
        first_step: int,
        steps: int,
        *,
        anchor: Mapping[str, Tensor] | None = None,
        proximal_mu: float = 0.0,
        longest_s: float = math.inf,
    ) -> LocalResult:
        """Take ``steps`` steps, the first of which is number ``first_step`` of the stage.

        Args:
            first_step: Sets the draws and the learning rate.
            steps: How many.
            anchor: Global weights that FedProx holds on to (arXiv 1812.06127), by name in ``generator.network``.
            proximal_mu: Weight of ½ ‖w - anchor‖².
            longest_s: Seconds after which no further step is begun.

        Raises:
            SiteRefused: They are up.
        """
        start = time.monotonic()
        hold = (
            [to_device(anchor[n], p.device) for n, p in self.generator.network.named_parameters()]
            if anchor and proximal_mu
            else None
        )
        self.generator.network.train()
        losses: list[Tensor] = []
        numbers = range(first_step, first_step + steps)
        for step, batch in zip(numbers, self.reader.batches(map(self._rows, numbers)), strict=True):
            if time.monotonic() - start > longest_s:
                raise SiteRefused(
                    "the round takes longer than the site's policy allows",
                    got=f"{step - first_step} of {steps} steps",
                    expected=f"limits.round_seconds: at most {longest_s:g}",
                    do="ask for fewer local steps",
                )
            losses.append(self._step(step, batch, hold, proximal_mu))
        return LocalResult(values(losses), steps * self.config.batch_size, time.monotonic() - start)

    def needed_bytes(self) -> int:
        """Estimate of the memory of a step; no patient is looked at, and little memory is taken."""
        rng = torch.Generator().manual_seed(0)

        def losses() -> Tensor:
            batch = made_up_slices(1, self.generator.config.size_px, rng)
            return self.generator.loss(*self._inputs(batch, None, rng), rng)

        return needed_bytes(self.generator.network, losses, self.config.batch_size)

    def _inputs(
        self, batch: SliceBatch, augmentation: AugmentConfig | None, rng: torch.Generator
    ) -> tuple[Tensor, Condition]:
        return training_inputs(batch, self.stage, self.style, augmentation, rng, self.generator.device)

    def _rows(self, step: int) -> np.ndarray:
        draws = numpy_generator(self.seed, "rows", self.stage, self.style, step)
        return draw_rows(self.cohort, self.config.batch_size, 1, draws)

    def _step(self, step: int, batch: SliceBatch, hold: list[Tensor] | None, proximal_mu: float) -> Tensor:
        """One step; its loss, (), which stays on the device: nothing here waits for it."""
        rng = torch_generator(self.seed, "step", self.stage, self.style, step)
        raw, cond = self._inputs(batch, self.config.augment, rng)
        self.optimizer.param_groups[0]["lr"] = self.config.rate_at(step)
        self.optimizer.zero_grad(set_to_none=True)
        device = self.generator.device.type
        dtype = arithmetic(self.config.precision, device)
        with autocast(device, dtype):
            loss = self.generator.loss(raw, cond, rng).mean()
        loss.backward()
        if hold is not None:
            for parameter, centre in zip(self.parameters, hold, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - centre, alpha=proximal_mu)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimizer.step()
        return loss.detach()


# --- the optimizer's state ----------------------------------------------------------------------
def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts, flat, ready for safetensors."""
    states = optimizer.state_dict()["state"]
    flat = {f"{i}.{key}": value for i, state in states.items() for key, value in state.items()}
    return {name: value for name, value in flat.items() if value is not None}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave."""
    nested: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        number, key = name.split(".", 1)
        nested.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": nested, "param_groups": optimizer.state_dict()["param_groups"]})


# --- what fits ----------------------------------------------------------------------------------
def check_fit(generator: Trainable, cohort: Cohort) -> None:
    """Raise a DataError if the cohort is empty, of another size, or lacks masks."""
    check_size(generator, cohort)
    refuse_unlabelled(cohort, f"cohort {cohort.name}")


def check_size(generator: Trainable, cohort: Cohort) -> None:
    """Raise a DataError if the cohort is empty or of another size."""
    if not len(cohort):
        raise DataError(f"cohort {cohort.name} is empty", expected="at least one patient", do="add patients")
    if cohort.size_px != generator.config.size_px:
        raise DataError(
            f"cohort {cohort.name} is of another size than the generator",
            got=f"{cohort.size_px} px",
            expected=f"{generator.config.size_px} px",
            do="prepare the cohort with the size of the recipe",
        )


def refuse_unlabelled(cohort: Cohort, who: str) -> None:
    """Raise a DataError that names ``who`` if a patient has no mask."""
    bare = [p.patient_id for p in cohort.patients if not p.has_mask]
    if bare:
        raise DataError(
            f"{who} has patients without masks",
            got=f"{len(bare)} of {len(cohort)}, such as {bare[0]}",
            expected="a mask for every patient: both stages learn from masks",
            do="annotate them, or leave them out of the cohort",
        )

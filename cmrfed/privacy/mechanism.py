"""DP-SGD (arXiv 1607.00133) whose record is a patient: clip each one's gradient, sum, add noise, divide, step.

One ordinary backward per sampled patient puts that patient's gradient into ``grad_sample`` as a batch of one; Opacus'
`DPOptimizer` clips, sums, adds noise and steps. Nothing wraps the module, so any architecture works in which one item
does not see another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from opacus.optimizers import DPOptimizer
from pydantic import Field
from torch import Tensor, nn

from cmrfed.config import Section
from cmrfed.errors import PrivacyError
from cmrfed.privacy.clipping import BufferGuard, check_module, record_gradient
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.noise import open_noise_source
from cmrfed.privacy.sampling import poisson_sample


class MechanismConfig(Section):
    """What a step needs beside noise and sampling rate, which are in the event that pays for it."""

    clip_norm: float = Field(1.0, gt=0)
    """C: the largest norm of one patient's gradient."""
    declared_patients: int = Field(ge=1)
    """N as it is known in public. Sums are divided by q · N, never by the number in the batch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of forward and backward passes; gradients, clipping and noise are fp32 in both."""


@dataclass(frozen=True)
class StepNotes:
    """What happened in a step. It depends on the patients without noise: it stays at the site unless policy says so."""

    sampled: int
    clipped: int
    not_finite: int
    mean_loss: float | None


class PrivateStep(Protocol):
    """Takes one step on one site's records, privately."""

    def step(self, losses_of: Callable[[int], Tensor], *, learning_rate: float | None = None) -> StepNotes:
        """Sample records and step; see `PrivateSGD.step`."""
        ...


class PrivateSGD:
    """The steps that one event has paid for.

    Args:
        module: Trained in place; parameters that require no gradient stay as they are.
        optimizer: Of exactly the module's trained parameters, such as AdamW; its moments see noised gradients only.
        event: Paid for in the ledger before: noise multiplier, sampling rate, and how many steps there are.
        records: Number of patients (or slices) at the site.
        config: Clipping bound, public denominator, precision.

    Raises:
        PrivacyError: The module keeps statistics of its input, the optimizer trains something else, or the event is
            one without privacy.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        event: PrivacyEvent,
        records: int,
        config: MechanismConfig,
    ) -> None:
        check_module(module)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        _check_optimizer(optimizer, self.parameters)
        if event.unit == "none" or not event.noise_multiplier:
            raise PrivacyError("the event has no noise", got=event.unit, do="train without this step, and say so")
        self.module, self.event, self.records, self.config = module, event, records, config
        self.steps_left = event.steps
        self.device = self.parameters[0].device
        noise = open_noise_source(self.device)
        self.noise_source = f"{noise.name}; each value the sum of four (arXiv 2107.10138)"
        self.optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=event.noise_multiplier,
            max_grad_norm=config.clip_norm,
            expected_batch_size=event.sampling_rate * config.declared_patients,
            generator=noise.generator,
            secure_mode=True,
        )

    def step(self, losses_of: Callable[[int], Tensor], *, learning_rate: float | None = None) -> StepNotes:
        """Sample records, sum their clipped gradients, add noise, and take one step.

        Args:
            losses_of: Record number → losses of its K draws (K,), or their mean; it must not look at other records.
            learning_rate: For this step; a function of its number alone.

        Raises:
            PrivacyError: All steps are taken, an earlier one failed, or the forward pass wrote to a buffer.
        """
        if not self.steps_left:
            raise PrivacyError(
                "no step that was paid for is left",
                got=f"{self.event.steps} steps, all taken or given up after an error",
                do="reserve another round",
            )
        left, self.steps_left = self.steps_left - 1, 0  # an error on the way leaves nothing that could go on
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] if learning_rate is None else learning_rate
        notes = self._accumulate(poisson_sample(self.records, self.event.sampling_rate), losses_of)
        self._release()
        self.steps_left = left
        return notes

    def _accumulate(self, sampled: list[int], losses_of: Callable[[int], Tensor]) -> StepNotes:
        """Sum the clipped gradients of the sampled records into ``summed_grad``."""
        guard = BufferGuard(self.module)
        self.optimizer.zero_grad(set_to_none=True)
        losses, clipped, missing = [], 0, 0
        for record in sampled:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                values = losses_of(record)
            gradient = record_gradient(values, self.parameters)
            if gradient is None:
                missing += 1
                continue
            losses.append(float(values.detach().float().mean()))
            clipped += int(torch.stack([g.norm() for g in gradient]).norm() > self.config.clip_norm)
            self._add(gradient)
        guard.check()
        return StepNotes(len(sampled), clipped, missing, sum(losses) / len(losses) if losses else None)

    def _add(self, gradient: list[Tensor]) -> None:
        """Clip one record's gradient to C and add it to the sum."""
        for parameter, part in zip(self.parameters, gradient, strict=True):
            parameter.grad_sample = part[None]  # type: ignore[attr-defined]
        self.optimizer.signal_skip_step(True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _release(self) -> None:
        """Add noise to the sum, divide by the public denominator, step; then forget the sum without noise."""
        for parameter in self.parameters:  # no further record: an empty batch is a normal one
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]
        self.optimizer.signal_skip_step(False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _check_optimizer(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter]) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    if held != {id(p) for p in trained}:
        raise PrivacyError(
            "the optimizer and the module train different parameters",
            got=f"{len(held)} in the optimizer, {len(trained)} trained in the module",
            expected="the same ones",
            do="make the optimizer from the module's parameters that require gradients",
        )

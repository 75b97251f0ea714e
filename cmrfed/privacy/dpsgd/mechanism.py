"""DP-SGD (arXiv 1607.00133) whose record is a patient: clip each one's gradient, sum, add noise, divide, step.

One ordinary backward per sampled patient puts that patient's gradient into ``grad_sample`` as a batch of one; Opacus'
`DPOptimizer` clips, sums, adds noise and steps. Nothing wraps the module, so any architecture works in which one item
does not see another.

Sums and noise are float64: rounding in float32 lets one patient move a sum of many by more than C (arXiv 2207.10635).
What happens after the noise (the cast to float32, the division, the optimizer, however its learning rate rounds) is a
function of the noised sum and of public numbers alone: post-processing, which costs no privacy.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers import optimizer as opacus_optimizer
from pydantic import Field
from torch import Tensor, nn

from cmrfed.core.device import synchronize, to_device, values
from cmrfed.core.errors import PrivacyError
from cmrfed.core.precision import arithmetic, autocast
from cmrfed.core.settings.config import Section
from cmrfed.privacy.dpsgd.clipping import StateGuard, check_module, checked_gradient
from cmrfed.privacy.dpsgd.noise import open_noise_source
from cmrfed.privacy.dpsgd.sampling import poisson_sample
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.settings import LARGEST_CLIP_NORM, MOST_PATIENTS, SMALLEST_CLIP_NORM

MOST_RECORDS = 1_000_000
"""Records of a site. Sums are float64, so n of them are off by at most n² · 2^-53 · C: 1e-4 of the bound here."""
LARGEST_NORM = 1e18
"""Largest gradient entry: the square of a larger one may overflow in float32. Such a record contributes nothing."""
_STD_TOLERANCE = 1e-3
_log = logging.getLogger("cmrfed")


class MechanismConfig(Section):
    """What a step needs beside noise and sampling rate, which are in the event that pays for it."""

    clip_norm: float = Field(1.0, ge=SMALLEST_CLIP_NORM, le=LARGEST_CLIP_NORM)
    """C: the largest norm of one patient's gradient."""
    declared_patients: int = Field(ge=1, le=MOST_PATIENTS)
    """N as it is known in public. Sums are divided by q · N, never by the number in the batch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of forward and backward passes; gradients, clipping and noise are always fp32."""


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
        PrivacyError: The module keeps statistics of its input, the optimizer trains something else, the event is one
            without privacy, or its noise cannot be made in float32.
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
        check_noise(event.noise_multiplier, config.clip_norm)
        if records > MOST_RECORDS:
            raise PrivacyError("too many records for exact sums", expected=f"at most {MOST_RECORDS:,}")
        self.module, self.event, self.records, self.config = module, event, records, config
        self.steps_left = event.steps
        self._untrained = StateGuard(module, but=self.parameters)  # from the first step to the last
        self.device = self.parameters[0].device
        noise = open_noise_source(self.device)
        self.noise_source = f"{noise.name}; each value the sum of four (arXiv 2107.10138)"
        self.record_seconds = 0.0
        """Time that was spent on records, and not on noise: it depends on who was sampled, without noise."""
        self.optimizer = _ExactSum(
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
            PrivacyError: All steps are taken, an earlier one failed, or the forward pass wrote to the module.
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

    def rehearse(self, losses: Callable[[], Tensor]) -> float:
        """Put a record that stands for nobody through a step, up to the noise, and forget it.

        What it raises depends on no patient. It takes the time and the memory of a patient, who then cannot be the
        first one to fail.

        Args:
            losses: Losses (K,) of made-up arrays, of the shapes that a patient's have.

        Returns:
            Seconds.
        """
        guard, start = StateGuard(self.module), time.monotonic()
        self._begin()
        try:
            self._contribution(losses)
        finally:
            self._forget_record()
            for parameter in self.parameters:
                parameter.summed_grad = None  # type: ignore[attr-defined]
            self.optimizer.forget_skipped()
        guard.check()
        synchronize(self.device)
        return time.monotonic() - start

    def _accumulate(self, sampled: list[int], losses_of: Callable[[int], Tensor]) -> StepNotes:
        """Sum the clipped gradients of the sampled records into ``summed_grad``, float64."""
        guard, start = StateGuard(self.module), time.monotonic()
        self._begin()
        found = [self._contribute(partial(losses_of, record)) for record in sampled]
        numbers = values([number for each in found if each for number in each])  # the one wait for all records
        self.record_seconds += time.monotonic() - start
        guard.check()
        self._untrained.check()
        rows = zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=True)
        kept = [(loss, norm) for whole, loss, norm in rows if whole]
        clipped = sum(norm > self.config.clip_norm for _, norm in kept)
        mean = sum(loss for loss, _ in kept) / len(kept) if kept else None
        return StepNotes(len(sampled), clipped, len(sampled) - len(kept), mean)

    def _begin(self) -> None:
        """Start from a sum of zero."""
        self.optimizer.zero_grad(set_to_none=True)
        for parameter in self.parameters:
            parameter.summed_grad = torch.zeros_like(parameter, dtype=torch.float64)  # type: ignore[attr-defined]

    def _contribute(self, losses: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor] | None:
        """Add one record to the sum, as `_contribution` does; None where it raised an error, and contributes nothing.

        A record that cannot be computed must not end the step: whether a step ended would tell who was in it.

        Raises:
            PrivacyError: The module itself is at fault, so that nothing may leave.
        """
        try:
            return self._contribution(losses)
        except PrivacyError:
            raise
        except Exception as error:
            self._forget_record()
            _log.warning("a record contributes nothing to this step: %s: %s", type(error).__name__, error)
            return None

    def _contribution(self, losses: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Add one record to the sum, or zeros where its gradient is not finite; no wait for the device.

        Returns:
            Whether it contributes, 0 or 1; mean loss; norm of the gradient: float32 () each.
        """
        loss, gradient, finite = self._gradient(losses)
        norm = torch.stack([g.norm() for g in gradient]).norm()
        whole = finite & (norm <= LARGEST_NORM)
        self._add([torch.where(whole, g, 0.0) for g in gradient])
        return whole.float(), loss, norm

    def _gradient(self, losses: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Mean loss of one record, (); its gradient and whether that is finite, as `checked_gradient` gives them."""
        with autocast(self.device.type, arithmetic(self.config.precision, self.device.type)):
            found = losses()
        gradient, finite = checked_gradient(found, self.parameters)
        return found.detach().float().mean(), gradient, finite

    def _forget_record(self) -> None:
        """Leave no trace of a record that failed; what it has added to some parameters is within its bound."""
        for parameter in self.parameters:
            parameter.grad_sample = None  # type: ignore[attr-defined]
        self.optimizer.forget_signals()

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


class _ExactSum(DPOptimizer):
    """Opacus' optimizer on a sum that is float64, with noise that is added in float64, and then cast to float32."""

    def add_noise(self) -> None:
        """Put the noised sums into ``grad``."""
        for parameter in self.params:
            noise = opacus_optimizer._generate_noise(
                std=self.noise_multiplier * self.max_grad_norm,
                reference=_beside(self.generator, parameter.summed_grad),
                generator=self.generator,
                secure_mode=self.secure_mode,
            )
            parameter.grad = (
                (parameter.summed_grad + to_device(noise, parameter.device)).to(parameter.dtype).view_as(parameter)
            )
            parameter.summed_grad = None  # no second release of it

    def forget_signals(self) -> None:
        """Take back `signal_skip_step` of a record that failed."""
        self._step_skip_queue.clear()

    def forget_skipped(self) -> None:
        """Be as before the first record."""
        self.forget_signals()
        self._is_last_step_skipped = False


def _beside(generator: torch.Generator, tensor: Tensor) -> Tensor:
    """What has the tensor's shape and type and is where the generator draws; the tensor itself, if that is there."""
    if generator.device.type == tensor.device.type:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=generator.device)


def check_noise(noise_multiplier: float, clip_norm: float) -> None:
    """Refuse a mechanism whose noise float32 cannot hold.

    Random numbers are made in float32 and multiplied by σ·C, so that number must be a normal one there. A clipping
    bound that is no normal number is not kept either: a gradient times C over its norm would be rounded up.

    Raises:
        PrivacyError: σ·C or C is not within 1e-3 of a normal float32 number, or twice the noise overflows.
    """
    for what, value in (("C", clip_norm), ("σ·C", noise_multiplier * clip_norm)):
        with np.errstate(over="ignore"):
            held = float(np.float32(value))
        limits = np.finfo(np.float32)
        if not float(limits.tiny) <= held <= float(limits.max) / 64 or abs(held - value) > _STD_TOLERANCE * value:
            raise PrivacyError(
                f"{what} is no number that float32 can hold: the release would not have the noise that is paid for",
                got=f"σ = {noise_multiplier:g}, C = {clip_norm:g}",
                expected=f"C from {SMALLEST_CLIP_NORM:g} to {LARGEST_CLIP_NORM:g}",
                do="set clip_norm near the norms that gradients have",
            )


def _check_optimizer(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter]) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    if held != {id(p) for p in trained}:
        raise PrivacyError(
            "the optimizer and the module train different parameters",
            got=f"{len(held)} in the optimizer, {len(trained)} trained in the module",
            expected="the same ones",
            do="make the optimizer from the module's parameters that require gradients",
        )

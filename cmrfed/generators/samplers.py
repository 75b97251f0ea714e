"""Samplers: diffusers' schedulers, set up from the one that a process trains with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
)
from torch import Tensor

from cmrfed.generators.process import Process
from cmrfed.generators.settings import SAMPLERS, SamplerConfig, check_sampler


class Scheduler(Protocol):
    """What takes an array from noise to a sample; each of diffusers' schedulers is one."""

    timesteps: Tensor
    """Times at which the network is asked, from noise on; as the network is given them."""

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        *,
        generator: Sequence[torch.Generator],
        return_dict: bool,
    ) -> tuple[Tensor, ...]:
        """The array at the next time, first in a tuple, from the prediction at this one; a stream for each item."""


@dataclass(frozen=True)
class Sampler:
    """A way to draw samples, as `cmrfed.generators.settings.SAMPLERS` has them."""

    make: Callable[[Process, int], Scheduler]
    """Process and number of steps => what draws, its timesteps set."""
    families: tuple[str, ...] = ()
    """Kinds of processes that it draws from, beside those that name it."""


def _diffusers(scheduler: type[SchedulerMixin], **options: Any) -> Sampler:
    def make(process: Process, steps: int) -> Scheduler:
        made = scheduler.from_config(process.scheduler.config, **options)
        made.set_timesteps(steps)
        return made

    return Sampler(make)


ANCESTRAL = _diffusers(DDPMScheduler)
DDIM = _diffusers(DDIMScheduler, timestep_spacing="trailing")
DPM_PLUS_PLUS = _diffusers(DPMSolverMultistepScheduler, timestep_spacing="trailing")
EULER = _diffusers(FlowMatchEulerDiscreteScheduler)
HEUN = _diffusers(FlowMatchHeunDiscreteScheduler)


def make_sampler(config: SamplerConfig, process: Process) -> Scheduler:
    """What draws samples of the process, its timesteps set.

    Raises:
        ConfigError: The sampler belongs to another family.
    """
    check_sampler(config.name, type(process.settings))
    return SAMPLERS.get(config.name).make(process, config.steps)

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

from cmrfed.core.device import HOST
from cmrfed.generators.process import TIMESTEPS, Process
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


def _karras(process: Process, steps: int) -> Scheduler:
    made = DPMSolverMultistepScheduler.from_config(process.scheduler.config)
    made.set_timesteps(timesteps=karras_times(process, steps))
    return made


LARGEST_NOISE = 80.0
"""σ / α at which `karras_times` begins (Karras et al., arXiv 2206.00364, table 1); the cosine schedule goes on to
20 000, where a network has nothing to see."""


def karras_times(process: Process, steps: int) -> list[int]:
    """Times with the noise levels σ / α of Karras et al. (arXiv 2206.00364, equation 5, ρ = 7), from noise on.

    From `LARGEST_NOISE` to the level of time 0. Equal steps of time end at a level where an image has lost its finest
    detail already, and the last step replaces what is lost by its mean: blur. These end where none is lost.

    Args:
        process: One whose times are whole numbers.
        steps: How many; where levels lie closer than times do, times are one apart, and there are no more than times.
    """
    alpha, sigma = process.alpha_sigma(torch.arange(TIMESTEPS, dtype=torch.float64, device=HOST))
    levels = (sigma / alpha)[sigma / alpha <= LARGEST_NOISE]
    steps = min(steps, len(levels))
    first, last = (levels[[-1, 0]] ** (1 / 7)).tolist()
    wanted = torch.linspace(first, last, steps, dtype=torch.float64, device=HOST) ** 7
    nearest = (levels.log() - wanted.log()[:, None]).abs().argmin(1).tolist()
    for step in range(steps - 2, -1, -1):
        nearest[step] = max(nearest[step], nearest[step + 1] + 1)
    return [min(time, len(levels) - 1 - step) for step, time in enumerate(nearest)]


ANCESTRAL = _diffusers(DDPMScheduler)
DDIM = _diffusers(DDIMScheduler, timestep_spacing="trailing")
DPM_PLUS_PLUS = _diffusers(DPMSolverMultistepScheduler, timestep_spacing="trailing")
DPM_PLUS_PLUS_KARRAS = Sampler(_karras)
EULER = _diffusers(FlowMatchEulerDiscreteScheduler)
HEUN = _diffusers(FlowMatchHeunDiscreteScheduler)


def make_sampler(config: SamplerConfig, process: Process) -> Scheduler:
    """What draws samples of the process, its timesteps set.

    Raises:
        ConfigError: The sampler belongs to another family.
    """
    check_sampler(config.name, type(process.settings))
    return SAMPLERS.get(config.name).make(process, config.steps)

"""Samplers by name: diffusers' schedulers, set up from the one that a process trains with."""

from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
)

from cmrfed.core.errors import ConfigError
from cmrfed.generators.process import Process
from cmrfed.generators.settings import SamplerConfig

_FAMILIES: dict[Any, dict[str, Any]] = {
    DDPMScheduler: {"ancestral": DDPMScheduler, "ddim": DDIMScheduler, "dpm++": DPMSolverMultistepScheduler},
    FlowMatchEulerDiscreteScheduler: {
        "euler": FlowMatchEulerDiscreteScheduler,
        "heun": FlowMatchHeunDiscreteScheduler,
    },
}


def make_sampler(config: SamplerConfig, process: Process) -> SchedulerMixin:
    """The scheduler that draws samples of the process, its timesteps set.

    Raises:
        ConfigError: The sampler belongs to another family.
    """
    choices = _FAMILIES[type(process.scheduler)]
    if config.name not in choices:
        raise ConfigError(
            f"sampler {config.name} does not fit this process",
            got=config.name,
            expected=" or ".join(choices),
            do="set sampler.name in the recipe",
        )
    kind = choices[config.name]
    options = {"timestep_spacing": "trailing"} if kind in (DDIMScheduler, DPMSolverMultistepScheduler) else {}
    scheduler = kind.from_config(process.scheduler.config, **options)
    scheduler.set_timesteps(config.steps)
    return scheduler

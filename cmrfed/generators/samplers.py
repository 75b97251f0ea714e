"""Samplers by name: diffusers' schedulers, set up from the one that a process trains with."""

from typing import Any, Literal

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
)
from pydantic import Field

from cmrfed.core.config import Section
from cmrfed.core.errors import ConfigError
from cmrfed.generators.process import Process

SamplerName = Literal["ancestral", "ddim", "dpm++", "euler", "heun"]

_FAMILIES: dict[Any, dict[str, Any]] = {
    DDPMScheduler: {"ancestral": DDPMScheduler, "ddim": DDIMScheduler, "dpm++": DPMSolverMultistepScheduler},
    FlowMatchEulerDiscreteScheduler: {
        "euler": FlowMatchEulerDiscreteScheduler,
        "heun": FlowMatchHeunDiscreteScheduler,
    },
}


class SamplerConfig(Section):
    """How samples are drawn. Heun evaluates the network twice a step, but for the last."""

    name: SamplerName = "euler"
    """ancestral, ddim and dpm++ draw from a process of kind ddpm; euler and heun from one of kind flow."""
    steps: int = Field(20, ge=1, le=1000)
    """Steps of a draw, from noise to an array."""
    guidance_scale: float = Field(1.0, ge=0, le=100)
    """Classifier-free guidance (arXiv 2207.12598); 1 is none and costs nothing."""


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

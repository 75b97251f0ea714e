"""A sampler: deterministic steps (DDIM, arXiv 2010.02502) whose times get denser towards the clean array."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmrfed.generators.process import TIMESTEPS, Process
from cmrfed.generators.samplers import Sampler


class Quadratic:
    """x_s = α_s x_0 + σ_s ε, with x_0 and ε as the network sees them at t."""

    def __init__(self, process: Process, steps: int) -> None:
        self.process = process
        self.timesteps = TIMESTEPS * torch.linspace(1, 0, steps + 1)[:-1] ** 2

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        *,
        generator: Sequence[torch.Generator],
        return_dict: bool,
    ) -> tuple[Tensor, ...]:
        """Go to the next time, or to the clean array from the last one."""
        clean = self.process.to_clean(model_output, sample, timestep)
        later = self.timesteps[self.timesteps < timestep]
        if not len(later):
            return (clean,)
        alpha, sigma = self.process.alpha_sigma(later[0])
        return (alpha * clean + sigma * self.process.to_noise(model_output, sample, timestep),)


QUADRATIC = Sampler(Quadratic, families=("flow", "cosmap"))

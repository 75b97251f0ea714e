"""Flow matching on straight paths (Lipman et al., arXiv 2210.02747): α + σ = 1 at any time."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from cmrfed.core.device import to_device
from cmrfed.generators.process import TIMESTEPS, Levels, Process, cosine_level
from cmrfed.generators.settings import FlowConfig


class Flow(Process):
    """x_σ = (1 - σ) x_0 + σ ε at time 1000 σ; predicts the velocity ε - x_0."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config, "velocity", FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS))
        self.config = config

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """1 - σ and σ = t / 1000."""
        sigma = time / TIMESTEPS
        return 1 - sigma, sigma

    def derivatives(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """By σ."""
        return -torch.ones_like(alpha), torch.ones_like(sigma)

    def draw_levels(self, count: int, rng: torch.Generator, like: Tensor) -> Levels:
        """σ logit-normal, sigmoid(N(0, 1)) (arXiv 2403.03206), or uniform."""
        if self.config.timestep_sampling == "logit_normal":
            sigma = torch.randn(count, generator=rng).sigmoid()
        else:
            sigma = torch.rand(count, generator=rng)
        sigma = to_device(sigma, like.device).to(like.dtype)
        return Levels(sigma * TIMESTEPS, 1 - sigma, sigma)

    def time_of_step(self, step: int) -> float:
        """Where σ / (1 - σ) is the ratio of the cosine schedule."""
        alpha, sigma = cosine_level(step)
        return TIMESTEPS * (sigma / (alpha + sigma))

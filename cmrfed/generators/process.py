"""Processes: how data are perturbed and what the network learns to predict. They differ in nothing else."""

from typing import Protocol

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from cmrfed.generators.settings import DDPMConfig, FlowConfig

TIMESTEPS = 1000
VELOCITY_CAP = 20.0
"""Keeps nearly clean images, where the weight would grow without bound, from ruling the gradient."""


class Process(Protocol):
    """Perturbation and target of one family."""

    scheduler: SchedulerMixin

    def perturb(self, clean: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clean (B, …) => noisy (B, …), time for the network (B,) in [0, 1000], regression target (B, …)."""

    def weight(self, time: Tensor) -> Tensor:
        """Factor of the squared error at each time, (B,) => (B,)."""


def _noise_like(clean: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(clean.shape, generator=rng).to(clean)


class DDPM:
    """x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε; the target is ε, v = √ᾱ_t ε - √(1 - ᾱ_t) x_0 (arXiv 2202.00512), or x_0."""

    def __init__(self, config: DDPMConfig, *, bounded: bool = True) -> None:
        self.config = config
        self.scheduler = DDPMScheduler(
            num_train_timesteps=TIMESTEPS,
            beta_schedule=config.schedule,
            prediction_type=config.prediction,
            clip_sample=bounded,
        )

    def perturb(self, clean: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Integer times from the configured law."""
        noise = _noise_like(clean, rng)
        time = self._times(len(clean), rng).to(clean.device)
        noisy = self.scheduler.add_noise(clean, noise, time)
        if self.config.prediction == "v_prediction":
            target = self.scheduler.get_velocity(clean, noise, time)
        else:
            target = noise if self.config.prediction == "epsilon" else clean
        return noisy, time.float(), target

    def _times(self, count: int, rng: torch.Generator) -> Tensor:
        if self.config.time_law == "uniform":
            return torch.randint(TIMESTEPS, (count,), generator=rng)
        return (torch.randn(count, generator=rng).sigmoid() * TIMESTEPS).long().clamp(max=TIMESTEPS - 1)

    def weight(self, time: Tensor) -> Tensor:
        """1, or ‖Δv‖² / ‖Δx_0‖² = SNR + 1 = 1 / (1 - ᾱ_t) (arXiv 2202.00512, 2511.13720), at most `VELOCITY_CAP`."""
        if self.config.weighting == "plain":
            return torch.ones_like(time)
        signal = self.scheduler.alphas_cumprod.to(time.device)[time.long()]
        return (1 / (1 - signal)).clamp(max=VELOCITY_CAP)


class Flow:
    """x_σ = (1 - σ) x_0 + σ ε with velocity ε - x_0; σ = sigmoid(N(0, 1)) (arXiv 2403.03206) or uniform."""

    def __init__(self, config: FlowConfig) -> None:
        self.config = config
        self.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS)

    def perturb(self, clean: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Times from the configured law."""
        noise = _noise_like(clean, rng)
        bell = self.config.time_law == "logit_normal"
        sigma = torch.randn(len(clean), generator=rng).sigmoid() if bell else torch.rand(len(clean), generator=rng)
        sigma = sigma.to(clean)
        wide = sigma.view(-1, *[1] * (clean.ndim - 1))
        return (1 - wide) * clean + wide * noise, sigma * TIMESTEPS, noise - clean

    def weight(self, time: Tensor) -> Tensor:
        """1: the law of times is the weighting."""
        return torch.ones_like(time)


def make_process(config: DDPMConfig | FlowConfig, *, bounded: bool = True) -> Process:
    """The process of that configuration; where arrays are ``bounded`` to [-1, 1], its samplers may clip to that."""
    return DDPM(config, bounded=bounded) if isinstance(config, DDPMConfig) else Flow(config)

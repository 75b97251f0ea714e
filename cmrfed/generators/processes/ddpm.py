"""Variance-preserving diffusion (Ho et al., arXiv 2006.11239): α² + σ² = 1 at a thousand steps."""

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from cmrfed.core.device import to_device
from cmrfed.generators.process import TIMESTEPS, Levels, Prediction, Process
from cmrfed.generators.settings import DDPMConfig

VELOCITY_CAP = 20.0
"""Keeps nearly clean images, where the weight would grow without bound, from ruling the gradient."""
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "noise", "v_prediction": "velocity", "sample": "clean"}
"""Diffusers' name of a prediction → ours."""


class DDPM(Process):
    """x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε; predicts ε, v = √ᾱ_t ε - √(1 - ᾱ_t) x_0 (arXiv 2202.00512), or x_0."""

    def __init__(self, config: DDPMConfig, *, bounded: bool = True) -> None:
        scheduler = DDPMScheduler(
            num_train_timesteps=TIMESTEPS,
            beta_schedule=config.schedule,
            prediction_type=config.prediction,
            clip_sample=bounded,
        )
        super().__init__(config, _PREDICTIONS[config.prediction], scheduler)
        self.config = config
        self._tables: dict[torch.device, Tensor] = {}

    def _alpha_bar(self, device: torch.device) -> Tensor:
        """ᾱ of all steps, float32 (1000,), sent to a device once."""
        if device not in self._tables:
            self._tables[device] = to_device(self.scheduler.alphas_cumprod, device)
        return self._tables[device]

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 - ᾱ_t) at whole numbers 0 … 999."""
        alpha_bar = self._alpha_bar(time.device).to(time.dtype)[time.long()]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def derivatives(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """By the angle arctan(σ / α)."""
        return -sigma, alpha

    def draw_levels(self, count: int, rng: torch.Generator, like: Tensor) -> Levels:
        """Whole numbers, uniform or logit-normal (arXiv 2403.03206)."""
        if self.config.timestep_sampling == "uniform":
            time = torch.randint(TIMESTEPS, (count,), generator=rng)
        else:
            time = (torch.randn(count, generator=rng).sigmoid() * TIMESTEPS).long().clamp(max=TIMESTEPS - 1)
        time = to_device(time, like.device)
        return Levels(time.float(), *self.alpha_sigma(time.to(like.dtype)))

    def weight(self, time: Tensor) -> Tensor:
        """1, or ‖Δv‖² / ‖Δx_0‖² = SNR + 1 = 1 / (1 - ᾱ_t) (arXiv 2202.00512, 2511.13720), at most `VELOCITY_CAP`."""
        if self.config.weighting == "plain":
            return torch.ones_like(time)
        alpha_bar = self._alpha_bar(time.device)[time.long()]
        return (1 / (1 - alpha_bar)).clamp(max=VELOCITY_CAP)

    def time_left(self, time: float) -> float:
        """One more than the step: step 0 has a little noise already."""
        return time + 1

    def time_of_step(self, step: int) -> float:
        """The step itself."""
        return float(step)

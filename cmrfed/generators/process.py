"""A process: how data are perturbed, what the network predicts, and how one prediction is turned into another.

Every family is a Gaussian path x_t = α_t x_0 + σ_t ε from the clean array x_0 to noise ε. Its velocity is the
derivative along the path, v_t = α'_t x_0 + σ'_t ε, by a parameter that the family chooses: σ in flow matching
(v = ε - x_0), the angle arctan(σ / α) in diffusion (v = α ε - σ x_0, arXiv 2202.00512). A family is a subclass of
`Process` and one of `ProcessSettings`, registered in `cmrfed.generators.settings.PROCESSES`.
"""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from torch import Tensor

from cmrfed.core.device import HOST, normal
from cmrfed.generators.settings import ProcessSettings, samplers_of

TIMESTEPS = 1000
"""Times run from 0, at the clean array, to 1000, at noise; those of diffusion are the integers below 1000."""

Prediction = Literal["noise", "clean", "velocity"]


class Perturbed(NamedTuple):
    """A perturbed batch, and what the network has to say of it."""

    noisy: Tensor
    """x_t, (B, …)."""
    time: Tensor
    """t, as the network is given it: (B,) in [0, 1000]."""
    target: Tensor
    """What the network is to predict, (B, …)."""


class Levels(NamedTuple):
    """Times of a batch and the coefficients there, (B,) each."""

    time: Tensor
    alpha: Tensor
    sigma: Tensor


class Process(ABC):
    """One family's path and prediction.

    Args:
        settings: The family's.
        prediction: What the network predicts.
        scheduler: Diffusers' scheduler that holds the noise schedule; samplers are set up from its configuration.
    """

    def __init__(self, settings: ProcessSettings, prediction: Prediction, scheduler: SchedulerMixin) -> None:
        self.settings, self.prediction, self.scheduler = settings, prediction, scheduler

    # --- what a family says ---------------------------------------------------------------------
    @abstractmethod
    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t at floating-point times in [0, 1000], of the shape and the precision of ``time``."""

    @abstractmethod
    def derivatives(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """α' and σ', the coefficients of the velocity, where the path has α and σ."""

    @abstractmethod
    def draw_levels(self, count: int, rng: torch.Generator, like: Tensor) -> Levels:
        """Random times for training; α and σ have the precision and the device of ``like``."""

    def weight(self, time: Tensor) -> Tensor:
        """Factor of the squared error at each time, (B,) => (B,); 1 unless a family weights its loss."""
        return torch.ones_like(time)

    def time_left(self, time: float) -> float:
        """How much of the path is left to the clean array when a sampler is at ``time``: 1000 at noise."""
        return time

    def time_of_step(self, step: int) -> float:
        """The time with as much noise, σ / α, as the cosine schedule of diffusion has at one of its steps.

        Args:
            step: 0 … 999; diffusion itself takes its own step of that number, whatever its schedule.
        """
        return _time_of_level(self, cosine_level(step))

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the samplers that draw from this family, those of installed plugins last."""
        return samplers_of(type(self.settings))

    # --- training -------------------------------------------------------------------------------
    def perturb(self, clean: Tensor, rng: torch.Generator) -> Perturbed:
        """Perturb a batch (B, …) at random times; noise is drawn first (`cmrfed.core.device.normal`), then times."""
        noise = normal(clean.shape, rng, clean)
        time, *level = self.draw_levels(len(clean), rng, clean)
        alpha, sigma = (_wide(part, clean) for part in level)
        return Perturbed(alpha * clean + sigma * noise, time, self._target(clean, noise, alpha, sigma))

    def _target(self, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        if self.prediction == "velocity":
            to_clean, to_noise = self.derivatives(alpha, sigma)
            return to_noise * noise + to_clean * clean
        return noise if self.prediction == "noise" else clean

    # --- from one prediction to another -----------------------------------------------------------
    def to_noise(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """ε from the network's prediction at x_t.

        Args:
            prediction: (B, …).
            noisy: x_t, (B, …).
            time: t, floating point, (B,) or one for all, ().
        """
        alpha, sigma = self._at(time, noisy)
        if self.prediction == "noise":
            return prediction
        if self.prediction == "clean":
            return (noisy - alpha * prediction) / sigma
        to_clean, to_noise = self.derivatives(alpha, sigma)
        return (alpha * prediction - to_clean * noisy) / (alpha * to_noise - sigma * to_clean)

    def to_clean(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """x_0 from the network's prediction at x_t; arguments as in `to_noise`."""
        alpha, sigma = self._at(time, noisy)
        if self.prediction == "clean":
            return prediction
        if self.prediction == "noise":
            return (noisy - sigma * prediction) / alpha
        to_clean, to_noise = self.derivatives(alpha, sigma)
        return (to_noise * noisy - sigma * prediction) / (alpha * to_noise - sigma * to_clean)

    def to_velocity(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """v_t from the network's prediction at x_t; arguments as in `to_noise`."""
        if self.prediction == "velocity":
            return prediction
        to_clean, to_noise = self.derivatives(*self._at(time, noisy))
        clean, noise = (convert(prediction, noisy, time) for convert in (self.to_clean, self.to_noise))
        return to_noise * noise + to_clean * clean

    def _at(self, time: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha_sigma(time)
        return _wide(alpha, like), _wide(sigma, like)


def _wide(value: Tensor, like: Tensor) -> Tensor:
    """(B,) => (B, 1, …), beside an array (B, …); one value for all stays as it is."""
    return value.view(-1, *[1] * (like.ndim - 1)) if value.ndim else value


def make_process(settings: ProcessSettings, *, bounded: bool = True) -> Process:
    """The process of these settings; where arrays are ``bounded`` to [-1, 1], its samplers may clip to that."""
    return settings.build(bounded=bounded)


# --- equal noise in all families ------------------------------------------------------------------
@lru_cache(maxsize=1)
def _cosine_alpha_bar() -> Tensor:
    """ᾱ of the cosine schedule (arXiv 2102.09672), float64 (1000,)."""
    return DDPMScheduler(TIMESTEPS, beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()


def cosine_level(step: int) -> tuple[float, float]:
    """α and σ of diffusion with the cosine schedule at a step 0 … 999."""
    alpha_bar = _cosine_alpha_bar()[step]
    return float(alpha_bar.sqrt()), float((1 - alpha_bar).sqrt())


def _time_of_level(process: Process, level: tuple[float, float]) -> float:
    """The time with the same ratio σ / α, which grows along the path, by bisection."""
    low, high = 0.0, float(TIMESTEPS)
    for _ in range(60):
        middle = (low + high) / 2
        alpha, sigma = process.alpha_sigma(torch.tensor(middle, dtype=torch.float64, device=HOST))
        low, high = (middle, high) if float(sigma) * level[0] < level[1] * float(alpha) else (low, middle)
    return high

"""A process family: flow matching with the times of CosMap (Esser et al., arXiv 2403.03206, section 3.1)."""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cmrfed.generators.process import TIMESTEPS, Levels
from cmrfed.generators.processes.flow import Flow
from cmrfed.generators.settings import Family, FlowConfig, ProcessSettings


class CosmapSettings(ProcessSettings):
    """Straight paths; more steps of training in the middle than at both ends."""

    family: ClassVar[Family] = Family(
        label="CosMap",
        latent_label="latent CosMap",
        name="flow matching with CosMap times",
        latent_name="latent flow matching with CosMap times",
        card="Flow matching with CosMap times (arXiv 2403.03206)",
        tag="flow-matching",
        text="flow matching on straight paths with CosMap times",
        source="Esser P et al. Scaling rectified flow transformers. ICML 2024. arXiv 2403.03206.",
    )
    samplers: ClassVar[tuple[str, ...]] = ("euler", "heun")
    kind: Literal["cosmap"] = "cosmap"

    def build(self, *, bounded: bool) -> "Cosmap":
        """Make the process."""
        return Cosmap(self)


class Cosmap(Flow):
    """σ = 1 - 1 / (tan(π u / 2) + 1), with u uniform."""

    def __init__(self, settings: CosmapSettings) -> None:
        super().__init__(FlowConfig())
        self.settings = settings

    def draw_levels(self, count: int, rng: torch.Generator, like: Tensor) -> Levels:
        """Draw u, then σ."""
        sigma = (1 - 1 / (torch.tan(torch.rand(count, generator=rng) * math.pi / 2) + 1)).to(like)
        return Levels(sigma * TIMESTEPS, 1 - sigma, sigma)

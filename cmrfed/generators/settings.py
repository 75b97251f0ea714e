"""The settings of a generator: its process, network, sampler and autoencoder. Loads no torch."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cmrfed.core.config import Section
from cmrfed.core.errors import ConfigError

TimeLaw = Literal["logit_normal", "uniform"]
"""Of times in training: t = sigmoid(N(0, 1)), with most steps in middle noise (arXiv 2403.03206), or uniform."""
Channels = Annotated[int, Field(ge=1, le=4096)]
"""Channels of one level of a network."""
SamplerName = Literal["ancestral", "ddim", "dpm++", "euler", "heun"]
CodecName = Literal["pixel", "mask", "latent"]


class DDPMConfig(Section):
    """Variance-preserving diffusion (Ho et al., arXiv 2006.11239), cosine schedule (arXiv 2102.09672)."""

    kind: Literal["ddpm"] = "ddpm"
    prediction: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    """Noise ε, velocity v, or the clean array, which suits one-hot masks: a small network cannot carry their noise."""
    schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2"
    """Growth of the noise, by diffusers' names: cosine, or betas (or their roots) that rise linearly."""
    weighting: Literal["plain", "velocity"] = "plain"
    """For the prediction of the clean array: its own squared error, or that of the velocity it implies."""
    time_law: TimeLaw = "uniform"
    """Times in training: all alike, or mostly those of middle noise."""

    @model_validator(mode="after")
    def _weighs_the_clean_array(self) -> "DDPMConfig":
        if self.weighting == "velocity" and self.prediction != "sample":
            raise ValueError(f"weighting velocity belongs to prediction sample, not to {self.prediction}")
        return self


class FlowConfig(Section):
    """Flow matching on straight paths (Lipman et al., arXiv 2210.02747)."""

    kind: Literal["flow"] = "flow"
    time_law: TimeLaw = "logit_normal"
    """Times in training: all alike, or mostly those of middle noise."""


ProcessConfig = Annotated[DDPMConfig | FlowConfig, Field(discriminator="kind")]


class BackboneConfig(Section):
    """Size of the U-Net."""

    channels: tuple[Channels, ...] = Field((32, 64, 96), min_length=1, max_length=8)
    """Of each level, multiples of norm_groups; every level but the last halves the array."""
    layers_per_block: int = Field(1, ge=1, le=16)
    """Residual blocks of each level on the way down; there is one more on the way up."""
    attention_levels: int = Field(0, ge=0, le=8)
    """How many of the deepest levels attend; the middle always does."""
    patch_px: int = Field(2, ge=1, le=64)
    """Pixel-unshuffle (arXiv 1609.05158): the U-Net runs at 1 / patch_px of the size."""
    norm_groups: int = Field(8, ge=1, le=4096)
    """Groups of each group normalisation."""


class SamplerConfig(Section):
    """How samples are drawn. Heun evaluates the network twice a step, but for the last."""

    name: SamplerName = "euler"
    """ancestral, ddim and dpm++ draw from a process of kind ddpm; euler and heun from one of kind flow."""
    steps: int = Field(20, ge=1, le=1000)
    """Steps of a draw, from noise to an array."""
    guidance_scale: float = Field(1.0, ge=0, le=100)
    """Classifier-free guidance (arXiv 2207.12598); 1 is none and costs nothing."""


class AutoencoderConfig(Section):
    """Size of the autoencoder."""

    channels: tuple[Channels, ...] = Field((32, 64), max_length=8)
    """Of each level; every level but the last halves the image."""
    layers_per_block: int = Field(1, ge=1, le=16)
    """Residual blocks of each level of the encoder; the decoder has one more."""
    latent_channels: int = Field(4, ge=1, le=256)
    """Channels of a latent."""
    norm_groups: int = Field(8, ge=1, le=4096)
    """Groups of each group normalisation."""

    @field_validator("channels")
    @classmethod
    def _has_levels(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if len(channels) < 2:
            raise ValueError("channels needs two levels at least: one would leave the image as large as it is")
        return channels

    @model_validator(mode="after")
    def _groups_fit(self) -> "AutoencoderConfig":
        if any(count % self.norm_groups for count in self.channels):
            raise ValueError(f"channels {self.channels} must be multiples of norm_groups {self.norm_groups}")
        return self

    @property
    def shrink(self) -> int:
        """Side of an image over the side of its latent."""
        return int(2 ** (len(self.channels) - 1))


SAMPLERS: Mapping[str, tuple[SamplerName, ...]] = {"ddpm": ("ancestral", "ddim", "dpm++"), "flow": ("euler", "heun")}
"""Samplers of each kind of process."""


def check_sampler(name: SamplerName, kind: str) -> None:
    """Refuse a sampler that does not draw from a kind of process.

    Raises:
        ConfigError: It belongs to another family.
    """
    if name not in SAMPLERS[kind]:
        raise ConfigError(
            f"sampler {name} does not fit this process",
            got=name,
            expected=" or ".join(SAMPLERS[kind]),
            do="set sampler.name in the recipe",
        )


class GeneratorSettings(Section):
    """A generator as a recipe states it, without what follows from the data."""

    process: ProcessConfig = FlowConfig()
    """How arrays are perturbed, and what the network learns to predict."""
    backbone: BackboneConfig = BackboneConfig()
    sampler: SamplerConfig = SamplerConfig()
    condition_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of items trained without any condition; needed for guidance."""
    mask_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of condition masks forgotten in training."""
    autoencoder: AutoencoderConfig | None = None
    """Of images alone: the process works on the latents of this autoencoder (arXiv 2112.10752); None: on pixels."""


class GeneratorConfig(GeneratorSettings):
    """A generator in full."""

    codec: CodecName
    size_px: int = Field(64, ge=16, le=1024)
    finetuned_autoencoder: bool = False
    """Whether the autoencoder has learned from patients too; if not, it has seen a phantom alone."""
    condition_masks: int = Field(1, ge=0, le=8)
    """1 for the image stage (its own mask); 2 for the mask stage (basal neighbour, ED)."""
    styles: int = Field(1, ge=1, le=1000)

    @model_validator(mode="after")
    def _fits(self) -> "GeneratorConfig":
        if (self.codec == "latent") != (self.autoencoder is not None):
            raise ValueError(f"codec {self.codec}: an autoencoder belongs to latent images, and to nothing else")
        step, shrink = self.backbone.patch_px * 2 ** (len(self.backbone.channels) - 1), ""
        if self.autoencoder:
            step, shrink = step * self.autoencoder.shrink, " × shrink of the autoencoder"
        if self.size_px % step:
            raise ValueError(f"size_px {self.size_px} must be a multiple of {step} (patch_px × 2^(levels - 1){shrink})")
        if self.sampler.guidance_scale != 1 and not self.condition_dropout:
            raise ValueError("guidance_scale other than 1 needs condition_dropout > 0 in training")
        check_sampler(self.sampler.name, self.process.kind)  # a misfit shows before training, not after
        return self

"""The settings of a generator: its process, network, sampler and autoencoder. Loads no torch.

Families of processes, networks and samplers are registered here by name; other distributions offer more of them through
entry points ([plugins](docs/plugins.md)).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cmrfed.core.errors import ConfigError
from cmrfed.core.settings.choices import OrInstalled, OrInstalledName, settings_registry
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.registry import Registry

if TYPE_CHECKING:
    from cmrfed.generators.backbone import Backbone
    from cmrfed.generators.process import Process
    from cmrfed.generators.samplers import Sampler

TimestepSampling = Literal["logit_normal", "uniform"]
"""Of times in training: t = sigmoid(N(0, 1)), with most steps in middle noise (arXiv 2403.03206), or uniform."""
Channels = Annotated[int, Field(ge=1, le=4096)]
"""Channels of one level of a network."""
CodecName = Literal["pixel", "mask", "latent"]


# --- samplers -----------------------------------------------------------------------------------
SAMPLERS: Registry["Sampler"] = Registry(
    "cmrfed.samplers",
    "sampler",
    {
        "ancestral": "cmrfed.generators.samplers:ANCESTRAL",
        "ddim": "cmrfed.generators.samplers:DDIM",
        "dpm++": "cmrfed.generators.samplers:DPM_PLUS_PLUS",
        "dpm++-karras": "cmrfed.generators.samplers:DPM_PLUS_PLUS_KARRAS",
        "euler": "cmrfed.generators.samplers:EULER",
        "heun": "cmrfed.generators.samplers:HEUN",
    },
    fault=lambda name, part: None if hasattr(part, "families") else f"{part!r}, which is not a Sampler",
)
"""What draws samples, by name: a `cmrfed.generators.samplers.Sampler` each."""
SamplerName = Annotated[
    Literal["ancestral", "ddim", "dpm++", "dpm++-karras", "euler", "heun"], OrInstalledName(SAMPLERS)
]


class SamplerConfig(Section):
    """Sampling. Heun evaluates the network twice per step, except for the last."""

    name: SamplerName = "euler"
    """ancestral, ddim, dpm++ and dpm++-karras sample from processes of kind ddpm; euler and heun from those of kind
    flow. dpm++-karras takes its steps where detail is decided: sharper than dpm++ in half as many steps."""
    steps: int = Field(20, ge=1, le=1000)
    """Sampling steps."""
    guidance_scale: float = Field(1.0, ge=0, le=100)
    """Classifier-free guidance scale (arXiv 2207.12598); 1 disables guidance and its second network evaluation."""


# --- families of processes ------------------------------------------------------------------------
@dataclass(frozen=True)
class Family:
    """What a family of generators is called, on pixels and on the latents of an autoencoder."""

    label: str
    """In figures, such as DDPM."""
    latent_label: str
    name: str
    """Written out, such as denoising diffusion."""
    latent_name: str
    card: str
    """On a model card, with its paper."""
    tag: str
    """In the metadata of a model card, such as diffusion."""
    text: str
    """In the methods of a report: "Masks are drawn by …"."""
    source: str
    """The paper, as a bibliography has it."""


class ProcessSettings(Section):
    """Base of the settings of every family; a subclass is named by its ``kind: Literal["name"] = "name"``."""

    kind: str = Field(max_length=100)
    family: ClassVar[Family]
    samplers: ClassVar[tuple[str, ...]]
    """Names of the samplers that draw from it; a sampler may name further families itself."""

    def build(self, *, bounded: bool) -> "Process":
        """The process; where arrays are ``bounded`` to [-1, 1], its samplers may clip to that. A subclass has it."""
        raise NotImplementedError


class DDPMConfig(ProcessSettings):
    """Variance-preserving diffusion (Ho et al., arXiv 2006.11239), cosine schedule (arXiv 2102.09672)."""

    family = Family(
        label="DDPM",
        latent_label="LDM",
        name="denoising diffusion",
        latent_name="latent diffusion",
        card="Denoising diffusion (DDPM, arXiv 2006.11239)",
        tag="diffusion",
        text="a denoising diffusion probabilistic model",
        source="Ho J, Jain A, Abbeel P. Denoising diffusion probabilistic models. NeurIPS 2020. arXiv 2006.11239.",
    )
    samplers = ("ancestral", "ddim", "dpm++", "dpm++-karras")

    renamed = {"time_law": "timestep_sampling"}

    kind: Literal["ddpm"] = "ddpm"
    prediction: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    """Prediction target: noise ε, velocity v or the clean sample x₀. x₀ suits one-hot masks, whose noise a small
    network cannot represent."""
    schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2"
    """Noise schedule by its name in diffusers: cosine, linear or scaled linear."""
    weighting: Literal["plain", "velocity"] = "plain"
    """Loss weighting when predicting x₀: plain squared error, or the error of the implied velocity."""
    timestep_sampling: TimestepSampling = "uniform"
    """Distribution of training timesteps: uniform, or logit-normal (arXiv 2403.03206), which emphasises intermediate
    noise levels."""

    @model_validator(mode="after")
    def _weighs_the_clean_array(self) -> "DDPMConfig":
        if self.weighting == "velocity" and self.prediction != "sample":
            raise ValueError(f"weighting velocity belongs to prediction sample, not to {self.prediction}")
        return self

    def build(self, *, bounded: bool) -> "Process":
        """Its process."""
        from cmrfed.generators.processes.ddpm import DDPM

        return DDPM(self, bounded=bounded)


class FlowConfig(ProcessSettings):
    """Flow matching on straight paths (Lipman et al., arXiv 2210.02747)."""

    family = Family(
        label="FM",
        latent_label="LFM",
        name="flow matching",
        latent_name="latent flow matching",
        card="Flow matching (arXiv 2210.02747)",
        tag="flow-matching",
        text="flow matching on straight paths",
        source="Lipman Y, Chen RTQ, Ben-Hamu H, Nickel M, Le M. Flow matching for generative modeling. ICLR 2023. "
        "arXiv 2210.02747.",
    )
    samplers = ("euler", "heun")

    renamed = {"time_law": "timestep_sampling"}

    kind: Literal["flow"] = "flow"
    timestep_sampling: TimestepSampling = "logit_normal"
    """Distribution of training timesteps: uniform, or logit-normal (arXiv 2403.03206), which emphasises intermediate
    noise levels."""

    def build(self, *, bounded: bool) -> "Process":
        """Its process."""
        from cmrfed.generators.processes.flow import Flow

        return Flow(self)


PROCESSES: Registry[type[ProcessSettings]] = settings_registry(
    "cmrfed.process_families", "process family", "kind", ProcessSettings, (DDPMConfig, FlowConfig)
)
ProcessConfig = Annotated[DDPMConfig | FlowConfig, Field(discriminator="kind"), OrInstalled(PROCESSES, "kind")]


def samplers_of(process: type[ProcessSettings]) -> tuple[str, ...]:
    """Names of the samplers that draw from a family: those that it names, then those of plugins that name it."""
    return tuple(dict.fromkeys((*process.samplers, *(name for name in SAMPLERS.names if draws(name, process)))))


def draws(sampler: str, process: type[ProcessSettings]) -> bool:
    """Whether a sampler draws from a family.

    Raises:
        ConfigError: There is no such sampler, or its plugin cannot be loaded.
    """
    if sampler in process.samplers or sampler in SAMPLERS.builtin_names:
        return sampler in process.samplers
    return process.model_fields["kind"].default in SAMPLERS.get(sampler).families


def check_sampler(name: str, process: type[ProcessSettings]) -> None:
    """Refuse a sampler that does not draw from a family.

    Raises:
        ConfigError: It belongs to another family.
    """
    if not draws(name, process):
        raise ConfigError(
            f"sampler {name} does not fit this process",
            got=name,
            expected=" or ".join(samplers_of(process)),
            do="set sampler.name in the recipe",
        )


# --- networks -----------------------------------------------------------------------------------
class BackboneSettings(Section):
    """Base of the settings of every network; a subclass is named by its ``kind: Literal["name"] = "name"``."""

    kind: str = Field(max_length=100)

    @property
    def size_multiple(self) -> int:
        """Pixels of which the height and the width of an array must be a multiple; 1 unless a subclass says more."""
        return 1

    size_words: ClassVar[str] = "of the backbone"
    """Where `size_multiple` comes from, for a message."""

    def build(self, *, size: int, channels: int, masks: int, styles: int, shrink: int) -> "Backbone":
        """The network with random weights; arguments as in `cmrfed.generators.backbone.Backbone`. A subclass has it."""
        raise NotImplementedError


class BackboneConfig(BackboneSettings):
    """Architecture of the U-Net."""

    size_words = "patch_px × 2^(levels - 1)"

    kind: Literal["unet"] = "unet"
    """Architecture of the network."""
    channels: tuple[Channels, ...] = Field((32, 64, 96), min_length=1, max_length=8)
    """Channels of each level, multiples of norm_groups; every level but the last halves the resolution."""
    layers_per_block: int = Field(1, ge=1, le=16)
    """Residual blocks per level of the encoder; the decoder has one more."""
    attention_levels: int = Field(0, ge=0, le=8)
    """Number of deepest levels with self-attention; the middle block always has it."""
    patch_px: int = Field(2, ge=1, le=64)
    """Pixel-unshuffle factor (arXiv 1609.05158): the U-Net works at 1 / patch_px of the resolution."""
    norm_groups: int = Field(8, ge=1, le=4096)
    """Groups of each group normalisation layer."""

    @property
    def size_multiple(self) -> int:
        """One pixel of the deepest level."""
        return int(self.patch_px * 2 ** (len(self.channels) - 1))

    def build(self, *, size: int, channels: int, masks: int, styles: int, shrink: int) -> "Backbone":
        """Its network."""
        from cmrfed.generators.backbone import UNet

        return UNet(self, size=size, channels=channels, masks=masks, styles=styles, shrink=shrink)


BACKBONES: Registry[type[BackboneSettings]] = settings_registry(
    "cmrfed.backbones", "backbone", "kind", BackboneSettings, (BackboneConfig,)
)


# --- the autoencoder and the whole ------------------------------------------------------------------
class AutoencoderConfig(Section):
    """Architecture of the autoencoder."""

    channels: tuple[Channels, ...] = Field((32, 64), max_length=8)
    """Channels of each level; every level but the last halves the resolution."""
    layers_per_block: int = Field(1, ge=1, le=16)
    """Residual blocks per level of the encoder; the decoder has one more."""
    latent_channels: int = Field(4, ge=1, le=256)
    """Latent channels."""
    norm_groups: int = Field(8, ge=1, le=4096)
    """Groups of each group normalisation layer."""

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


class SegmenterNetwork(Section):
    """Architecture of a segmenter that learns at the sites: a U-Net that keeps no statistics of its input."""

    channels: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field((16, 32, 64, 144), min_length=2, max_length=8)
    """Channels of each level; each level halves the resolution."""

    @property
    def size_multiple(self) -> int:
        """What height and width of an image are multiples of."""
        return int(2 ** (len(self.channels) - 1))


class GeneratorSettings(Section):
    """A generator as a recipe states it, without what follows from the data."""

    process: ProcessConfig = FlowConfig()
    """The diffusion or flow process, and the network's regression target."""
    backbone: Annotated[BackboneConfig, OrInstalled(BACKBONES, "kind")] = BackboneConfig()
    sampler: SamplerConfig = SamplerConfig()
    condition_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping all conditions of a training example; required for classifier-free guidance."""
    mask_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping each conditioning mask in training."""
    mask_downsampling: int = Field(1, ge=1, le=16)
    """Mask stage only: masks are generated as shares of labels at 1 / mask_downsampling of the resolution, and decoded
    to full resolution by bicubic interpolation and argmax; 1 generates one-hot masks."""
    autoencoder: AutoencoderConfig | None = None
    """Image stage only: a latent generator works in the latent space of this autoencoder (arXiv 2112.10752); None works
    on pixels."""


class GeneratorConfig(GeneratorSettings):
    """A generator in full."""

    codec: CodecName
    size_px: int = Field(64, ge=16, le=1024)
    finetuned_autoencoder: bool = False
    """Whether the autoencoder has learned from patients too; if not, it has seen a phantom alone."""
    condition_masks: int = Field(1, ge=0, le=8)
    """1 for the image stage (its own mask); 2 for the mask stage (basal neighbour, ED)."""
    styles: int = Field(1, ge=1, le=1000)
    segmenter: SegmenterNetwork | None = None
    """Segmenter stage only: the network that is trained in place of a generator."""

    @model_validator(mode="after")
    def _segmenter_fits(self) -> "GeneratorConfig":
        step = self.segmenter.size_multiple if self.segmenter else 1
        if self.size_px % step:
            raise ValueError(f"size_px {self.size_px} must be a multiple of {step} (2^(levels - 1) of the segmenter)")
        return self

    @model_validator(mode="after")
    def _fits(self) -> "GeneratorConfig":
        if (self.codec == "latent") != (self.autoencoder is not None):
            raise ValueError(f"codec {self.codec}: an autoencoder belongs to latent images, and to nothing else")
        if self.codec != "mask" and self.mask_downsampling != 1:
            raise ValueError(f"mask_downsampling {self.mask_downsampling}: only the generator of masks has it")
        step = self.backbone.size_multiple * self.mask_downsampling
        shrink = " × mask_downsampling" if self.mask_downsampling != 1 else ""
        if self.autoencoder:
            step, shrink = step * self.autoencoder.shrink, " × shrink of the autoencoder"
        if self.size_px % step:
            raise ValueError(
                f"size_px {self.size_px} must be a multiple of {step} ({self.backbone.size_words}{shrink})"
            )
        if self.sampler.guidance_scale != 1 and not self.condition_dropout:
            raise ValueError("guidance_scale other than 1 needs condition_dropout > 0 in training")
        check_sampler(self.sampler.name, type(self.process))  # a misfit shows before training, not after
        return self

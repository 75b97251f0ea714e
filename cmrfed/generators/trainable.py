"""What a stage trains: a generator, the autoencoder whose latents the image generator works on, or a segmenter."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from cmrfed.core.artifacts import new_folder
from cmrfed.core.errors import ConfigError
from cmrfed.generators.autoencoder import autoencoder_losses, build_autoencoder, save_autoencoder
from cmrfed.generators.condition import Condition
from cmrfed.generators.generator import Generator
from cmrfed.generators.labeller import TrainableSegmenter
from cmrfed.generators.settings import AutoencoderConfig, GeneratorConfig
from cmrfed.generators.stages import STAGES, StageName

KL_WEIGHT = 1e-4
"""Of the divergence per latent number where an autoencoder learns at the sites; public training has its own setting."""


class Trainable(Protocol):
    """What a trainer needs to know of what it trains."""

    config: GeneratorConfig

    @property
    def network(self) -> nn.Module:
        """Its parameters are trained, and its weights travel."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def loss(self, raw: Tensor, cond: Condition, rng: torch.Generator) -> Tensor:
        """One value per item (B,)."""

    def save(self, folder: Path) -> None:
        """Write a folder."""


class TrainableAutoencoder(nn.Module):
    """The autoencoder of an image generator, to be trained at the sites: all its weights, from public ones.

    Its latents had mean 0 and standard deviation 1 on the phantom before. They are not measured again afterwards: a
    scale taken from patients would tell of them without noise.

    Args:
        config: Of the image generator, with its autoencoder.
        seed: Of the initial weights.
    """

    def __init__(self, config: GeneratorConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        if config.autoencoder is None:
            raise AssertionError("the generator has no autoencoder")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = build_autoencoder(config.autoencoder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def loss(self, raw: Tensor, cond: Condition, rng: torch.Generator) -> Tensor:
        """How far images are from what the autoencoder leaves of them, one value per item (B,).

        Args:
            raw: Images float (B, 1, H, W) in [-1, 1].
            cond: Not used: an autoencoder knows of no condition.
            rng: Source of the posterior's noise; a CPU generator.
        """
        return autoencoder_losses(self.network, raw, rng, KL_WEIGHT)

    def save(self, folder: Path) -> None:
        """Write a folder that diffusers opens as an `AutoencoderKL`."""
        with new_folder(folder) as part:
            save_autoencoder(part, self.network)


def make_trainable(
    stage: StageName, config: GeneratorConfig, seed: int = 0, autoencoder: Mapping[str, Tensor] | None = None
) -> Generator | TrainableAutoencoder | TrainableSegmenter:
    """What a stage trains, with random weights.

    Args:
        stage: "segmenter", "autoencoder", "mask" or "image".
        config: Of the generator; for the autoencoder that of the image generator; for the segmenter one that has it.
        seed: Of the initial weights.
        autoencoder: Weights of the autoencoder of a generator that has one; it stays as it is.
    """
    if STAGES[stage].trains_autoencoder:
        return TrainableAutoencoder(config, seed)
    if STAGES[stage].trains_segmenter:
        return TrainableSegmenter(config, seed)
    return Generator(config, seed, autoencoder)


# --- shapes, without the memory -------------------------------------------------------------------
@lru_cache(maxsize=16)
def weight_layout(stage: StageName, config: GeneratorConfig) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name, type and shape of all that a stage trains, without the memory for it.

    Args:
        stage: "segmenter", "autoencoder", "mask" or "image".
        config: As in `make_trainable`.

    Raises:
        ConfigError: There is no such network.
    """
    return _layout(lambda: make_trainable(stage, config).network)


@lru_cache(maxsize=16)
def autoencoder_layout(config: AutoencoderConfig) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name, type and shape of the weights of an autoencoder, without the memory for it.

    Raises:
        ConfigError: There is no such network.
    """
    return _layout(lambda: build_autoencoder(config))


def _layout(build: Callable[[], nn.Module]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    try:
        with torch.device("meta"):
            return {name: (weight.dtype, tuple(weight.shape)) for name, weight in build().state_dict().items()}
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            "there is no network of this size", got=error, do="correct channels and norm_groups"
        ) from None

"""A KL autoencoder (Rombach et al., arXiv 2112.10752): images ⇄ small arrays. Public, unless a recipe trains it on.

Its latents have mean 0 and standard deviation 1 in each channel over the public images that it learned from: this fixed
scale is part of its weights (`standardise`), so it needs no further number to travel or to be forgotten.
"""

import errno
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cmrfed.core.device import normal, to_host
from cmrfed.core.errors import ConfigError, DataError
from cmrfed.core.precision import full_precision
from cmrfed.generators.settings import AutoencoderConfig

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def build_autoencoder(config: AutoencoderConfig) -> "AutoencoderKL":
    """The untrained network: GroupNorm alone, and no attention: a latent depends on its surroundings only."""
    from diffusers import AutoencoderKL  # with all its relatives: only who has an autoencoder waits for them

    levels = len(config.channels)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


@torch.no_grad()
def standardise(network: "AutoencoderKL", images: Iterable[Tensor]) -> None:
    """Give latents mean 0 and standard deviation 1 in each channel over ``images``; reconstructions stay as they are.

    The last convolution of the encoder and the first of the decoder see one pixel each, so scale and shift become part
    of their weights.

    Args:
        network: Changed in place.
        images: Batches, float (B, 1, H, W) in [-1, 1].
    """
    means = torch.cat([network.encode(batch).latent_dist.mean.transpose(0, 1).flatten(1) for batch in images], 1)
    shift, scale = means.mean(1), means.std(1)
    out, into, latents = network.quant_conv, network.post_quant_conv, len(shift)
    out.weight[:latents] /= scale.view(-1, 1, 1, 1)
    out.bias[:latents] = (out.bias[:latents] - shift) / scale
    out.bias[latents:] -= 2 * scale.log()  # the rest are logarithms of variances
    into.bias += into.weight[:, :, 0, 0] @ shift
    into.weight *= scale.view(1, -1, 1, 1)


class LatentCodec(nn.Module):
    """Images float (B, 1, H, W) in [-1, 1] ⇄ latents float32 (B, channels, H / shrink, W / shrink).

    Frozen, in float32 whatever surrounds it, and the mean of the posterior: an image has one latent, in every batch.

    Args:
        config: Its size.
        weights: By name in diffusers' `AutoencoderKL`; None: for counting and comparing, it can do nothing else.

    Raises:
        ConfigError: The weights are those of another autoencoder.
    """

    bounded = False

    def __init__(self, config: AutoencoderConfig, weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.channels, self.shrink = config.latent_channels, config.shrink
        self._trained = weights is not None
        with torch.random.fork_rng(devices=[]):
            self.vae = build_autoencoder(config).requires_grad_(False)
        super().train(False)
        if weights is None:
            return
        try:
            self.vae.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise ConfigError(
                "the autoencoder does not fit the recipe", got=error, do="make it anew: cmrfed pretrain RECIPE"
            ) from None

    def save(self, folder: Path) -> None:
        """Write a folder that diffusers opens."""
        self._refuse_untrained()
        save_autoencoder(folder, self.vae)

    def train(self, mode: bool = True) -> "LatentCodec":
        """It stays as it is, whatever is done around it."""
        return self

    @property
    def weights(self) -> dict[str, Tensor]:
        """Its weights by name.

        Raises:
            ConfigError: It has none.
        """
        self._refuse_untrained()
        return {name: to_host(tensor) for name, tensor in sorted(self.vae.state_dict().items())}

    @torch.no_grad()
    def encode(self, raw: Tensor) -> Tensor:
        """Images => latents."""
        self._refuse_untrained()
        with full_precision(raw.device.type):
            mean: Tensor = self.vae.encode(raw.float()).latent_dist.mean
        return mean

    @torch.no_grad()
    def decode(self, array: Tensor) -> Tensor:
        """Latents => images, clipped to [-1, 1]."""
        self._refuse_untrained()
        with full_precision(array.device.type):
            image: Tensor = self.vae.decode(array.float()).sample
        return image.clamp(-1, 1)

    def _refuse_untrained(self) -> None:
        if not self._trained:
            raise ConfigError(
                "the autoencoder has no weights",
                expected="those that `cmrfed pretrain` made",
                do="give them to the generator that uses it",
            )


def autoencoder_loss(network: "AutoencoderKL", images: Tensor, rng: torch.Generator, kl_weight: float) -> Tensor:
    """The mean of `autoencoder_losses` over the batch, one number."""
    return _loss(network, images, rng, kl_weight, torch.mean)


def autoencoder_losses(network: "AutoencoderKL", images: Tensor, rng: torch.Generator, kl_weight: float) -> Tensor:
    """Mean absolute error over pixels, of the image and its differences, and a little KL to N(0, 1): one value an item.

    There is no adversarial and no perceptual part: nothing is invented that the latent does not hold.

    Args:
        network: In training.
        images: Float (B, 1, H, W) in [-1, 1].
        rng: Source of the posterior's noise; a CPU generator.
        kl_weight: Per latent number.

    Returns:
        (B,).
    """
    return _loss(network, images, rng, kl_weight, lambda errors: errors.flatten(1).mean(1))


def _loss(
    network: "AutoencoderKL", images: Tensor, rng: torch.Generator, kl_weight: float, mean: Callable[[Tensor], Tensor]
) -> Tensor:
    posterior = network.encode(images).latent_dist
    noise = normal(posterior.mean.shape, rng, images)
    made = network.decode(posterior.mean + posterior.std * noise).sample.float()
    kl = 0.5 * mean((posterior.mean.square() + posterior.var - 1 - posterior.logvar).float())
    down, across = (mean(torch.diff(made - images, dim=dim).abs()) for dim in (-2, -1))  # between neighbours
    return mean((made - images).abs()) + (down + across) + kl_weight * kl


# --- files --------------------------------------------------------------------------------------
def save_autoencoder(folder: Path, network: "AutoencoderKL") -> None:
    """Write a folder that diffusers opens."""
    try:
        network.save_pretrained(folder, safe_serialization=True)
    except SafetensorError as error:  # how safetensors tells of a full disk
        raise OSError(errno.EIO, str(error), str(folder)) from error


def load_autoencoder(folder: Path) -> dict[str, Tensor]:
    """Read the weights in a folder that `save_autoencoder` wrote.

    Raises:
        DataError: A file is missing or damaged.
    """
    from diffusers import AutoencoderKL

    try:
        network = AutoencoderKL.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"the autoencoder in {folder} cannot be used", got=error, do="make it anew: cmrfed pretrain RECIPE"
        ) from None
    return dict(network.state_dict())

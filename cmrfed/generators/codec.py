"""Codecs: from what a stage generates to the continuous array that a process perturbs, and back."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from cmrfed.data.labels import Label
from cmrfed.generators.autoencoder import LatentCodec
from cmrfed.generators.settings import GeneratorConfig


class Codec(Protocol):
    """Raw data ⇄ array (B, channels, H / shrink, W / shrink), roughly of unit size."""

    channels: int
    shrink: int
    bounded: bool
    """Whether arrays lie in [-1, 1], so that a sampler may clip what it foresees."""

    def encode(self, raw: Tensor) -> Tensor:
        """Raw data => array."""

    def decode(self, array: Tensor) -> Tensor:
        """Array => raw data."""


class PixelCodec:
    """Images as they are: float (B, 1, H, W) in [-1, 1]."""

    channels, shrink, bounded = 1, 1, True

    def encode(self, raw: Tensor) -> Tensor:
        """Image => image."""
        return raw

    def decode(self, array: Tensor) -> Tensor:
        """Image => image, clipped to [-1, 1]."""
        return array.clamp(-1, 1)


class MaskCodec:
    """Label maps: int64 (B, H, W) ⇄ label fractions in [-1, 1], float (B, classes, H / shrink, W / shrink).

    The array holds, for each block of shrink × shrink pixels, the share of every label, scaled from [0, 1] to [-1, 1]:
    one-hot where shrink is 1. Bicubic interpolation to full resolution and argmax decode it, and find contours within
    blocks: Dice with the encoded mask is .998 to .999 for training masks of ACDC at 128 px and shrink 2.

    Args:
        shrink: Side of a mask over the side of the array.
    """

    channels, bounded = len(Label), True

    def __init__(self, shrink: int = 1) -> None:
        self.shrink = shrink

    def encode(self, raw: Tensor) -> Tensor:
        """Labels => shares of labels in [-1, 1]."""
        onehot = torch.stack([(raw == label).float() for label in Label], 1) * 2 - 1
        return onehot if self.shrink == 1 else functional.avg_pool2d(onehot, self.shrink)

    def decode(self, array: Tensor) -> Tensor:
        """Shares of labels => labels."""
        if self.shrink != 1:
            array = functional.interpolate(array.float(), scale_factor=self.shrink, mode="bicubic")
        return array.argmax(1)


def make_codec(config: GeneratorConfig, weights: Mapping[str, Tensor] | None = None) -> Codec:
    """The codec of a generator; that of a latent one needs the autoencoder's weights to encode or decode."""
    if config.autoencoder is not None:
        return LatentCodec(config.autoencoder, weights)
    return PixelCodec() if config.codec == "pixel" else MaskCodec(config.mask_downsampling)

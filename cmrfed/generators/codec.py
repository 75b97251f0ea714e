"""Codecs: from what a stage generates to the continuous array that a process perturbs, and back."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from cmrfed.data.labels import Label
from cmrfed.generators.autoencoder import LatentCodec
from cmrfed.generators.settings import AutoencoderConfig, CodecName


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
    """Label maps: int64 (B, H, W) ⇄ one-hot in [-1, 1], float (B, classes, H, W), decoded by argmax."""

    channels, shrink, bounded = len(Label), 1, True

    def encode(self, raw: Tensor) -> Tensor:
        """Labels => one-hot in [-1, 1]."""
        return torch.stack([(raw == label).float() for label in Label], 1) * 2 - 1

    def decode(self, array: Tensor) -> Tensor:
        """One-hot in [-1, 1] => labels."""
        return array.argmax(1)


def make_codec(
    name: CodecName, autoencoder: AutoencoderConfig | None = None, weights: Mapping[str, Tensor] | None = None
) -> Codec:
    """The codec of that name; "latent" needs an autoencoder, and its weights to encode or decode."""
    if autoencoder is not None:
        return LatentCodec(autoencoder, weights)
    return PixelCodec() if name == "pixel" else MaskCodec()

"""Codecs: from what a stage generates to the continuous array that a process perturbs, and back.

A latent codec (an autoencoder) is one more class here with the same three members.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor

from cmrfed.data.labels import Label

CodecName = Literal["pixel", "mask"]


class Codec(Protocol):
    """Raw data ⇄ array (B, channels, H / shrink, W / shrink), roughly in [-1, 1]."""

    channels: int
    shrink: int

    def encode(self, raw: Tensor) -> Tensor:
        """Raw data => array."""

    def decode(self, array: Tensor) -> Tensor:
        """Array => raw data."""


class PixelCodec:
    """Images as they are: float (B, 1, H, W) in [-1, 1]."""

    channels, shrink = 1, 1

    def encode(self, raw: Tensor) -> Tensor:
        """Image => image."""
        return raw

    def decode(self, array: Tensor) -> Tensor:
        """Image => image, clipped to [-1, 1]."""
        return array.clamp(-1, 1)


class MaskCodec:
    """Label maps: int64 (B, H, W) ⇄ one-hot in [-1, 1], float (B, classes, H, W), decoded by argmax."""

    channels, shrink = len(Label), 1

    def encode(self, raw: Tensor) -> Tensor:
        """Labels => one-hot in [-1, 1]."""
        return torch.stack([(raw == label).float() for label in Label], 1) * 2 - 1

    def decode(self, array: Tensor) -> Tensor:
        """One-hot in [-1, 1] => labels."""
        return array.argmax(1)


def make_codec(name: CodecName) -> Codec:
    """The codec of that name."""
    return PixelCodec() if name == "pixel" else MaskCodec()

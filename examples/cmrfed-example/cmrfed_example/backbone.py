"""A backbone: three convolutions, with the condition and the time as further planes."""

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from cmrfed.generators.backbone import Backbone
from cmrfed.generators.condition import CLASSES, Condition, global_planes
from cmrfed.generators.settings import BackboneSettings


class PlainSettings(BackboneSettings):
    """Size of the network. Every number that a request may hold needs bounds."""

    kind: Literal["plain"] = "plain"
    width: int = Field(16, ge=1, le=1024)

    @property
    def size_multiple(self) -> int:
        """Any size will do."""
        return 1

    def build(self, *, size: int, channels: int, masks: int, styles: int, shrink: int) -> "Plain":
        """Make the network."""
        return Plain(self.width, channels, masks, styles, shrink)


class Plain(Backbone):
    """Convolutions without normalisation: one item never sees another."""

    def __init__(self, width: int, channels: int, masks: int, styles: int, shrink: int) -> None:
        super().__init__()
        self.styles, self.shrink = styles, shrink
        planes = masks * CLASSES * shrink**2 + global_planes(styles)
        sizes = [channels + planes + 1, width, width, channels]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes))

    def condition_planes(self, cond: Condition) -> Tensor:
        """All planes (B, P, H, W)."""
        spatial = functional.pixel_unshuffle(cond.mask_planes(), self.shrink)
        values = cond.global_values(self.styles)[:, :, None, None]
        return torch.cat([spatial, values.expand(-1, -1, *spatial.shape[2:])], 1)

    @torch.no_grad()
    def zero_site_conditioning(self) -> None:
        """Put the weights of the style planes, the last before the time, to zero."""
        self.layers[0].weight[:, -self.styles - 1 : -1] = 0

    def forward(self, noisy: Tensor, time: Tensor, planes: Tensor) -> Tensor:
        """Predict (B, C, H, W)."""
        clock = (time / 1000).view(-1, 1, 1, 1).expand(-1, 1, *noisy.shape[2:])
        out = torch.cat([noisy, planes, clock.to(noisy)], 1)
        for number, layer in enumerate(self.layers):
            out = layer(out if number == 0 else functional.silu(out))
        return out.float()

"""Geometric augmentation that moves an image and all its masks together."""

import math
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from cmrfed.config import Section
from cmrfed.data.draws import SliceBatch


class AugmentConfig(Section):
    """Ranges of uniform draws; 0 turns one off."""

    rotate_deg: float = Field(15.0, ge=0, le=180)
    scale: float = Field(0.1, ge=0, lt=0.5)
    """Relative: 0.1 is from 0.9 × to 1.1 ×."""
    shift_px: float = Field(2.0, ge=0)


def _uniform(count: int, reach: float, rng: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=rng) * 2 - 1) * reach


def augment(batch: SliceBatch, config: AugmentConfig, rng: torch.Generator) -> SliceBatch:
    """Rotate, scale and shift each item by its own draw: bilinear for images, nearest for labels."""
    count, size = len(batch), batch.image.shape[-1]
    angle = _uniform(count, math.radians(config.rotate_deg), rng)
    zoom = 1 + _uniform(count, config.scale, rng)
    shift = _uniform(count * 2, config.shift_px * 2 / size, rng).view(count, 2)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = functional.affine_grid(matrix, [count, 1, size, size], align_corners=False)
    labels = torch.stack([batch.mask, batch.basal, batch.ed], 1).float()
    image = functional.grid_sample(batch.image, grid, "bilinear", "border", align_corners=False)
    moved = functional.grid_sample(labels, grid, "nearest", "border", align_corners=False).long()
    return replace(batch, image=image, mask=moved[:, 0], basal=moved[:, 1], ed=moved[:, 2])

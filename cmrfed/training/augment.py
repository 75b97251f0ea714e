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
    context_scale: float = Field(0.15, ge=0, lt=0.5)
    """Of each mask that the mask stage is told, by itself: a drawn neighbour is never quite as large as a real one, and
    a stage that believes it to the pixel passes the error on to the apex (arXiv 2106.15282, section 3)."""
    context_shift_px: float = Field(1.5, ge=0)


def _uniform(count: int, reach: float, rng: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=rng) * 2 - 1) * reach


def _grid(count: int, size: int, rotate_deg: float, scale: float, shift_px: float, rng: torch.Generator) -> Tensor:
    """A sampling grid (B, H, W, 2) for each item, by its own draws."""
    angle = _uniform(count, math.radians(rotate_deg), rng)
    zoom = 1 + _uniform(count, scale, rng)
    shift = _uniform(count * 2, shift_px * 2 / size, rng).view(count, 2)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    return functional.affine_grid(matrix, [count, 1, size, size], align_corners=False)


def _move(labels: Tensor, grid: Tensor) -> Tensor:
    """Labels int64 (B, M, H, W) => the same, moved."""
    return functional.grid_sample(labels.float(), grid, "nearest", "border", align_corners=False).long()


def _finer(images: Tensor, margin: int) -> Tensor:
    """Images (B, 1, S, S) with a mirrored margin, P = S + 2 margin; band-limited to twice as many pixels, (B, 1, N, N).

    The spectrum is padded with zeros (N = 2 P, or 2 P - 1 where P is odd), so nothing is lost and nothing invented.
    """
    spectrum = torch.fft.fft2(functional.pad(images, (margin,) * 4, mode="reflect"))
    padded = functional.pad(torch.fft.fftshift(spectrum, dim=(-2, -1)), (spectrum.shape[-1] // 2,) * 4)
    finer = torch.fft.ifft2(torch.fft.ifftshift(padded, dim=(-2, -1))).real
    return finer * (padded.shape[-1] / spectrum.shape[-1]) ** 2


def _move_image(images: Tensor, grid: Tensor) -> Tensor:
    """Images float (B, 1, S, S) in [-1, 1] => the same, moved, with their fine detail."""
    size, margin = images.shape[-1], images.shape[-1] // 4
    finer, whole = _finer(images, margin), size + 2 * margin
    inside = grid * (size / whole) - 1 / whole + 1 / finer.shape[-1]  # the same places, by the finer image's pixels
    return functional.grid_sample(finer, inside, "bicubic", "border", align_corners=False).clamp(-1, 1)


def augment(batch: SliceBatch, config: AugmentConfig, rng: torch.Generator) -> SliceBatch:
    """Rotate, scale and shift each item by its own draw: band-limited for images, nearest for labels.

    Its neighbouring masks move along, and then a little by themselves. Bilinear images would lose half of their power
    at the highest frequencies, bicubic ones a fifth, and a generator learns what it is shown.
    """
    count, size = len(batch), batch.image.shape[-1]
    grid = _grid(count, size, config.rotate_deg, config.scale, config.shift_px, rng)
    image = _move_image(batch.image, grid)
    mask, basal, ed = _move(torch.stack([batch.mask, batch.basal, batch.ed], 1), grid).unbind(1)
    alone = [_grid(count, size, 0, config.context_scale, config.context_shift_px, rng) for _ in range(2)]
    basal, ed = (_move(context[:, None], own)[:, 0] for context, own in zip((basal, ed), alone, strict=True))
    return replace(batch, image=image, mask=mask, basal=basal, ed=ed)

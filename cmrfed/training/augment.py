"""Geometric augmentation that moves an image and all its masks together."""

import math
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from cmrfed.core.device import HOST, to_device
from cmrfed.data.draws import SliceBatch
from cmrfed.training.settings import AugmentConfig


def _uniform(count: int, reach: float, rng: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=rng) * 2 - 1) * reach


def _grid(
    count: int,
    size: int,
    rotate_deg: float,
    scale: float,
    shift_px: float,
    rng: torch.Generator,
    device: torch.device = HOST,
) -> Tensor:
    """A sampling grid (B, H, W, 2) for each item, by its own draws, on a device."""
    angle = _uniform(count, math.radians(rotate_deg), rng)
    zoom = 1 + _uniform(count, scale, rng)
    shift = _uniform(count * 2, shift_px * 2 / size, rng).view(count, 2)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    matrix = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    return functional.affine_grid(to_device(matrix, device), [count, 1, size, size], align_corners=False)


def _move(labels: Tensor, grid: Tensor) -> Tensor:
    """Labels int64 (B, M, H, W) => the same, moved."""
    return functional.grid_sample(labels.float(), grid, "nearest", "border", align_corners=False).long()


@lru_cache(maxsize=4)
def _finer(size: int, margin: int, device: torch.device) -> Tensor:
    """The matrix (N, S) that makes a row of S pixels, with a mirrored margin, band-limited to twice as many.

    The spectrum of the P = S + 2 margin pixels is padded with zeros (N = 2 P, or 2 P - 1 where P is odd), so nothing is
    lost and nothing invented.
    """
    mirrored = functional.pad(
        torch.eye(size, dtype=torch.float64, device=HOST)[None], (margin, margin), mode="reflect"
    )[0]
    spectrum = torch.fft.fftshift(torch.fft.fft(mirrored), dim=-1)
    padded = functional.pad(spectrum, (spectrum.shape[-1] // 2,) * 2)
    finer = torch.fft.ifft(torch.fft.ifftshift(padded, dim=-1)).real
    return to_device((finer * (padded.shape[-1] / spectrum.shape[-1])).T.float(), device)


def _move_image(images: Tensor, grid: Tensor) -> Tensor:
    """Images float (B, 1, S, S) in [-1, 1] => the same, moved, with their fine detail."""
    size, margin = images.shape[-1], images.shape[-1] // 4
    matrix, whole = _finer(size, margin, images.device), size + 2 * margin
    finer = matrix @ images @ matrix.T
    inside = grid * (size / whole) - 1 / whole + 1 / finer.shape[-1]  # the same places, by the finer image's pixels
    return functional.grid_sample(finer, inside, "bicubic", "border", align_corners=False).clamp(-1, 1)


def augment(batch: SliceBatch, config: AugmentConfig, rng: torch.Generator, *, with_images: bool = True) -> SliceBatch:
    """Rotate, scale and shift each item by its own draw: band-limited for images, nearest for labels.

    Its neighbouring masks move along, and then a little by themselves. Bilinear images would lose half of their power
    at the highest frequencies, bicubic ones a fifth, and a generator learns what it is shown.

    Args:
        batch: Left as it is.
        config: Ranges.
        rng: All draws come from it; a CPU generator.
        with_images: False: images stay where they are, for a stage that does not look at them.
    """
    count, size, device = len(batch), batch.image.shape[-1], batch.image.device
    grid = _grid(count, size, config.rotate_deg, config.scale, config.shift_px, rng, device)
    image = _move_image(batch.image, grid) if with_images else batch.image
    mask, basal, ed = _move(torch.stack([batch.mask, batch.basal, batch.ed], 1), grid).unbind(1)
    alone = [_grid(count, size, 0, config.context_scale, config.context_shift_px, rng, device) for _ in range(2)]
    basal, ed = (_move(context[:, None], own)[:, 0] for context, own in zip((basal, ed), alone, strict=True))
    return replace(batch, image=image, mask=mask, basal=basal, ed=ed)

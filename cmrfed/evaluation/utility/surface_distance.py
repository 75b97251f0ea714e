"""Distances between the surfaces of two volumes (Taha and Hanbury 2015, doi 10.1186/s12880-015-0068-x)."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

Spacing = tuple[float, float, float]
PIXELS: Spacing = (1.0, 1.0, 1.0)
"""Stands in where the spacing is unknown: distances are then in pixels, with slices one pixel apart."""


class SurfaceDistance(NamedTuple):
    """HD95, the larger of both directions' 95th percentile, and ASSD, the mean over both surfaces."""

    hd95: float
    assd: float


def surface_of(region: np.ndarray) -> np.ndarray:
    """Voxels of a bool (Z, H, W) region that share a face with the outside; beyond the volume is outside."""
    return region & ~ndimage.binary_erosion(region)


def surface_distance(found: np.ndarray, truth: np.ndarray, spacing: Spacing) -> SurfaceDistance | None:
    """Distance between two regions, bool (Z, H, W).

    Where only one of them is empty there is no distance: the diagonal of the volume stands for it, so that a missed
    structure is never better than a found one. None when both are empty.

    Args:
        found: The segmentation.
        truth: The annotation.
        spacing: Row, column and slice spacing.
    """
    steps = np.array([spacing[2], spacing[0], spacing[1]])
    if not found.any() or not truth.any():
        diagonal = float(np.linalg.norm(np.array(truth.shape) * steps))
        return SurfaceDistance(diagonal, diagonal) if found.any() or truth.any() else None
    box = ndimage.find_objects((found | truth).astype(np.uint8))[0]
    edges = [surface_of(np.pad(region[box], 1)) for region in (found, truth)]
    away = [ndimage.distance_transform_edt(~edge, steps) for edge in edges]
    there, back = away[1][edges[0]], away[0][edges[1]]
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return SurfaceDistance(float(hd95), float(np.concatenate([there, back]).mean()))

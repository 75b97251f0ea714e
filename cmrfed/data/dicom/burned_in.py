"""Text that is drawn into the pixels: looked for by what it does not share with tissue."""

import numpy as np
from scipy import ndimage

STILL_SHARE = 0.85
"""Least value, as a share of the largest of the cine, of pixels that count as drawn."""
LEAST_PIXELS = 24
LEAST_PIECES = 4
LARGEST_PX = 40
"""Longest side of a letter or line of letters."""


def looks_like_text(images: np.ndarray) -> bool:
    """Whether thin bright marks stay exactly as they are over all images of a slice, as no tissue under noise does.

    Args:
        images: (T, H, W), the phases of one slice, or the slices of a stack of one phase.
    """
    if len(images) < 2:
        return False
    still = (images == images[:1]).all(axis=0) & (images[0] >= STILL_SHARE * images.max()) & (images[0] > images.min())
    if int(still.sum()) < LEAST_PIXELS:
        return False
    labels, _ = ndimage.label(still, np.ones((3, 3)))
    pieces = [
        piece for piece in ndimage.find_objects(labels) if max(part.stop - part.start for part in piece) <= LARGEST_PX
    ]
    return len(pieces) >= LEAST_PIECES

"""Post-processing of drawn masks: by name, never by default, and counted by whoever writes the data set."""

from collections.abc import Callable, Mapping

import numpy as np
from skimage.measure import label

from cmrfed.data.labels import STRUCTURES
from cmrfed.synthesis.settings import PostProcessing


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Keep the largest piece of each structure on each slice; what falls away becomes background.

    Pieces that touch at a corner are one. Of pieces of one size the first from the top stays.

    Args:
        mask: uint8 (Z, H, W).
    """
    out = np.zeros_like(mask)
    for kept, drawn in zip(out, mask, strict=True):
        for structure in STRUCTURES:
            pieces = label(drawn == structure, connectivity=2)
            sizes = np.bincount(pieces.ravel())[1:]
            if sizes.size:
                kept[pieces == 1 + sizes.argmax()] = structure
    return out


_METHODS: Mapping[PostProcessing, Callable[[np.ndarray], np.ndarray]] = {"largest_component": largest_component}


def post_process(mask: np.ndarray, method: PostProcessing) -> np.ndarray:
    """Post-process the masks of a volume, uint8 (Z, H, W); "none" leaves them as they are."""
    return mask if method == "none" else _METHODS[method](mask)

"""A membership inference attack on images: who lies near the middle of the synthetic set?"""

import numpy as np

from cmrfed.evaluation.installed import InstalledAttack


def score(targets: np.ndarray, released: np.ndarray) -> np.ndarray:
    """Minus the distance of each slice to the mean synthetic slice."""
    return -np.linalg.norm(targets - released.mean(0), axis=1)


CENTROID = InstalledAttack("black-box", "minus the distance to the mean of the synthetic slices", score)

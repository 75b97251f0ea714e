"""A metric: how sharp synthetic images are, over how sharp those of the hold-out are."""

import numpy as np

from cmrfed.evaluation.installed import InstalledMetric, Sets
from cmrfed.evaluation.results.catalogue import Measure, metric
from cmrfed.evaluation.results.result import Findings


def _sharpness(images: np.ndarray) -> float:
    return float(np.hypot(*np.gradient(images, axis=(1, 2))).mean())


def compute(sets: Sets) -> Findings:
    """Compare the mean gradient of both sets."""
    ratio = _sharpness(sets.synthetic.images) / _sharpness(sets.holdout.images)
    return Findings(metrics=(metric("fidelity.sharpness", ratio, n=len(sets.synthetic.patients), reference=1.0),))


SHARPNESS = InstalledMetric(
    (
        Measure(
            "fidelity.sharpness", "Sharpness", "mean gradient over that of the hold-out", "multiple-of-holdout", None
        ),
    ),
    compute,
)

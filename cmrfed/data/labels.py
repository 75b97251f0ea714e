"""The canonical labels and phases, and how each public source numbers them."""

from collections.abc import Mapping
from enum import IntEnum

import numpy as np

from cmrfed.core.errors import DataError


class Label(IntEnum):
    """What a mask voxel shows; the order is that of ACDC (Bernard et al., IEEE TMI 2018)."""

    BACKGROUND = 0
    RV = 1
    MYO = 2
    LV = 3


class Phase(IntEnum):
    """The two annotated moments of the cardiac cycle."""

    ED = 0
    ES = 1


WHOLE = 1e-3
"""Distance from a whole number below which a mask's value counts as that number."""
STRUCTURES = (Label.LV, Label.MYO, Label.RV)

ACDC_LABELS = {0: Label.BACKGROUND, 1: Label.RV, 2: Label.MYO, 3: Label.LV}
MNMS_LABELS = {0: Label.BACKGROUND, 1: Label.LV, 2: Label.MYO, 3: Label.RV}


def to_canonical(mask: np.ndarray, mapping: Mapping[int, Label], where: str = "mask") -> np.ndarray:
    """Map source labels to canonical ones.

    Args:
        mask: Any shape, integral values; what a scale factor in the header adds to them (2.9999) is rounded off.
        mapping: Source value → label.
        where: Named in the error.

    Returns:
        uint8 array of the same shape.

    Raises:
        DataError: The mask holds a value that is not integral or not in the mapping.
    """
    with np.errstate(invalid="ignore"):
        if mask.dtype.kind == "f":
            whole = np.rint(mask)
            mask = np.where(np.abs(mask - whole) < WHOLE, whole, mask)
        values = np.unique(mask)
    strange = [float(v) for v in values if not float(v).is_integer() or int(v) not in mapping]
    if strange:
        raise DataError(
            f"{where} holds unexpected labels",
            got=strange[:8],
            expected=sorted(mapping),
            do="check that the file is a label map and that --source names its data set",
        )
    table = np.zeros(max(mapping) + 1, np.uint8)
    for source, label in mapping.items():
        table[source] = label
    return table[mask.astype(np.int64)]

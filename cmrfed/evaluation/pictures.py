"""Pictures of what was measured."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmrfed.data.pictures import enlarge, grey, outlined, save_png, sheet

if TYPE_CHECKING:
    from cmrfed.evaluation.privacy.nearest import Neighbours
    from cmrfed.evaluation.slices import SliceSet

COLUMNS, ROWS, FACTOR = 8, 3, 2
_SMALL_PX = 100
REAL_PATIENTS = ("holdout", "nearest")
"""Pictures that show real patients."""


def _bigger(picture: np.ndarray) -> np.ndarray:
    return enlarge(picture, FACTOR) if len(picture) < _SMALL_PX else picture


def _grid(slices: "SliceSet", rng: np.random.Generator) -> np.ndarray:
    """Random slices, without and with the outlines of their masks: rows in turn."""
    chosen = rng.choice(len(slices), min(ROWS * COLUMNS, len(slices)), replace=False)
    rows = []
    for start in range(0, len(chosen), COLUMNS):
        part = chosen[start : start + COLUMNS]
        rows.append([_bigger(grey(slices.images[i])) for i in part])
        rows.append([_bigger(outlined(slices.images[i], slices.masks[i])) for i in part])
    return sheet(rows)


def _nearest_pairs(synthetic: "SliceSet", train: "SliceSet", to_train: "Neighbours") -> np.ndarray:
    """The synthetic slices that lie nearest to a training slice (above), and that slice (below)."""
    distance, row = to_train.nearest()
    closest = np.argsort(distance)[:COLUMNS]
    above = [_bigger(grey(synthetic.images[i])) for i in closest]
    below = [_bigger(grey(train.images[row[i]])) for i in closest]
    return sheet([above, below])


def draw_pictures(
    folder: Path,
    synthetic: "SliceSet",
    train: "SliceSet",
    holdout: "SliceSet",
    to_train: "Neighbours",
    *,
    show_real: bool,
    seed: int,
) -> None:
    """Write the pictures; those that show real patients only when ``show_real`` is set, else they are removed.

    ``synthetic.png``: random synthetic slices. ``holdout.png``: as many of the hold-out. ``nearest.png``: the
    synthetic slices nearest to a training slice, with that slice.
    """
    save_png(folder / "synthetic.png", _grid(synthetic, np.random.default_rng(seed)))
    if show_real:
        save_png(folder / "holdout.png", _grid(holdout, np.random.default_rng(seed)))
        save_png(folder / "nearest.png", _nearest_pairs(synthetic, train, to_train))
        return
    for name in REAL_PATIENTS:
        (folder / f"{name}.png").unlink(missing_ok=True)

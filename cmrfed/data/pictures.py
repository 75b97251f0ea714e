"""Slices as pictures: grey images, masks drawn over them, sheets of many."""

from pathlib import Path

import numpy as np
from PIL import Image

from cmrfed.data.labels import Label

COLOURS = {Label.RV: (86, 180, 233), Label.MYO: (240, 228, 66), Label.LV: (213, 94, 0)}
"""Okabe & Ito's palette, which colour-blind readers can tell apart."""


def grey(image: np.ndarray) -> np.ndarray:
    """Image (H, W) in [-1, 1] => uint8 (H, W, 3)."""
    level = np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.repeat(level[..., None], 3, -1)


def outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Image (H, W) with the inner border of each structure of the mask (H, W) drawn in: uint8 (H, W, 3)."""
    out = grey(image)
    for label, colour in COLOURS.items():
        inside = mask == label
        padded = np.pad(inside, 1)
        core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        out[inside & ~core] = colour
    return out


def coloured(mask: np.ndarray) -> np.ndarray:
    """Mask (H, W) as flat colours: uint8 (H, W, 3)."""
    out = np.full((*mask.shape, 3), 24, np.uint8)
    for label, colour in COLOURS.items():
        out[mask == label] = colour
    return out


def enlarge(picture: np.ndarray, factor: int) -> np.ndarray:
    """Repeat each pixel: uint8 (H, W, 3) => (H * factor, W * factor, 3)."""
    return picture.repeat(factor, 0).repeat(factor, 1)


def sheet(rows: list[list[np.ndarray]], gap: int = 2) -> np.ndarray:
    """Pictures of one size, in rows that may differ in length => one picture on white."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    out = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            out[r * (height + gap) : r * (height + gap) + height, c * (width + gap) : c * (width + gap) + width] = (
                picture
            )
    return out


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, optimize=True)

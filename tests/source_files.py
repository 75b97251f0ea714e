"""Small data sets on disk, in the layouts of the public sources."""

from pathlib import Path

import nibabel as nib
import numpy as np

from cmrfed.data.labels import Label

REAL_SPACING = (1.5, 1.25, 10.0)


def short_axis(
    slices: int = 6, shape: tuple[int, int] = (80, 96), centre: tuple[int, int] = (36, 52), squeeze: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A heart of discs in (Z, Y, X), base first: image float, mask canonical. RV to the left of the LV."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros((slices, *shape), np.uint8)
    for z in range(slices):
        size = 12 - z
        rv = np.hypot(y - centre[0], x - centre[1] + size) < size
        distance = np.hypot(y - centre[0], x - centre[1])
        mask[z][rv & (z < slices - 1)] = Label.RV
        mask[z][distance < size] = Label.MYO
        mask[z][distance < squeeze * (size - 3)] = Label.LV
    brightness = np.array([60.0, 200.0, 90.0, 220.0])
    return brightness[mask] + np.random.default_rng(0).normal(0, 4, mask.shape), mask


def save(path: Path, zyx: np.ndarray, spacing: tuple[float, float, float] | None = REAL_SPACING) -> Path:
    """Write (Z, Y, X[, T]) as NIfTI (X, Y, Z[, T]); spacing is (x, y, z) in mm, None is an identity affine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = zyx.transpose(2, 1, 0, *range(3, zyx.ndim))
    affine = np.eye(4) if spacing is None else np.diag([*spacing, 1.0])
    nib.save(nib.Nifti1Image(data.astype(np.uint8 if zyx.dtype == np.uint8 else np.float32), affine), path)
    return path


def acdc_patient(
    folder: Path,
    group: str | None = "NOR",
    *,
    spacing: tuple[float, float, float] | None = REAL_SPACING,
    masks: bool = True,
    upside_down: bool = False,
    suffix: str = ".nii.gz",
    info: bool = True,
) -> Path:
    """Write a patient in ACDC layout, with pixels of its own by its name: frame 1 is ED, frame 9 is ES."""
    own = sum(folder.name.encode())
    order = slice(None, None, -1 if upside_down else 1)
    for frame, squeeze in ((1, 1.0), (9, 0.6)):
        image, mask = short_axis(squeeze=squeeze)
        save(folder / f"{folder.name}_frame{frame:02d}{suffix}", image[order] + own, spacing)
        if masks:
            save(folder / f"{folder.name}_frame{frame:02d}_gt{suffix}", mask[order], spacing)
    if info:
        (folder / "Info.cfg").write_text("ED: 1\nES: 9\n" + (f"Group: {group}\n" if group else ""))
    return folder

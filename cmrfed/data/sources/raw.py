"""What a source yields: patients whose volumes are read from NIfTI only when they are asked for."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from cmrfed.data.labels import Label, Phase, to_canonical
from cmrfed.data.sources.walk import SUFFIXES, stem_of, walk
from cmrfed.errors import DataError

__all__ = ["SUFFIXES", "RawArrays", "RawPatient", "RawVolume", "find_nifti", "nifti_files", "read_nifti", "stem_of"]

_UNREADABLE = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,
    zlib.error,
)
PLAUSIBLE_MM = (0.4, 4.0)
"""In-plane voxel spacing of cine cardiac MRI; a header outside this range says nothing."""


@dataclass(frozen=True)
class RawArrays:
    """The pixels of one volume as the file stores them, slices first.

    image: float32 (Z, H, W), any range. mask: uint8 (Z, H, W) canonical, or None.
    spacing_mm: row, column, slice; None when the header does not know, and ``spacing_note`` says why.
    """

    image: np.ndarray
    mask: np.ndarray | None
    spacing_mm: tuple[float, float, float] | None
    spacing_note: str | None = None


@dataclass(frozen=True)
class RawVolume:
    """One phase of one patient on disk; ``frame`` is the 0-based time index of a 4-D file."""

    phase: Phase
    image_path: Path
    mask_path: Path | None
    labels: Mapping[int, Label]
    frame: int | None = None

    def load(self) -> RawArrays:
        """Read image, mask and spacing.

        Raises:
            DataError: A file cannot be read, has another number of axes, holds unknown labels, or the mask does
                not have the shape of the image.
        """
        image, (spacing, note) = read_nifti(self.image_path, self.frame)
        if self.mask_path is None:
            return RawArrays(image.astype(np.float32), None, spacing, note)
        mask = to_canonical(read_nifti(self.mask_path, self.frame)[0], self.labels, str(self.mask_path))
        if mask.shape != image.shape:
            raise DataError(
                f"{self.mask_path} does not fit its image",
                got=f"(slices, rows, columns) {mask.shape}",
                expected=f"{image.shape}, as in {self.image_path.name}",
                do="export the mask again on the grid of its image",
            )
        return RawArrays(image.astype(np.float32), mask, spacing, note)


@dataclass(frozen=True)
class RawPatient:
    """A patient of a source.

    problem: Why it cannot be used; ``volumes`` is empty then. skipped: There is a problem because the table names a
    patient whose images are elsewhere, so nothing is wrong with the files. phases_assumed: The source does not say
    which volume is ED and which ES; the order is a first guess.
    """

    patient_id: str
    volumes: tuple[RawVolume, ...]
    group: str | None = None
    vendor: str | None = None
    centre: str | None = None
    notes: tuple[str, ...] = ()
    path: Path = field(default_factory=Path)
    problem: DataError | None = None
    skipped: bool = False
    phases_assumed: bool = False


def no_patients(src: Path, layout: str, example: str) -> DataError:
    """What to say where no file below ``src`` fits a layout."""
    return DataError(
        f"{src} holds no patient in {layout} layout",
        expected=f"{example}, at any depth",
        do="check the folder, or name the right --source",
    )


def guarded(patient_id: str, path: Path, build: Callable[[], RawPatient]) -> RawPatient:
    """Build a patient, or one that carries the reason why it cannot be used, so that the others go on."""
    try:
        return build()
    except DataError as error:
        return RawPatient(patient_id, (), path=path, problem=error)


def find_nifti(folder: Path, stem: str) -> Path | None:
    """Return ``folder/stem.nii.gz`` or ``folder/stem.nii``, or None when neither is a file."""
    return next((p for s in SUFFIXES if (p := folder / f"{stem}{s}").is_file()), None)


def nifti_files(root: Path) -> list[Path]:
    """All NIfTI files below ``root`` that may be read, in order of path; see :mod:`cmrfed.data.sources.walk`.

    Raises:
        DataError: ``root`` is not a folder.
    """
    return walk(root).nifti


def read_nifti(
    path: Path, frame: int | None = None
) -> tuple[np.ndarray, tuple[tuple[float, float, float] | None, str | None]]:
    """Read a volume as (Z, Y, X); NIfTI stores (X, Y, Z[, T]).

    Args:
        path: .nii or .nii.gz.
        frame: Time index of a 4-D file; None reads a 3-D file.

    Returns:
        The array in the file's own type after scaling, and (spacing, note) of :func:`spacing_of`.

    Raises:
        DataError: The file cannot be read, or has another number of axes or fewer frames.
    """
    try:
        file: Any = nib.load(path)
        _check_shape(path, file, frame)
        array = np.asanyarray(file.dataobj if frame is None else file.dataobj[..., frame])
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read", got=error, expected="a NIfTI file", do="restore the file") from None
    return array.reshape(file.shape[:3]).transpose(2, 1, 0), spacing_of(file)


def _check_shape(path: Path, file: Any, frame: int | None) -> None:
    shape = file.shape[:3] + tuple(n for n in file.shape[3:] if n > 1 or frame is not None)
    fits = len(shape) == 3 if frame is None else len(shape) == 4 and 0 <= frame < shape[3]
    if not fits or 0 in shape or file.get_data_dtype().fields:
        wanted = "(X, Y, slices)" if frame is None else f"(X, Y, slices, frames) with frame {frame}"
        raise DataError(
            f"{path} is not an image of that kind",
            got=f"shape {file.shape}, {file.get_data_dtype()}",
            expected=f"{wanted}, plain numbers",
        )


def spacing_of(file: Any) -> tuple[tuple[float, float, float] | None, str | None]:
    """Read row, column and slice spacing in mm from a NIfTI header, or None with the reason.

    Tools that lose the spacing write 1 × 1 × 1 mm with the identity (or its mirror) as affine; such a header
    is taken as "unknown", as is one whose in-plane spacing no cine scan has (see ``PLAUSIBLE_MM``).
    """
    zooms = tuple(float(v) for v in file.header.get_zooms()[:3])
    if zooms == (1.0, 1.0, 1.0) and np.array_equal(np.abs(file.affine), np.eye(4)):
        return None, "spacing unknown: the header says 1 mm with an identity affine"
    low, high = PLAUSIBLE_MM
    if not (low <= zooms[0] <= high and low <= zooms[1] <= high and 0 < zooms[2] < np.inf):
        return None, f"spacing unknown: the header's {zooms} mm is not plausible"
    return (zooms[1], zooms[0], zooms[2]), None

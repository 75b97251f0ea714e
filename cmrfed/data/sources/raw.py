"""What a source yields: patients whose volumes are read from NIfTI only when they are asked for."""

import gzip
import math
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from cmrfed.core.errors import DataError
from cmrfed.data.geometry.affine import Frame, Grid, grid_of, view_of
from cmrfed.data.geometry.overlay import lay
from cmrfed.data.labels import Label, Phase, to_canonical
from cmrfed.data.sources.walk import SUFFIXES, stem_of, walk

__all__ = ["SUFFIXES", "RawArrays", "RawPatient", "RawVolume", "find_nifti", "nifti_files", "read_nifti", "stem_of"]

MOST_BYTES = 4 << 30
"""Largest content of one file that is read."""
MOST_VOXELS = 1 << 28
"""Largest number of voxels of one volume: 80 times those of a large cine scan."""
_LONGEST_HEADER = 544
_BLOCK = 1 << 20


@dataclass(frozen=True)
class RawArrays:
    """The pixels of one volume in the short-axis view of :mod:`cmrfed.data.geometry.affine`.

    image: float32 (Z, H, W), any range. mask: uint8 (Z, H, W) canonical, or None.
    spacing_mm: row, column, slice; None when the header does not know, and ``notes`` say why.
    frame: what the affine says of the patient. base_first: whether the affine says that the first slice is the base.
    notes: what had to be assumed to bring it into this view.
    """

    image: np.ndarray
    mask: np.ndarray | None
    spacing_mm: tuple[float, float, float] | None
    frame: Frame = Frame.ALIGNED
    base_first: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawVolume:
    """One phase of one patient on disk; ``frame`` is the 0-based time index of a 4-D file."""

    phase: Phase
    image_path: Path
    mask_path: Path | None
    labels: Mapping[int, Label]
    frame: int | None = None

    def load(self) -> RawArrays:
        """Read image, mask and spacing; lay the mask on its image and turn both into the short-axis view.

        Raises:
            DataError: A file cannot be read, has another number of axes, holds unknown labels, does not say where its
                slices lie, or mask and image cannot be reconciled.
        """
        image, grid = read_nifti(self.image_path, self.frame)
        with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are found as such
            image = image.astype(np.float32)
        mask, notes = None, grid.notes
        view = view_of(grid)
        if self.mask_path is not None:
            stored, mask_grid = read_nifti(self.mask_path, self.frame)
            drawn = to_canonical(stored, self.labels, str(self.mask_path))
            mask, more = lay(drawn, mask_grid, image, grid, str(self.mask_path))
            mask, notes = np.ascontiguousarray(view.of(mask)), (*notes, *more)
        spacing = grid.spacing
        if spacing is not None:
            normal, row, column = view.axes
            spacing = (spacing[row], spacing[column], spacing[normal])
        return RawArrays(np.ascontiguousarray(view.of(image)), mask, spacing, grid.frame, view.base_first, notes)


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
    keep: Callable[[Path, bool], None] | None = None
    """Writes what is kept of the patient beside the cohort, given its folder and whether the patient is in it."""


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


def read_nifti(path: Path, frame: int | None = None) -> tuple[np.ndarray, Grid]:
    """Read a volume as it is stored, to the last byte: a gzip file whose checksum does not fit is refused.

    Args:
        path: .nii or .nii.gz.
        frame: Time index of a 4-D file; None reads a 3-D file.

    Returns:
        The array (3 axes, in stored order) in the file's own type after scaling, and its grid.

    Raises:
        DataError: The file cannot be read, has another number of axes or fewer frames, or its header contradicts
            itself (see :func:`cmrfed.data.geometry.affine.grid_of`).
    """
    try:
        stat = path.stat()
        file = _open(path, stat.st_mtime_ns, stat.st_size)
        shape = _shape(path, file, frame)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # overflowing scale factors: the values that result are looked at later
            array = np.asanyarray(file.dataobj).reshape(shape)
            grid = grid_of(file, str(path))
    except DataError:
        raise
    except Exception as error:  # nibabel and zlib raise many kinds for a damaged file
        raise DataError(f"{path} cannot be read", got=error, expected="a NIfTI file", do="restore the file") from None
    return (array if frame is None else array[..., frame]), grid


@lru_cache(maxsize=2)
def _open(path: Path, _modified: int, size: int) -> Any:
    """The file with its whole content; the last two are kept, since both phases may lie in one image and one mask."""
    if not path.name.lower().endswith(".gz"):
        file: Any = nib.load(path)
        if _declared(file.header) > size:
            raise ValueError(f"the header declares {_declared(file.header)} bytes, the file has {size}")
        return file
    try:
        with gzip.open(path) as handle:
            start = handle.read(_LONGEST_HEADER)
            kind = nib.Nifti2Image if start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
            header = kind.header_class(start[: kind.header_class.template_dtype.itemsize], check=False)
            content = start + _rest(handle, _declared(header))
    except (OSError, EOFError, zlib.error) as error:
        raise OSError(f"the file is truncated or damaged: {error}") from None
    return kind.from_bytes(content)


def _declared(header: Any) -> int:
    """How many bytes a header says that its file has, before memory is taken for them.

    Raises:
        ValueError: They are none, or more than a scan has.
    """
    shape = tuple(int(n) for n in header.get_data_shape())
    size = int(header.get_data_offset()) + math.prod(shape) * int(header.get_data_dtype().itemsize)
    if not shape or min(shape) <= 0 or size > MOST_BYTES or math.prod(shape[:3]) > MOST_VOXELS:
        raise ValueError(f"the header declares shape {shape} and {size} bytes, which no scan has")
    return size


def _rest(handle: gzip.GzipFile, wanted: int) -> bytes:
    """The next ``wanted`` bytes or some more; what follows is read too, for the checksum at the end, and dropped."""
    blocks, length = [], 0
    while block := handle.read(_BLOCK):
        if length <= wanted:
            blocks.append(block)
        length += len(block)
        if length > MOST_BYTES:
            raise ValueError(f"the file has more than {MOST_BYTES} bytes, which no scan has")
    return b"".join(blocks)


def _shape(path: Path, file: Any, frame: int | None) -> tuple[int, ...]:
    """The shape without trailing axes of one: 3 axes, or 4 with ``frame``."""
    shape = tuple(file.shape[:3]) + tuple(n for n in file.shape[3:] if n > 1)
    if frame is not None and len(shape) == 3 and len(file.shape) > 3:
        shape = (*shape, 1)
    fits = len(shape) == 3 if frame is None else len(shape) == 4 and 0 <= frame < shape[3]
    plain = isinstance(file, nib.Nifti1Image | nib.Nifti2Image) and file.get_data_dtype().kind in "iufb"
    if not fits or 0 in shape or not plain:
        wanted = "(X, Y, slices)" if frame is None else f"(X, Y, slices, frames) with frame {frame}"
        raise DataError(
            f"{path} is not an image of that kind",
            got=f"shape {file.shape}, {file.get_data_dtype()}",
            expected=f"{wanted}, plain numbers",
        )
    return shape

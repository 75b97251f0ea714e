"""Pixels of a stack, decoded one image at a time and brought onto one grid."""

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from scipy import ndimage

from cmrfed.core.errors import DataError
from cmrfed.data.dicom.headers import Image
from cmrfed.data.dicom.stack import Stack
from cmrfed.data.geometry.affine import Frame, Grid
from cmrfed.data.pictures import grey, sheet

EXTRA = "pip install 'cmrfed[dicom-jpeg]'"
MOST_VALUES = 1 << 28
"""Largest number of values of one cine: twenty times those of a large one."""
TILE_PX, MOST_TILES = 192, 36
"""Largest side of an image in a picture, and the most images of one."""
OFF_GRID = 0.25
"""Largest displacement in plane, in pixels, at which a slice counts as lying on the common grid."""


def stored(image: Image) -> np.ndarray:
    """The pixels of an image, float32 (rows, columns): rescaled, and with bright tissue bright.

    Raises:
        DataError: They cannot be decoded. The message quotes nothing of the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            info = Dataset()
            array = _decoded(image, info)
    except Exception as error:  # decoders raise many kinds, whose texts quote the file
        raise _undecoded(image, error) from None
    if array.shape != image.header.shape:
        raise DataError("an image has other pixels than its header says", got=array.shape, expected=image.header.shape)
    values = array.astype(np.float32)
    if image.header.inverted:
        low, high = _range(info)
        values = low + high - values
    return values * np.float32(image.slope) + np.float32(image.intercept)


def _decoded(image: Image, info: Dataset) -> np.ndarray:
    """The stored values of an image; ``info`` is given the attributes of its pixels."""
    index = 0 if image.frame is None else image.frame
    try:
        if image.frame is None:
            return pixel_array(image.header.path, ds_out=info, index=index)
        whole, found = _frames(image.header.path)
        info.update(found)
        return whole[index]
    except (AttributeError, pydicom.errors.InvalidDicomError):  # without file meta information
        data = pydicom.dcmread(image.header.path, force=True)
        implicit = data.original_encoding[0]
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        info.BitsStored, info.PixelRepresentation = data.BitsStored, data.PixelRepresentation
        array = data.pixel_array
        return array if array.ndim == 2 else array[index]


@lru_cache(maxsize=1)
def _frames(path: Path) -> tuple[np.ndarray, Dataset]:
    """All frames of an object, whose header is long: it is read once for all of them."""
    info = Dataset()
    array = pixel_array(path, ds_out=info)
    return array[None] if array.ndim == 2 else array, info


def _range(info: Dataset) -> tuple[int, int]:
    bits, signed = int(info.BitsStored), int(info.get("PixelRepresentation") or 0)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def _undecoded(image: Image, error: Exception) -> DataError:
    """What to say of pixels that cannot be decoded: a decoder may be missing."""
    syntax = None
    try:
        syntax = pydicom.filereader.read_file_meta_info(image.header.path).get("TransferSyntaxUID")
    except Exception:
        syntax = None
    if syntax is not None and syntax.is_compressed and isinstance(error, RuntimeError | NotImplementedError):
        return DataError(
            "the pixels are compressed in a way that needs another decoder",
            got=syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax",
            expected="uncompressed, RLE, JPEG baseline or JPEG 2000 without the extra",
            do=EXTRA,
        )
    return DataError("the pixels of an image are damaged", got=type(error).__name__, do="export the study again")


@lru_cache(maxsize=1)
def cine(stack: Stack) -> np.ndarray:
    """All pixels of a stack: float32 (phases, slices, rows, columns); the last stack that was asked for is kept.

    Slices of another size, spacing or place in plane are resampled (linear) onto the grid of the reference.

    Raises:
        DataError: An image cannot be decoded, or they would take more memory than a cine does.
    """
    rows, columns = stack.reference.header.shape
    shape = (stack.phases, len(stack.images), rows, columns)
    if np.prod(shape, dtype=np.int64) > MOST_VALUES:
        raise DataError("the stack is larger than any cine", got=f"{shape} phases, slices, rows, columns")
    out = np.empty(shape, np.float32)
    for z, images in enumerate(stack.images):
        for t, image in enumerate(images):
            out[t, z] = _on_grid(image, stack.reference)
    out.flags.writeable = False
    return out


def _on_grid(image: Image, reference: Image) -> np.ndarray:
    pixels = stored(image)
    start, step = placing(image, reference)
    same = image.header.shape == reference.header.shape and np.abs(start).max() <= OFF_GRID
    if same and np.abs(step - 1).max() * max(image.header.shape) <= OFF_GRID:
        return pixels
    return ndimage.affine_transform(
        pixels, step, start, output_shape=reference.header.shape, order=1, mode="constant", cval=float(pixels.min())
    )


def placing(image: Image, reference: Image) -> tuple[np.ndarray, np.ndarray]:
    """Where the reference's pixels lie in an image: place of the first and steps, (row, column) in its pixels."""
    directions = np.array(reference.orientation).reshape(2, 3)
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    apart = directions @ (np.array(reference.position) - np.array(image.position))
    start = np.array([apart[1] / image.spacing[0], apart[0] / image.spacing[1]])
    return start, np.array(reference.spacing) / np.array(image.spacing)


def sheet_of(images: Sequence[Image]) -> np.ndarray:
    """The images side by side, each in its own range: uint8 (H, W, 3); what cannot be decoded is left black."""
    tiles, side = [], min(TILE_PX, max(max(image.header.shape) for image in images))
    for image in images[:MOST_TILES]:
        try:
            pixels = stored(image)
        except DataError:
            pixels = np.zeros(image.header.shape, np.float32)
        low, high = np.percentile(pixels, (1, 99))
        shown = 2 * (pixels - low) / max(high - low, 1e-6) - 1
        part = shown[:: (step := -(-max(pixels.shape) // side)), ::step]
        tile = np.full((side, side), -1.0)
        tile[: part.shape[0], : part.shape[1]] = part
        tiles.append(grey(tile))
    return sheet([tiles[i : i + 6] for i in range(0, len(tiles), 6)])


def grid_of_stack(stack: Stack) -> Grid:
    """Where the voxels lie: axes (columns, rows, slices), in the axes of NIfTI (right, anterior, superior)."""
    directions = np.array(stack.reference.orientation).reshape(2, 3)
    rows, columns = stack.reference.header.shape
    row_mm, column_mm, slice_mm = stack.spacing_mm
    normal = np.cross(directions[0], directions[1])
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([directions[0] * column_mm, directions[1] * row_mm, normal * slice_mm])
    affine[:3, 3] = _first_corner(stack, normal)
    affine[:2] *= -1
    shape = (columns, rows, len(stack.images))
    return Grid(shape, affine, (column_mm, row_mm, slice_mm), Frame.PATIENT, True, False, 2)


def _first_corner(stack: Stack, normal: np.ndarray) -> np.ndarray:
    """Place of the first pixel of the first slice on the common grid."""
    reference = np.array(stack.reference.position)
    first = np.array(stack.images[0][0].position)
    return reference + normal * float(normal @ (first - reference))

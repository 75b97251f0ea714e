"""Where the voxels of a file lie in the patient: spacing, slice axis, orientation, and a mask brought onto its image.

Arrays are shown as a short-axis view is shown: slices first, rows from the anterior to the inferior wall, columns from
the right ventricle to the lateral wall. The choice depends on the affine alone, that is on where voxels lie in space,
so the 48 orders in which one scan can be stored (axes permuted, axes reversed) give the same array.

The directions of a short-axis view in patient coordinates are the mean over two cine studies as their scanners wrote
them (DICOM Image Orientation (Patient), PS3.3 C.7.6.2): Siemens, columns (.79, 0, .61) and rows (.38, .79, -.49); GE,
columns (.69, .67, .26) and rows (.02, .34, -.94), each towards left, posterior, superior. Columns times rows points to
the base: a short-axis view is seen from the apex. DICOM counts to the left and posterior, NIfTI to the right and
anterior, so the first two components change sign.
"""

from dataclasses import dataclass
from enum import Enum
from itertools import permutations, product
from typing import Any

import numpy as np

from cmrfed.core.errors import DataError

COLUMNS = np.array([-0.80, -0.37, 0.47])
"""Direction of rising columns in a short-axis view: right, anterior, superior components."""
ROWS = np.array([-0.22, -0.60, -0.77])
"""Direction of rising rows."""
BASE = np.array([0.56, -0.72, 0.41])
"""Direction from the apex to the base."""
UPRIGHT = np.array([-0.3, -0.3, 0.9])
"""Direction of rising slices where the affine is parallel to the axes of the patient."""
STORED = (np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 1.0]))
"""Columns, rows and slices of a file whose affine is a default: first axis, second axis, in rising order."""

PLAUSIBLE_MM = (0.4, 4.0)
"""In-plane voxel spacing of cine cardiac MRI; a header outside this range says nothing."""
MOST_SLICE_MM = 50.0
"""Largest slice spacing that is believed."""
LONGEST_STACK_MM = 300.0
"""Largest length of a short-axis stack; a longer one has its spacing on the wrong axis."""
LEAST_FIELD_MM = 40.0
"""Least in-plane width of a short-axis image."""
CLEARLY = 1.5
"""How many times the others the slice spacing is where it alone tells the slice axis."""
SHEAR = 0.035
"""Largest cosine between two axes of a grid that counts as rectangular (2 degrees)."""
ALIGNED_COSINE = 0.9995
"""An axis within 1.8 degrees of an axis of the patient is parallel to it."""
SHORT_AXIS_COSINE = 0.5
"""Least cosine between slice normal and BASE at which the normal tells base from apex."""
SAME_VOXEL = 0.5
"""Largest distance, in voxels, between the places of one voxel in two grids that count as the same grid."""
_UNIT_MM = {1: 1000.0, 3: 0.001}
_ONE = 1e-4


class Frame(Enum):
    """What an affine says of the patient."""

    PATIENT = "oblique, as scanners write short-axis stacks"
    ALIGNED = "parallel to the patient's axes, which no short-axis stack is: spacing, but not anatomy"
    LOST = "no affine, or a default one"


@dataclass(frozen=True)
class Grid:
    """The voxels of one file in space.

    shape: stored axes. affine: (4, 4), voxel indices → right, anterior, superior in mm. spacing: mm along each stored
    axis, or None. placed: whether the affine holds a rotation or a position, which defaults do not. stored: whether
    the affine is that of a file whose first voxel lies at the origin with rising axes, as array libraries write it.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    spacing: tuple[float, float, float] | None
    frame: Frame
    placed: bool
    stored: bool
    slice_axis: int
    notes: tuple[str, ...] = ()

    @property
    def directions(self) -> np.ndarray:
        """Unit vectors of the stored axes as columns (3, 3)."""
        return _directions(self.affine)


@dataclass(frozen=True)
class View:
    """How a stored array becomes (slices, rows, columns): the stored axis of each, and whether it is reversed."""

    axes: tuple[int, int, int]
    reverse: tuple[bool, bool, bool]
    base_first: bool
    """Whether the slice normal says that the first slice is the base."""

    def of(self, array: np.ndarray) -> np.ndarray:
        """The array (3 axes, as stored) in this view."""
        turned = array.transpose(self.axes)
        return turned[tuple(slice(None, None, -1 if back else 1) for back in self.reverse)]


# --- what a header says -----------------------------------------------------------------------
def grid_of(file: Any, where: str) -> Grid:
    """Read the grid of a NIfTI file.

    sform and qform are believed when their codes say so, they are invertible, and they are more than a default; the
    spacing comes from the affine or from pixdim, whichever is plausible, and is unknown where neither is. A default of
    1 mm is believed only beside a rotation or a position. Units of the header (m, mm, µm) are applied when the result
    is plausible.

    Args:
        file: A nibabel image of at least three axes.
        where: Named in errors.

    Raises:
        DataError: The affine is sheared, or its spacing and the number of voxels contradict each other on which axis
            the slices lie.
    """
    shape = (int(file.shape[0]), int(file.shape[1]), int(file.shape[2]))
    header = file.header
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], float))
    affine = _affine(header, shape)
    unit, notes = _unit(int(header["xyzt_units"]) & 7, affine, pixdim)
    if affine is None:
        frame, placed, candidates = Frame.LOST, False, {}
        affine = np.eye(4)
    else:
        affine = np.vstack([affine[:3] * unit, [0, 0, 0, 1]])
        _refuse_sheared(affine, where)
        oblique = not _is_aligned(affine)
        placed = oblique or not _corner_at_origin(affine, shape)
        frame = Frame.PATIENT if oblique else Frame.ALIGNED
        candidates = {"affine": np.linalg.norm(affine[:3, :3], axis=0)}
    spacing, note = _spacing(shape, {**candidates, "pixdim": pixdim * unit}, placed)
    if not placed and (spacing is None or "affine" not in candidates or _is_one(candidates["affine"]).all()):
        frame = Frame.LOST
    stored = not placed and _is_rising(affine, shape)
    if spacing is not None:
        affine = _scaled(affine, np.array(spacing), placed)
    axis, doubt = _slice_axis(shape, spacing, affine, frame, where)
    notes = (*notes, *(n for n in (note, doubt) if n))
    return Grid(shape, affine, spacing, frame, placed, stored, axis, notes)


def _affine(header: Any, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The sform or the qform: the first that is usable, one that is more than a default before others; None without."""
    from nibabel.spatialimages import HeaderDataError  # by whoever read the header it is loaded

    found = []
    for read, code in ((header.get_sform, "sform_code"), (header.get_qform, "qform_code")):
        if int(header[code]) <= 0:
            continue
        try:
            affine = np.asarray(read(), float)
        except (ValueError, HeaderDataError):  # a quaternion that is none
            continue
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if np.isfinite(affine).all() and lengths.min() > 0 and abs(np.linalg.det(affine[:3, :3] / lengths)) > 0.1:
            found.append(affine)
    return min(found, key=lambda a: _is_default(a, shape), default=None)


def _is_default(affine: np.ndarray, shape: tuple[int, int, int]) -> bool:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(_is_aligned(affine) and _is_one(lengths).all() and _corner_at_origin(affine, shape))


def _directions(affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)


def _is_aligned(affine: np.ndarray) -> bool:
    return bool((np.abs(_directions(affine)).max(axis=0) > ALIGNED_COSINE).all())


def _is_one(lengths: np.ndarray) -> np.ndarray:
    return np.abs(lengths - 1) < _ONE


def _corners(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The places (8, 3) of the corner voxels."""
    ends = np.array(list(product(*((0, n - 1) for n in shape))), float)
    return ends @ affine[:3, :3].T + affine[:3, 3]


def _corner_at_origin(affine: np.ndarray, shape: tuple[int, int, int]) -> bool:
    """Whether a corner voxel lies at the origin: the affine holds no position, in whatever order it is stored."""
    size = np.linalg.norm(affine[:3, :3], axis=0).min()
    return bool(np.linalg.norm(_corners(affine, shape), axis=1).min() < 0.01 * size)


def _is_rising(affine: np.ndarray, shape: tuple[int, int, int]) -> bool:
    """Whether all voxels lie right of, anterior and superior to the origin."""
    return bool((_corners(affine, shape) > -1e-3 * np.linalg.norm(affine[:3, :3], axis=0).min()).all())


def _scaled(affine: np.ndarray, spacing: np.ndarray, placed: bool) -> np.ndarray:
    """The affine with other voxel sizes; without a position of its own, its corner stays at the origin."""
    out = affine.copy()
    out[:3, :3] = _directions(affine) * spacing
    if not placed:
        out[:3, 3] *= np.abs(_directions(affine)) @ (spacing / np.linalg.norm(affine[:3, :3], axis=0))
    return out


def _refuse_sheared(affine: np.ndarray, where: str) -> None:
    directions = _directions(affine)
    cosines = np.abs(directions.T @ directions - np.eye(3))
    if cosines.max() > SHEAR:
        raise DataError(
            f"{where} has a sheared grid",
            got=f"axes at {np.degrees(np.arccos(min(cosines.max(), 1.0))):.0f} degrees",
            expected="axes at right angles",
            do="resample the scan to a rectangular grid",
        )


def _unit(code: int, affine: np.ndarray | None, pixdim: np.ndarray) -> tuple[float, tuple[str, ...]]:
    """Millimetres in the header's unit of length, and what had to be assumed."""
    unit = _UNIT_MM.get(code, 1.0)
    if unit == 1:
        return unit, ()
    sizes = pixdim if affine is None else np.linalg.norm(affine[:3, :3], axis=0)
    low, high = PLAUSIBLE_MM
    name = {1: "metres", 3: "micrometres"}[code]
    if low <= np.min(sizes * unit) <= high or not low <= np.min(sizes) <= high:
        return unit, (f"the header's lengths are in {name}",)
    return 1.0, (f"the header says {name}, which is not plausible: its lengths are taken as millimetres",)


# --- spacing ----------------------------------------------------------------------------------
def _spacing(
    shape: tuple[int, int, int], candidates: dict[str, np.ndarray], placed: bool
) -> tuple[tuple[float, float, float] | None, str | None]:
    """Spacing in mm along the stored axes by affine or pixdim, or None; and a note where something is not clear."""
    doubts = {name: _doubt(shape, sizes, placed) for name, sizes in candidates.items()}
    good = [name for name, doubt in doubts.items() if doubt is None]
    if not good:
        return None, f"spacing unknown: {next(iter(doubts.values()))}"
    name = next((n for n in good if _is_one(candidates[n]).sum() < 2), good[0])
    sizes = candidates[name]
    other = next((n for n in candidates if n != name and not np.allclose(candidates[n], sizes, rtol=0.01)), None)
    note = None if other is None else f"the spacing is taken from the header's {name}: its {other} says otherwise"
    return (float(sizes[0]), float(sizes[1]), float(sizes[2])), note


def _doubt(shape: tuple[int, int, int], sizes: np.ndarray, placed: bool) -> str | None:
    """Why voxel sizes are not believed; None where they are."""
    said = " x ".join(f"{size:.4g}" for size in sizes)
    if not np.isfinite(sizes).all() or sizes.min() <= 0:
        return f"the header's {said} mm is not plausible"
    axis = _axis_of(shape, sizes)
    axis = 2 if axis is None else axis
    in_plane = np.delete(sizes, axis)
    if _is_one(in_plane).all() and not placed:
        return f"the header says {said} mm, a default, and neither rotation nor position"
    if in_plane.min() < PLAUSIBLE_MM[0] or in_plane.max() > PLAUSIBLE_MM[1] or sizes[axis] > MOST_SLICE_MM:
        return f"the header's {said} mm is not plausible"
    if _is_one(sizes[axis : axis + 1]).all() and not _is_one(in_plane).any() and 3 <= shape[axis] < 40:
        return f"the header's slice spacing of 1 mm is a default ({shape[axis]} slices)"
    return None


def _axis_of(shape: tuple[int, int, int], sizes: np.ndarray | None) -> int | None:
    """The slice axis by spacing, else by number of voxels; None where neither tells."""
    by_size, by_count = _likely_axes(shape, sizes)
    return by_size if by_size is not None else by_count


def _likely_axes(shape: tuple[int, int, int], sizes: np.ndarray | None) -> tuple[int | None, int | None]:
    by_size = None
    if sizes is not None:
        order = np.argsort(sizes)
        by_size = int(order[2]) if sizes[order[2]] >= CLEARLY * sizes[order[1]] else None
    fewest = np.argsort(shape, kind="stable")
    by_count = int(fewest[0]) if 2 * shape[fewest[0]] <= shape[fewest[1]] else None
    return by_size, by_count


def _slice_axis(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float] | None,
    affine: np.ndarray,
    frame: Frame,
    where: str,
) -> tuple[int, str | None]:
    """The stored axis along which slices lie, and a note where it had to be assumed."""
    sizes = None if spacing is None else np.array(spacing)
    by_size, by_count = _likely_axes(shape, sizes)
    if sizes is not None and by_size is not None:
        length = shape[by_size] * sizes[by_size]
        narrow = by_count not in (None, by_size) and shape[by_count] * sizes[by_count] < LEAST_FIELD_MM
        if length > LONGEST_STACK_MM or narrow:
            raise DataError(
                f"{where} does not say along which axis its slices lie",
                got=f"{shape} voxels of {spacing} mm: a stack of {length:.0f} mm",
                expected=f"few slices far apart, at most {LONGEST_STACK_MM:g} mm together",
                do="correct the header: axes and spacing seem to have been permuted apart",
            )
        return by_size, None
    if by_count is not None:
        return by_count, None
    world = BASE if frame is Frame.PATIENT else np.array([0.0, 0.0, 1.0])
    axis = int(np.argmax(np.abs(world @ _directions(affine))))
    return axis, "neither spacing nor number of voxels tells the slice axis: taken from the affine"


# --- one view for all -------------------------------------------------------------------------
def view_of(grid: Grid) -> View:
    """The short-axis view of a grid: of the eight arrangements in plane the one nearest to COLUMNS and ROWS.

    Where the affine is parallel to the patient's axes, the same directions show what converters write for a view that
    is stored as it is shown (first axis to the left, second to the posterior) as it is stored. A default affine
    (first voxel at the origin, rising axes) or none keeps the stored order.
    """
    columns, rows, upright = STORED if grid.stored else (COLUMNS, ROWS, UPRIGHT)
    down = -BASE if grid.frame is Frame.PATIENT else upright
    directions, normal = grid.directions, grid.slice_axis
    pairs = [pair for pair in permutations(range(3), 2) if normal not in pair]
    row, column = max(pairs, key=lambda p: abs(rows @ directions[:, p[0]]) + abs(columns @ directions[:, p[1]]))
    towards = [(normal, down), (row, rows), (column, columns)]
    reverse = tuple(bool(wanted @ directions[:, axis] < 0) for axis, wanted in towards)
    known = grid.frame is Frame.PATIENT and abs(BASE @ directions[:, normal]) >= SHORT_AXIS_COSINE
    return View((normal, row, column), (reverse[0], reverse[1], reverse[2]), bool(known))


def short_axis_affine(spacing_mm: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    """The affine (4, 4) of a short-axis view, for an array stored as (column, row, slice) with the base first.

    Axes point along COLUMNS, ROWS and away from BASE, made orthogonal by the nearest rotation (polar decomposition);
    the middle of the stack is at the isocentre, 0. `view_of` of it is the order (slice, row, column), as it is.

    Args:
        spacing_mm: Row, column and slice spacing.
        shape: Slices, rows and columns.
    """
    row, column, depth = spacing_mm
    left, _, right = np.linalg.svd(np.column_stack([COLUMNS, ROWS, -BASE]))
    affine = np.eye(4)
    affine[:3, :3] = (left @ right) * (column, row, depth)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    return affine


# --- a mask on its image ----------------------------------------------------------------------
@dataclass(frozen=True)
class Placing:
    """How a mask's array is laid on its image: stored axes, which are reversed, and the place of its first voxel."""

    axes: tuple[int, int, int] = (0, 1, 2)
    reverse: tuple[bool, bool, bool] = (False, False, False)
    start: tuple[int, int, int] = (0, 0, 0)
    off_grid: float = 0.0
    """Distance in voxels by which the mask lies beside the image's voxels, before rounding."""

    def turned(self, mask: np.ndarray) -> np.ndarray:
        """The mask in the image's axes."""
        view = mask.transpose(self.axes)
        return view[tuple(slice(None, None, -1 if back else 1) for back in self.reverse)]

    def on(self, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """The mask on the image's grid, 0 where it does not reach; None where something drawn would be cut off."""
        turned = self.turned(mask)
        if self.start == (0, 0, 0) and turned.shape == shape:
            return turned
        out = np.zeros(shape, mask.dtype)
        low = [max(s, 0) for s in self.start]
        high = [min(s + n, m) for s, n, m in zip(self.start, turned.shape, shape, strict=True)]
        if all(b > a for a, b in zip(low, high, strict=True)):
            there = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            here = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, self.start, strict=True))
            out[there] = turned[here]
        return out if np.count_nonzero(out) == np.count_nonzero(turned) else None


def placing_of(mask: Grid, image: Grid) -> Placing | None:
    """Lay a mask on its image by both affines; None where their voxels differ in size or direction."""
    ours = np.linalg.solve(image.affine, mask.affine)
    signs = np.round(ours[:3, :3])
    if not np.array_equal(np.abs(signs).sum(0), np.ones(3)) or not np.array_equal(np.abs(signs).sum(1), np.ones(3)):
        return None
    corners = np.array(list(product(*((0, n - 1) for n in mask.shape))), float)
    if np.abs(corners @ (ours[:3, :3] - signs).T).max() > SAME_VOXEL:
        return None
    axes = tuple(int(np.argmax(np.abs(signs[i]))) for i in range(3))
    reverse = tuple(bool(signs[i, axes[i]] < 0) for i in range(3))
    places = corners @ ours[:3, :3].T + ours[:3, 3]
    first = places.min(axis=0)
    start = np.round(first).astype(int)
    return Placing(
        (axes[0], axes[1], axes[2]),
        (reverse[0], reverse[1], reverse[2]),
        (int(start[0]), int(start[1]), int(start[2])),
        float(np.abs(first - start).max()),
    )


def every_placing(mask: tuple[int, ...], image: tuple[int, ...]) -> list[Placing]:
    """All orders and directions of axes in which a mask has the image's shape; the stored one first, if it fits."""
    return [
        Placing((axes[0], axes[1], axes[2]), (back[0], back[1], back[2]))
        for axes in permutations(range(3))
        if tuple(mask[a] for a in axes) == tuple(image)
        for back in product((False, True), repeat=3)
    ]

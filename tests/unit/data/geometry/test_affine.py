"""One scan in every order of axes is one array; what a header does not hold stays unknown."""

import json
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cmrfed.core.errors import DataError
from cmrfed.data.cohort import Cohort
from cmrfed.data.geometry.affine import BASE, COLUMNS, ROWS, Frame, grid_of, short_axis_affine, view_of
from cmrfed.data.geometry.orientation import ventricle_angle
from cmrfed.data.labels import Label
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.sources import RawVolume
from cmrfed.data.sources.raw import read_nifti
from tests.source_files import short_axis

STORAGES = [(axes, back) for axes in permutations(range(3)) for back in product((1, -1), repeat=3)]
SMALL = PrepareConfig(size_px=16, field_px=40, field_mm=64.0)
ACDC = {v: Label(v) for v in range(4)}
SWAPPED = np.array([0, 3, 2, 1], np.uint8)


def oblique(spacing=(1.4, 1.6, 8.0), position=(40.0, -120.0, 60.0), roll=0.0) -> np.ndarray:
    """The affine of a short-axis stack stored as it is shown, base first; rolled in plane by some degrees."""
    base = BASE / np.linalg.norm(BASE)
    columns = COLUMNS - (COLUMNS @ base) * base
    columns /= np.linalg.norm(columns)
    rows = np.cross(base, columns)
    rows *= np.sign(rows @ ROWS)
    turn = np.radians(roll)
    axes = [np.cos(turn) * columns + np.sin(turn) * rows, np.cos(turn) * rows - np.sin(turn) * columns, -base]
    affine = np.eye(4)
    affine[:3, :3] = np.stack(axes, axis=1) * spacing
    affine[:3, 3] = position
    return affine


def stored(array: np.ndarray, affine: np.ndarray, axes: tuple[int, ...], back: tuple[int, ...]):
    """The same voxels in the same places, in another order; a time axis stays last."""
    flips, shape = np.eye(4), [array.shape[a] for a in axes]
    for axis, sign in enumerate(back):
        if sign < 0:
            flips[axis, axis], flips[axis, 3] = -1, shape[axis] - 1
    order = np.zeros((4, 4))
    order[3, 3] = 1
    for new, old in enumerate(axes):
        order[old, new] = 1
    turned = array.transpose(*axes, *range(3, array.ndim))
    return turned[tuple(slice(None, None, s) for s in back)], affine @ order @ flips


def write(path: Path, array: np.ndarray, affine: np.ndarray | None, pixdim=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = nib.Nifti1Image(np.ascontiguousarray(array), affine)
    if pixdim is not None:
        file.header["pixdim"][1:4] = pixdim
        file.header["qform_code"] = 0
    nib.save(file, path)
    return path


def heart(squeeze: float = 1.0, **shape):
    """A heart in (X, Y, Z), whose RV lies to the left and a little up."""
    image, mask = short_axis(slices=5, shape=(44, 40), centre=(20, 24), squeeze=squeeze, **shape)
    image[:, :10] -= 30
    return image.transpose(2, 1, 0).astype(np.float32), mask.transpose(2, 1, 0)


AFFINES = {
    "oblique": oblique(),
    "oblique and rolled": oblique(roll=25),
    "oblique, apex first": oblique() @ np.diag([1, 1, -1, 1]),
    "as converters write": np.diag([-1.4, -1.6, 8, 1]),
    "as array libraries write": np.diag([1.4, 1.6, 8, 1]),
    "parallel to the axes, with a position": np.array(
        [[-1.4, 0, 0, 30], [0, -1.6, 0, 9], [0, 0, 8, -50], [0, 0, 0, 1]]
    ),
    "identity": np.eye(4),
    "identity with a position": np.array([[1, 0, 0, 31.0], [0, 1, 0, 9], [0, 0, 1, -50], [0, 0, 0, 1]]),
}


# --- 48 orders --------------------------------------------------------------------------------
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_every_order_of_axes_gives_the_same_arrays(tmp_path, affine):
    image, mask = heart()
    first = None
    for axes, back in STORAGES:
        files = [
            write(tmp_path / f"{n}.nii", *stored(a, affine, axes, back)) for n, a in (("image", image), ("mask", mask))
        ]
        got = RawVolume(None, files[0], files[1], ACDC).load()
        first = first or got
        assert np.array_equal(got.image, first.image)
        assert np.array_equal(got.mask, first.mask)
        assert (got.frame, got.notes, got.base_first) == (first.frame, first.notes, first.base_first)
        assert got.spacing_mm == pytest.approx(first.spacing_mm) if first.spacing_mm else got.spacing_mm is None


@pytest.mark.parametrize("name", [n for n in AFFINES if n not in ("identity with a position", "oblique, apex first")])
def test_what_is_stored_as_it_is_shown_stays_so(tmp_path, name):
    image, mask = heart()
    files = [write(tmp_path / f"{n}.nii", a, AFFINES[name]) for n, a in (("image", image), ("mask", mask))]
    got = RawVolume(None, files[0], files[1], ACDC).load()
    assert np.array_equal(got.mask, mask.transpose(2, 1, 0))
    assert abs(ventricle_angle([got])) < 30


def test_mask_and_image_may_be_stored_in_different_orders(tmp_path):
    image, mask = heart()
    plain = RawVolume(
        None, write(tmp_path / "i.nii", image, oblique()), write(tmp_path / "m.nii", mask, oblique()), ACDC
    )
    wanted = plain.load()
    for axes, back in STORAGES[::5]:
        turned = write(tmp_path / "turned.nii", *stored(mask, oblique(), axes, back))
        got = RawVolume(None, tmp_path / "i.nii", turned, ACDC).load()
        assert np.array_equal(got.mask, wanted.mask)
        assert got.notes == ()


def layouts(root: Path, order, affine: np.ndarray) -> dict[str, Path]:
    """Two patients in three layouts, stored in one order."""
    for seed, name in enumerate(("A1", "B2")):
        phases = [heart(squeeze) for squeeze in (1.0, 0.6)]
        phases = [(image + 7 * seed + k, mask) for k, (image, mask) in enumerate(phases)]
        film = [np.stack([p[k] if k == 0 else SWAPPED[p[k]] for p in phases], axis=-1) for k in (0, 1)]
        for array, ending in zip(film, ("", "_gt"), strict=True):
            write(root / "mnms" / name / f"{name}_sa{ending}.nii", *stored(array, affine, *order))
        for frame, phase, (image, mask) in ((1, "ED", phases[0]), (9, "ES", phases[1])):
            write(root / "acdc" / name / f"{name}_frame{frame:02d}.nii", *stored(image, affine, *order))
            write(root / "acdc" / name / f"{name}_frame{frame:02d}_gt.nii", *stored(mask, affine, *order))
            write(root / "nnunet" / "imagesTr" / f"{name}_{phase}_0000.nii", *stored(image, affine, *order))
            write(root / "nnunet" / "labelsTr" / f"{name}_{phase}.nii", *stored(mask, affine, *order))
        (root / "acdc" / name / "Info.cfg").write_text("ED: 1\nES: 9\n")
    (root / "mnms" / "t.csv").write_text("External code,VendorName,Centre,ED,ES\nA1,S,1,0,1\nB2,S,1,0,1\n")
    labels = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    described = {"channel_names": {"0": "cine"}, "labels": labels, "numTraining": 4, "file_ending": ".nii"}
    (root / "nnunet" / "dataset.json").write_text(json.dumps(described))
    return {name: root / name for name in ("acdc", "mnms", "nnunet")}


@pytest.mark.parametrize("name", ["oblique", "as converters write"])
def test_cohorts_of_all_layouts_and_orders_are_the_same(tmp_path, name):
    wanted: Cohort | None = None
    for k, order in enumerate([STORAGES[0], *STORAGES[7::10]]):
        for layout, folder in layouts(tmp_path / str(k), order, AFFINES[name]).items():
            cohort = prepare(folder, tmp_path / f"{k}-{layout}", layout, SMALL)
            wanted = wanted or cohort
            assert np.array_equal(cohort.images, wanted.images)
            assert np.array_equal(cohort.masks, wanted.masks)
            assert [p.spacing_mm for p in cohort.patients] == [p.spacing_mm for p in wanted.patients]


# --- what a header says -----------------------------------------------------------------------
def grid(affine, pixdim=None, shape=(44, 40, 5), **header):
    file = nib.Nifti1Image(np.zeros(shape, np.float32), affine)
    if pixdim is not None:
        file.header["pixdim"][1:4] = pixdim
        file.header["qform_code"] = 0
    for key, value in header.items():
        file.header[key] = value
    return grid_of(file, "a.nii")


def unit_scaled(affine: np.ndarray) -> np.ndarray:
    out = affine.copy()
    out[:3, :3] /= np.linalg.norm(affine[:3, :3], axis=0)
    return out


@pytest.mark.parametrize(
    ("affine", "pixdim", "wanted"),
    [
        (np.eye(4), (1.4, 1.6, 8), (1.4, 1.6, 8)),  # the public headers of ACDC
        (unit_scaled(oblique()), (1.4, 1.6, 8), (1.4, 1.6, 8)),
        (oblique(), (1, 1, 1), (1.4, 1.6, 8)),
        (oblique(), (0, 0, 0), (1.4, 1.6, 8)),
        (oblique(), (-1.4, -1.6, 8), (1.4, 1.6, 8)),
        (None, (1.4, 1.6, 8), (1.4, 1.6, 8)),
        (np.diag([-1.4, -1.6, 8, 1]), (1, 1, 8), (1.4, 1.6, 8)),
        (None, None, None),
        (None, (0, 0, 8), None),
        (np.eye(4), (1, 1, 1), None),
        (np.diag([-1, -1, 8.0, 1]), (1, 1, 8), None),
        (None, (1.4, 1.6, 1), None),
        (np.eye(4), (np.nan, 1.6, 8), None),
    ],
)
def test_spacing_is_what_is_plausible_or_unknown(affine, pixdim, wanted):
    found = grid(affine, pixdim)
    if wanted is None:
        assert found.spacing is None
        assert any("spacing unknown" in note for note in found.notes)
        assert found.frame is Frame.LOST
    else:
        assert found.spacing == pytest.approx(wanted, rel=1e-5)
        agree = affine is not None and np.allclose(np.linalg.norm(affine[:3, :3], axis=0), np.abs(pixdim))
        assert any("spacing is taken from" in note for note in found.notes) == (affine is not None and not agree)


@pytest.mark.parametrize(
    ("code", "factor", "note"), [(1, 0.001, "metres"), (3, 1000, "micrometres"), (3, 1, "taken as")]
)
def test_units_are_applied_when_plausible(code, factor, note):
    affine = oblique()
    affine[:3] *= factor
    found = grid(affine, np.array((1.4, 1.6, 8)) * factor, xyzt_units=code)
    assert found.spacing == pytest.approx((1.4, 1.6, 8), rel=1e-4)
    assert any(note in said for said in found.notes)


def test_public_acdc_headers_keep_spacing_and_order_in_every_storage(tmp_path):
    image, mask = heart()
    first = None
    for axes, back in STORAGES:
        pixdim = [(1.4, 1.6, 8)[a] for a in axes]
        files = [
            write(tmp_path / f"{n}.nii", *stored(a, np.eye(4), axes, back), pixdim)
            for n, a in (("image", image), ("mask", mask))
        ]
        got = RawVolume(None, files[0], files[1], ACDC).load()
        first = first or got
        assert np.array_equal(got.mask, mask.transpose(2, 1, 0))
        assert np.array_equal(got.image, first.image)
        assert got.spacing_mm == pytest.approx((1.6, 1.4, 8))


def test_the_qform_is_used_where_the_sform_is_a_default():
    file = nib.Nifti1Image(np.zeros((44, 40, 5), np.float32), np.eye(4))
    file.header.set_qform(oblique(), code=1)
    file.header.set_sform(np.eye(4), code=1)
    assert grid_of(file, "a").frame is Frame.PATIENT
    assert grid_of(file, "a").spacing == pytest.approx((1.4, 1.6, 8), rel=1e-4)


@pytest.mark.parametrize("spoil", ["nan", "singular"])
def test_an_affine_that_is_none_is_lost(spoil):
    file = nib.Nifti1Image(np.zeros((44, 40, 5), np.float32), oblique())
    file.header["srow_x"] = np.nan if spoil == "nan" else 0
    file.header["qform_code"] = 0
    found = grid_of(file, "a")
    assert (found.frame, found.slice_axis) == (Frame.LOST, 2)


def test_a_sheared_grid_is_refused():
    affine = oblique()
    affine[:3, 1] += 0.3 * affine[:3, 0]
    with pytest.raises(DataError, match=r"a\.nii has a sheared grid.*right angles"):
        grid(affine, (1.4, 1.6, 8))


@pytest.mark.parametrize("shape", [(5, 44, 40), (40, 5, 44), (6, 32, 32)])
def test_axes_and_spacing_permuted_apart_are_refused(shape):
    with pytest.raises(DataError, match="does not say along which axis its slices lie"):
        grid(np.diag([-1.4, -1.6, 8, 1]), (1.4, 1.6, 8), shape)


@pytest.mark.parametrize("shape", [(44, 40, 1), (44, 1, 40), (1, 44, 40)])
def test_a_single_slice_is_found_by_its_axis(shape):
    assert grid(None, None, shape).slice_axis == shape.index(1)


def test_the_reference_directions_are_those_of_real_studies():
    """Image Orientation (Patient) of two short-axis studies, in DICOM's axes, and the stack towards the apex."""
    studies = {
        "Siemens": ((0.7921, 0.0, 0.6104), (0.3777, 0.7856, -0.4901)),
        "GE": ((0.6933, 0.6737, 0.2560), (0.0220, 0.3353, -0.9419)),
    }
    for columns, rows in studies.values():
        columns, rows = (np.array(v) * (-1, -1, 1) for v in (columns, rows))
        affine = np.eye(4)
        affine[:3, :3] = np.stack([columns, rows, -np.cross(columns, rows)], axis=1) * (1.4, 1.4, 8)
        affine[:3, 3] = (100, 90, 80)
        view = view_of(grid(affine))
        assert (view.axes, view.reverse, view.base_first) == ((2, 1, 0), (False, False, False), True)


@pytest.mark.parametrize("shape", [(6, 5, 3, 1), (6, 5, 3, 1, 1)])
def test_trailing_axes_of_one_are_dropped(tmp_path, shape):
    path = write(tmp_path / "a.nii", np.zeros(shape, np.float32), np.diag([-1.5, -1.5, 8, 1]))
    assert read_nifti(path)[0].shape == (6, 5, 3)
    assert read_nifti(path, 0)[0].shape == (6, 5, 3)


def test_colours_are_refused(tmp_path):
    colour = np.zeros((6, 5, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(DataError, match="plain numbers"):
        read_nifti(tmp_path / "a.nii")


@pytest.mark.parametrize(("spacing", "shape"), [((1.4, 1.6, 8.0), (10, 160, 192)), ((1.5, 1.5, 1.5), (64, 64, 64))])
def test_the_affine_of_a_short_axis_view_is_read_as_that_view(spacing, shape):
    affine = short_axis_affine(spacing, shape)
    grid = grid_of(nib.Nifti1Image(np.zeros(shape[::-1], np.uint8), affine), "here")
    assert grid.frame is Frame.PATIENT
    assert grid.spacing == pytest.approx((spacing[1], spacing[0], spacing[2]))
    view = view_of(grid)
    assert (view.axes, view.reverse, view.base_first) == ((2, 1, 0), (False, False, False), True)
    assert grid.directions.T @ grid.directions == pytest.approx(np.eye(3), abs=1e-6)
    assert (grid.directions * np.stack([COLUMNS, ROWS, -BASE], 1)).sum(0) == pytest.approx(1, abs=0.02)
    middle = affine @ (*((np.array(shape[::-1]) - 1) / 2), 1)
    assert middle == pytest.approx((0, 0, 0, 1), abs=1e-9)

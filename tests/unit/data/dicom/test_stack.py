"""Each kind of study that hospitals send, made from the phantom: the grid that it becomes, or why it is set aside."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from cmrfed.data.dicom.headers import Image, images_of
from cmrfed.data.dicom.pixels import cine, grid_of_stack
from cmrfed.data.dicom.series import Series, why_not
from cmrfed.data.dicom.stack import Found, find_stack
from cmrfed.data.geometry.affine import view_of
from tests.dicom_studies import RR_MS, PhantomCine, classic, enhanced, phantom_cine, save

LAYOUTS = ("slice", "stack", "phase")


@pytest.fixture(scope="module")
def made() -> PhantomCine:
    return phantom_cine(0)


def images(folder: Path) -> list[Image]:
    found = [images_of(path) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [image for each in found if not isinstance(each, str) for image in each]


def found_in(folder: Path, datasets: Sequence[Dataset]) -> Found:
    return find_stack(images(save(folder, datasets)))


def pixels(found: Found) -> np.ndarray:
    """(T, Z, H, W), base first: places along the phantom's normal rise towards the base."""
    assert found.stack is not None, found.problem
    return cine(found.stack)[:, ::-1]


def of_slice(datasets: Sequence[Dataset], z: int) -> list[Dataset]:
    places = sorted({tuple(d.ImagePositionPatient) for d in datasets})
    first = next(i for i, p in enumerate(places) if p == tuple(datasets[0].ImagePositionPatient))
    order = places if first == 0 else places[::-1]
    return [d for d in datasets if tuple(d.ImagePositionPatient) == order[z]]


def without(datasets: Sequence[Dataset], some: Sequence[Dataset]) -> list[Dataset]:
    left = set(map(id, some))
    return [data for data in datasets if id(data) not in left]


def moved(data: Dataset, along: float) -> None:
    """Move an image along its normal, in mm."""
    axes = np.array(data.ImageOrientationPatient, float).reshape(2, 3)
    place = np.array(data.ImagePositionPatient, float) + along * np.cross(axes[0], axes[1])
    data.ImagePositionPatient = [round(float(v), 5) for v in place]


def copied(datasets: Sequence[Dataset], series: int, change: Callable[[Dataset], None]) -> list[Dataset]:
    """The same images as another, later series."""
    out = []
    for data in datasets:
        other = deepcopy(data)
        other.SOPInstanceUID = generate_uid()
        other.SeriesInstanceUID = f"{data.SeriesInstanceUID}.{series}"
        other.SeriesNumber = series
        other.AcquisitionTime = "230000"
        change(other)
        out.append(other)
    return out


def darker(data: Dataset) -> None:
    data.PixelData = (np.frombuffer(data.PixelData, np.uint16) // 2).tobytes()


# --- what is read -----------------------------------------------------------------------------
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_series_per_slice_per_stack_or_per_phase(tmp_path, made, layout):
    found = found_in(tmp_path, classic(made, layout=layout)[::-1])
    assert np.array_equal(pixels(found), made.images)
    assert found.stack.spacing_mm == pytest.approx(made.spacing_mm, rel=1e-4)
    assert not found.stack.notes
    assert not found.left


def test_a_multi_frame_object_with_slopes(tmp_path, made):
    found = found_in(tmp_path, [enhanced(made)])
    assert np.array_equal(pixels(found), made.images * 2.0 - 7.0)
    assert found.stack.spacing_mm == pytest.approx(made.spacing_mm, rel=1e-4)


def test_phases_are_ordered_by_trigger_time_whatever_their_numbers(tmp_path, made):
    datasets = classic(made, layout="stack")
    numbers = np.random.default_rng(0).permutation(len(datasets)) + 1
    for data, number in zip(datasets, numbers, strict=True):
        data.InstanceNumber = int(number)
    assert np.array_equal(pixels(found_in(tmp_path, datasets)), made.images)


@pytest.mark.parametrize("replacement", ["TemporalPositionIdentifier", None])
def test_without_trigger_time_the_temporal_position_or_the_number_orders(tmp_path, made, replacement):
    datasets = classic(made)
    for data in datasets:
        if replacement:
            data.TemporalPositionIdentifier, data.InstanceNumber = data.InstanceNumber, 1
        del data.TriggerTime
    assert np.array_equal(pixels(found_in(tmp_path, datasets)), made.images)


def test_the_distance_of_slices_is_that_of_their_positions(tmp_path, made):
    datasets = classic(made)
    for data in datasets:
        data.SliceThickness, data.SpacingBetweenSlices = 3.0, 99.0
    assert found_in(tmp_path, datasets).stack.spacing_mm[2] == pytest.approx(made.spacing_mm[2], rel=1e-4)


def test_rescaled_and_inverted_images_are_as_the_others(tmp_path, made):
    datasets = classic(made)
    for data in of_slice(datasets, 1):
        data.PhotometricInterpretation = "MONOCHROME1"
        data.PixelData = (4095 - np.frombuffer(data.PixelData, np.uint16)).tobytes()
    for data in of_slice(datasets, 2):
        data.RescaleSlope, data.RescaleIntercept = "0.5", "3"
    wanted = made.images.astype(float)
    wanted[:, 2] = wanted[:, 2] / 2 + 3
    assert np.array_equal(pixels(found_in(tmp_path, datasets)), wanted)


def test_planes_that_are_stored_turned_are_the_same_stack(tmp_path, made):
    datasets = classic(made)
    rows, columns = made.images.shape[2:]
    for data in datasets:  # by 180 degrees in plane: the first pixel is the last
        axes = np.array(data.ImageOrientationPatient, float).reshape(2, 3)
        step = axes[0] * (columns - 1) * made.spacing_mm[1] + axes[1] * (rows - 1) * made.spacing_mm[0]
        data.ImagePositionPatient = [round(float(v), 5) for v in np.array(data.ImagePositionPatient, float) + step]
        data.ImageOrientationPatient = [float(-v) for v in data.ImageOrientationPatient]
        data.PixelData = np.frombuffer(data.PixelData, np.uint16)[::-1].tobytes()
    stack = found_in(tmp_path, datasets).stack
    view = view_of(grid_of_stack(stack))
    assert view.base_first
    assert np.array_equal(view.of(cine(stack)[3].transpose(2, 1, 0)), made.images[3])


# --- repeats, doubled and interleaved positions -----------------------------------------------
def test_of_repeats_the_last_complete_one_is_taken(tmp_path, made):
    datasets = classic(made)
    whole = copied(of_slice(datasets, 2), 50, darker)
    broken = copied(of_slice(datasets, 3), 51, darker)[:5]
    found = found_in(tmp_path, [*whole, *broken, *datasets])
    wanted = made.images.copy()
    wanted[:, 2] //= 2
    assert np.array_equal(pixels(found), wanted)
    assert "positions acquired more than once" in found.stack.notes[0]


def test_a_position_that_comes_twice_in_one_series(tmp_path, made):
    datasets = classic(made, layout="stack")
    again = copied(of_slice(datasets, 2), 1, darker)
    for number, data in enumerate(again):
        data.SeriesInstanceUID, data.InstanceNumber = datasets[0].SeriesInstanceUID, 1000 + number
        data.TriggerTime = round(float(data.TriggerTime) * 1.03 + 1, 3)
    found = found_in(tmp_path, [*again, *datasets])
    wanted = made.images.copy()
    wanted[:, 2] //= 2
    assert np.array_equal(pixels(found), wanted)


def test_two_whole_stacks_at_the_same_positions(tmp_path, made):
    datasets = classic(made, layout="stack")
    found = found_in(tmp_path, [*copied(datasets, 9, darker), *datasets])
    assert np.array_equal(pixels(found), made.images // 2)


def test_a_stack_that_was_acquired_in_two_interleaved_series(tmp_path, made):
    datasets = classic(made, layout="stack")
    for z in range(1, made.images.shape[1], 2):
        for data in of_slice(datasets, z):
            data.SeriesInstanceUID += ".2"
    found = found_in(tmp_path, datasets)
    assert np.array_equal(pixels(found), made.images)


def test_of_two_stacks_that_interleave_by_a_part_the_last_is_taken(tmp_path, made):
    datasets = classic(made, layout="stack")

    def shifted(data: Dataset) -> None:
        darker(data)
        moved(data, 0.3 * made.spacing_mm[2])

    found = found_in(tmp_path, [*copied(datasets, 9, shifted), *datasets])
    assert np.array_equal(pixels(found), made.images // 2)
    assert "the last complete one is taken" in found.stack.notes[-1]
    assert found.left == (("series 1", "its slices lie between those of a later stack"),)


# --- missing and extra ------------------------------------------------------------------------
def test_a_missing_phase_at_one_position_is_taken_from_its_neighbour(tmp_path, made):
    datasets = classic(made)
    missing = of_slice(datasets, 2)[4]
    found = found_in(tmp_path, without(datasets, [missing]))
    got = pixels(found)
    same = (got == made.images).all(axis=(2, 3))
    assert np.argwhere(~same).tolist() == [[4, 2]]
    assert (got[4, 2] == made.images[3, 2]).all() or (got[4, 2] == made.images[5, 2]).all()
    assert "taken from their neighbours in time (1 images)" in found.stack.notes[0]


def test_an_extra_image_changes_nothing(tmp_path, made):
    datasets = classic(made)
    extra = copied(of_slice(datasets, 2)[3:4], 77, darker)
    extra[0].SeriesInstanceUID = of_slice(datasets, 2)[3].SeriesInstanceUID
    assert np.array_equal(pixels(found_in(tmp_path, [*datasets, *extra])), made.images)


def test_positions_of_different_numbers_of_phases(tmp_path, made):
    more = replace(made, images=made.images[np.arange(15) * 12 // 15])
    datasets = classic(made)
    other = of_slice(classic(more, times=lambda z, t: t * RR_MS / 15), 1)
    found = found_in(tmp_path, without(datasets, of_slice(datasets, 1)) + other)
    got = pixels(found)
    assert got.shape == made.images.shape
    assert np.array_equal(got[0], np.stack([(more if z == 1 else made).images[0, z] for z in range(got.shape[1])]))


def test_a_missing_slice_is_set_aside_with_all_positions_to_be_shown(tmp_path, made):
    datasets = classic(made)
    found = found_in(tmp_path, without(datasets, of_slice(datasets, 3)))
    assert found.stack is None
    assert "1 slice position(s) are missing" in str(found.problem)
    assert "equal distances" in str(found.problem)
    assert len(found.shown) == made.images.shape[1] - 1


def test_a_position_of_half_a_beat_is_set_aside(tmp_path, made):
    datasets = classic(made)
    found = found_in(tmp_path, without(datasets, of_slice(datasets, 3)[:2]))
    assert found.stack is not None
    few = without(datasets, of_slice(datasets, 3)[:6])
    found = found_in(tmp_path / "few", few)
    assert found.stack is None


def test_uneven_distances_are_set_aside(tmp_path, made):
    datasets = classic(made)
    for data in of_slice(datasets, 3):
        moved(data, 0.4 * made.spacing_mm[2])
    assert "do not lie at equal distances" in str(found_in(tmp_path, datasets).problem)


def test_slices_of_another_size_are_brought_onto_the_grid(tmp_path, made):
    datasets = classic(made)
    for data in of_slice(datasets, 2):  # a larger field of view, 4 rows above and 6 columns to the left
        own = np.frombuffer(data.PixelData, np.uint16).reshape(made.images.shape[2:])
        large = np.pad(own, ((4, 2), (6, 8)))
        axes = np.array(data.ImageOrientationPatient, float).reshape(2, 3)
        step = axes[0] * 6 * made.spacing_mm[1] + axes[1] * 4 * made.spacing_mm[0]
        data.ImagePositionPatient = [round(float(v), 5) for v in np.array(data.ImagePositionPatient, float) - step]
        data.Rows, data.Columns = large.shape
        data.PixelData = large.tobytes()
    found = found_in(tmp_path, datasets)
    assert np.abs(pixels(found) - made.images).max() < 0.5
    assert "slices of 2 sizes" in found.stack.notes[0]


# --- what it is not ---------------------------------------------------------------------------
def tilted(data: Dataset) -> None:
    data.ImageOrientationPatient = [0.9954, 0, 0.0958, 0.0788, -0.5693, -0.8183]
    data.ImagePositionPatient = [10, 20, 30]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: setattr(d, "SeriesDescription", "Localizer_SAX"), "localizer"),
        (lambda d: setattr(d, "SeriesDescription", "SAX LGE PSIR"), "late enhancement"),
        (lambda d: setattr(d, "SeriesDescription", "stress perfusion"), "perfusion"),
        (lambda d: setattr(d, "SeriesDescription", "T1map_MOLLI"), "parametric map"),
        (lambda d: setattr(d, "SeriesDescription", "cine 4ch"), "long axis"),
        (lambda d: setattr(d, "SeriesDescription", "flow venc150"), "phase contrast"),
        (lambda d: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "P"]), "phase contrast"),
        (lambda d: setattr(d, "ImageType", ["DERIVED", "SECONDARY", "MPR"]), "derived"),
        (lambda d: setattr(d, "BurnedInAnnotation", "YES"), "burned-in"),
        (lambda d: setattr(d, "ScanningSequence", ["GR", "IR"]), "prepared by inversion"),
        (lambda d: setattr(d, "ImageOrientationPatient", [1, 0, 0, 0, 1, 0]), "axes of the body"),
        (lambda d: delattr(d, "ImagePositionPatient"), "no position"),
        (tilted, "planes of no short-axis view"),
    ],
)
def test_other_series_are_left_out_with_a_reason(tmp_path, made, change, reason):
    data = classic(made, layout="stack")[0]
    assert why_not(Series(tuple(images(save(tmp_path / "before", [data]))))) is None
    change(data)
    said = why_not(Series(tuple(images(save(tmp_path / "after", [data])))))
    assert said is not None
    assert reason in said


def test_beside_others_the_short_axis_cine_is_taken(tmp_path, made):
    datasets = classic(made)
    others = copied(datasets[:12], 20, lambda d: setattr(d, "SeriesDescription", "cine 4ch"))
    others += copied(datasets[:72:12], 30, lambda d: setattr(d, "SeriesDescription", "SAX LGE"))
    for data in others:
        data.SeriesInstanceUID = f"1.2.3.{data.SeriesNumber}"
    found = found_in(tmp_path / "beside", [*others, *datasets])
    assert np.array_equal(pixels(found), made.images)
    assert sorted(found.left) == [
        ("series 20", "long axis, by its words"), ("series 30", "late enhancement, by its words"),
    ]  # fmt: skip
    alone = found_in(tmp_path / "alone", others)
    assert "no short-axis cine was found" in str(alone.problem)
    assert "long axis, by its words (1)" in str(alone.problem)


def test_one_moment_of_many_beats_is_no_cine(tmp_path, made):
    datasets = classic(made, layout="stack", times=lambda z, t: 300.0)
    assert "no cine" in str(found_in(tmp_path, datasets).problem)


def test_objects_without_an_mr_image_are_no_images(tmp_path, made):
    data = classic(made)[0]
    data.SOPClassUID = SecondaryCaptureImageStorage
    assert images(save(tmp_path, [data])) == []


def test_one_phase_alone_counts_where_its_words_say_short_axis(tmp_path, made):
    one = [d for d in classic(made, layout="stack", description="cine SAX") if d.TriggerTime == 0]
    assert found_in(tmp_path / "a", one).stack.phases == 1
    for data in one:
        data.SeriesDescription = "cine"
    assert "one phase: no cine" in str(found_in(tmp_path / "b", one).problem)


def test_planes_far_from_the_usual_ones_need_words(tmp_path, made):
    datasets = classic(made)
    axes = np.array(datasets[0].ImageOrientationPatient, float).reshape(2, 3)
    normal, angle = np.cross(axes[0], axes[1]), np.radians(52)
    row = axes[1] * np.cos(angle) + normal * np.sin(angle)
    steps = np.cross(axes[0], row)
    for number, data in enumerate(datasets):
        place = -steps * made.spacing_mm[2] * (number // len(made.images))
        data.ImageOrientationPatient = [round(float(v), 8) for v in (*axes[0], *row)]
        data.ImagePositionPatient = [round(float(v), 4) for v in place]
    found = found_in(tmp_path / "silent", datasets)
    assert "not sure that these planes are a short-axis view" in str(found.problem)
    assert len(found.shown) == made.images.shape[1]
    for data in datasets:
        data.SeriesDescription = "cine_SAX"
    assert np.array_equal(pixels(found_in(tmp_path / "said", datasets)), made.images)

import json
import shutil

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from cmrfed.core.errors import DataError
from cmrfed.data.cohort import Cohort
from cmrfed.data.geometry.orientation import orient
from cmrfed.data.labels import Label, Phase
from cmrfed.data.preparation.prepare import PrepareConfig, centre_from_motion, crop, heart_centre, prepare, scale
from cmrfed.data.sources import RawArrays, read
from tests.source_files import acdc_patient, save, short_axis
from tests.support import real_data

SMALL = PrepareConfig(size_px=32, field_px=64, field_mm=80.0)


def arrays(spacing=None, **shape):
    image, mask = short_axis(**shape)
    return RawArrays(image.astype(np.float32), mask, spacing)


# --- whole ----------------------------------------------------------------------------------
def test_prepare_writes_a_cohort(tmp_path):
    for name, group in (("p1", "NOR"), ("p2", "DCM")):
        acdc_patient(tmp_path / "hospital" / name, group)
    cohort = prepare(tmp_path / "hospital", tmp_path / "out", "acdc", SMALL)
    assert (cohort.name, cohort.size_px, cohort.labels) == ("hospital", 32, (1, 2, 3))
    assert [p.group for p in cohort.patients] == ["NOR", "DCM"]
    assert cohort.header.preparation == {
        "size_px": 32,
        "field_px": 64,
        "field_mm": 80.0,
        "percentile_low": 1.0,
        "percentile_high": 99.0,
    }
    volume = cohort.volumes(0)[0]
    assert volume.spacing_mm == (2.5, 2.5, 10.0)
    assert (volume.image.min(), volume.image.max()) == (-1, 1)
    assert json.loads((tmp_path / "out" / "quarantine.json").read_text()) == []


def test_prepare_is_repeatable(tmp_path):
    acdc_patient(tmp_path / "h" / "p1")
    first = prepare(tmp_path / "h", tmp_path / "a", "acdc", SMALL, name="x")
    assert prepare(tmp_path / "h", tmp_path / "b", "acdc", SMALL, name="x").digest == first.digest


def test_unknown_spacing_stays_unknown(tmp_path):
    acdc_patient(tmp_path / "h" / "p1", spacing=None)
    record = prepare(tmp_path / "h", tmp_path / "a", "acdc", SMALL).patients[0]
    assert record.spacing_mm is None
    assert any("spacing unknown" in note for note in record.notes)


def test_a_patient_without_mask_is_prepared_and_says_so(tmp_path):
    acdc_patient(tmp_path / "h" / "p1", masks=False)
    cohort = prepare(tmp_path / "h", tmp_path / "a", "acdc", SMALL)
    assert not cohort.patients[0].has_mask
    assert any("moves between ED and ES" in note for note in cohort.patients[0].notes)
    assert any("base first is not assured" in note for note in cohort.patients[0].notes)


def spoil_truncated(folder):
    path = folder / "p_frame01.nii.gz"
    path.write_bytes(path.read_bytes()[:200])


def spoil_constant(folder):
    save(folder / "p_frame01.nii.gz", np.ones(short_axis()[0].shape))


def spoil_not_finite(folder):
    save(folder / "p_frame01.nii.gz", np.full(short_axis()[0].shape, np.nan))


def spoil_empty_mask(folder):
    save(folder / "p_frame09_gt.nii.gz", np.zeros(short_axis()[1].shape, np.uint8))


def spoil_sides(folder):
    save(folder / "p_frame09_gt.nii.gz", np.array([0, 3, 2, 1], np.uint8)[short_axis()[1]])


def spoil_structure(folder):
    mask = short_axis()[1]
    save(folder / "p_frame09_gt.nii.gz", np.where(mask == Label.RV, np.uint8(0), mask))


def spoil_labels(folder):
    save(folder / "p_frame09_gt.nii.gz", short_axis()[1] + np.uint8(1))


def spoil_grid(folder):
    image, mask = short_axis(shape=(80, 100))
    save(folder / "p_frame09.nii.gz", image)
    save(folder / "p_frame09_gt.nii.gz", mask)


def spoil_frames(folder):
    (folder / "Info.cfg").write_text("ED: 1\nES: 1\n")


SPOILS = {
    spoil_truncated: r"p_frame01\.nii\.gz cannot be read",
    spoil_constant: r"p_frame01\.nii\.gz cannot be used: the image is constant",
    spoil_not_finite: "NaN or infinite",
    spoil_empty_mask: r"p_frame09\.nii\.gz cannot be used: the mask is empty",
    spoil_sides: r"p_frame09\.nii\.gz cannot be used: LV and RV seem swapped",
    spoil_structure: "the mask lacks RV",
    spoil_labels: "unexpected labels",
    spoil_grid: "do not share a grid",
    spoil_frames: "are the same frame",
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_bad_patient_is_set_aside_and_the_others_go_on(tmp_path, spoil, capsys):
    acdc_patient(tmp_path / "h" / "good")
    spoil(acdc_patient(tmp_path / "h" / "p"))
    cohort = prepare(tmp_path / "h", tmp_path / "a", "acdc", SMALL)
    assert cohort.patient_ids == ("good",)
    (aside,) = json.loads((cohort.root / "quarantine.json").read_text())
    assert aside["patient_id"] == "p"
    with pytest.raises(DataError, match=SPOILS[spoil]):
        prepare(tmp_path / "h", tmp_path / "b", "acdc", SMALL, strict=True)
    assert "1 of 2 patients set aside" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_no_usable_patient_is_an_error_and_leaves_nothing(tmp_path, capsys):
    spoil_truncated(acdc_patient(tmp_path / "h" / "p"))
    with pytest.raises(DataError, match="the cohort would be empty"):
        prepare(tmp_path / "h", tmp_path / "a", "acdc", SMALL)
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_only_a_cohort_is_overwritten(tmp_path):
    acdc_patient(tmp_path / "h" / "p")
    with pytest.raises(DataError, match="holds something else"):
        prepare(tmp_path / "h", tmp_path / "h", "acdc", SMALL)
    assert (tmp_path / "h" / "p").is_dir()
    for _ in range(2):
        prepare(tmp_path / "h", tmp_path / "out", "acdc", SMALL)


def test_percentiles_must_rise():
    with pytest.raises(ValidationError, match="two rising numbers"):
        PrepareConfig(percentiles=(99, 1))


def test_a_patient_with_a_mask_of_one_phase_only_is_set_aside(tmp_path):
    """As `verify` has always said; its images alone can be used once the other mask is removed too."""
    acdc_patient(tmp_path / "h" / "good")
    folder = acdc_patient(tmp_path / "h" / "p")
    (folder / "p_frame09_gt.nii.gz").unlink()
    cohort = prepare(tmp_path / "h", tmp_path / "a", "acdc", SMALL)
    assert cohort.patient_ids == ("good",)
    assert "its mask is missing, while the other phase has one" in (tmp_path / "a" / "quarantine.json").read_text()


# --- orientation ----------------------------------------------------------------------------
def test_the_base_comes_first_whatever_the_file(tmp_path):
    acdc_patient(tmp_path / "h" / "down")
    acdc_patient(tmp_path / "h" / "up", upside_down=True)
    cohort = prepare(tmp_path / "h", tmp_path / "a", "acdc", SMALL)
    down, up = (cohort.volumes(i) for i in range(2))
    assert cohort.patient_ids == ("down", "up")
    for a, b in zip(down, up, strict=True):
        assert np.array_equal(a.mask, b.mask)
        assert np.allclose(a.image, b.image, atol=2e-3)
    assert any("begins at the apex" in note for note in cohort.patients[1].notes)


def test_a_heart_of_one_width_leaves_the_order_in_doubt():
    image, mask = short_axis()
    tube = RawArrays(image, np.repeat(mask[:1], len(mask), axis=0), None)
    assert "base first is not assured" in orient([tube])[1][0]
    assert orient([arrays()])[1] == ()


def test_real_patients_are_turned_back(tmp_path):
    for patient in list(read(real_data("acdc"), "acdc"))[::10]:
        raw = [v.load() for v in patient.volumes]
        flipped = [RawArrays(r.image[::-1], r.mask[::-1], None) for r in raw]
        for a, b in zip(orient(raw)[0], orient(flipped)[0], strict=True):
            assert np.array_equal(a.mask, b.mask)
            rv = np.count_nonzero(a.mask == Label.RV, axis=(1, 2))
            half = len(rv) // 2
            assert rv[:half].sum() > rv[half:].sum()


# --- centre ---------------------------------------------------------------------------------
def test_one_centre_from_all_masks():
    ed, es = arrays(), arrays(squeeze=0.5)
    drawn = np.concatenate([ed.mask, es.mask]) > 0
    expected = np.argwhere(drawn)[:, 1:].mean(axis=0)
    assert np.allclose(heart_centre([ed, es])[0], expected)


def test_motion_finds_what_moves_even_with_slices_missing():
    ed, es = arrays(centre=(30, 60)).image, arrays(centre=(30, 60), squeeze=0.4).image
    for other in (es, es[2:]):
        assert np.hypot(*(np.array(centre_from_motion(ed, other)) - (30, 60))) < 6


def test_a_still_image_has_no_centre():
    with pytest.raises(DataError, match="ED and ES show the same image"):
        centre_from_motion(arrays().image, arrays().image)


def test_one_phase_without_mask_is_centred_on_the_middle():
    centre, notes = heart_centre([RawArrays(arrays().image, None, None)])
    assert centre == (39.5, 47.5)
    assert "middle of the image" in notes[0]


def test_motion_on_real_patients():
    """The figures of the docstring: distance to the centre of the masks in source pixels."""
    errors, middle = [], []
    for patient in read(real_data("acdc"), "acdc"):
        ed, es = (v.load() for v in patient.volumes)
        centre = np.array(heart_centre([ed, es])[0])
        errors.append(np.hypot(*(np.array(centre_from_motion(ed.image, es.image)) - centre)))
        middle.append(np.hypot(*((np.array(ed.image.shape[1:]) - 1) / 2 - centre)))
    assert np.median(errors) == pytest.approx(9.4, abs=0.1)
    assert np.percentile(errors, 90) == pytest.approx(17.2, abs=0.1)
    assert np.median(errors) < np.median(middle)


# --- resampling -----------------------------------------------------------------------------
def test_crop_keeps_pixels_when_the_grid_is_the_same():
    raw = arrays()
    image, mask = crop(raw, (36 - 0.5, 52 - 0.5), PrepareConfig(size_px=32, field_px=32))
    assert np.allclose(image, raw.image[:, 20:52, 36:68])
    assert np.array_equal(mask, raw.mask[:, 20:52, 36:68])


def test_halving_keeps_areas_and_positions():
    raw = arrays()
    _, mask = crop(raw, (39.5, 47.5), PrepareConfig(size_px=32, field_px=64))
    for label in (Label.RV, Label.MYO, Label.LV):
        was, now = raw.mask == label, mask == label
        assert now.sum() * 4 == pytest.approx(was.sum(), rel=0.12)
        centre = (np.array(ndimage.center_of_mass(was)[1:]) - (39.5, 47.5)) / 2 + 15.5
        assert np.allclose(ndimage.center_of_mass(now)[1:], centre, atol=0.2)


def test_no_label_appears_between_two_others():
    """Between background and LV (0 and 3), interpolation of label values would invent 1 and 2."""
    raw = arrays()
    cavity = RawArrays(raw.image, np.where(raw.mask == Label.LV, raw.mask, 0), None)
    _, mask = crop(cavity, (36.3, 51.8), PrepareConfig(size_px=48, field_px=50))
    assert set(np.unique(mask)) == {0, 3}


def test_known_spacing_makes_pixels_square():
    wide = RawArrays(*short_axis(), (2.0, 1.0, 8.0))
    _, mask = crop(wide, (36, 52), PrepareConfig(size_px=64, field_mm=128))
    disc = mask[0] == Label.LV
    rows, columns = np.flatnonzero(disc.any(1)), np.flatnonzero(disc.any(0))
    assert len(rows) == pytest.approx(2 * len(columns), abs=2)


def test_outside_the_image_is_the_minimum_of_its_edge():
    raw = arrays()
    raw.image[:] += 100
    raw.image[3, 40, 40] = -500
    image, mask = crop(raw, (0, 0), PrepareConfig(size_px=32, field_px=32))
    edge = min(raw.image[:, [0, -1], :].min(), raw.image[:, :, [0, -1]].min())
    assert np.allclose(image[:, :15, :15], edge)
    assert (mask[:, :15, :15] == 0).all()


def test_scale_maps_percentiles_and_clips():
    image = np.arange(1001, dtype=np.float32).reshape(1, 7, 143)
    got = scale(image, (10, 90), "x")
    low, high = np.percentile(image, (10, 90))
    assert got.dtype == np.float32
    assert np.allclose(got, np.clip((image - low) / (high - low) * 2 - 1, -1, 1), atol=1e-6)
    with pytest.raises(DataError, match="x is constant"):
        scale(np.ones((1, 4, 4)), (1, 99), "x")


# --- real -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "patients", "labels"), [("acdc", 69, (1, 2, 3)), ("sunnybrook", 45, (3,))])
def test_real_data_is_prepared(tmp_path, name, patients, labels):
    cohort = prepare(real_data(name), tmp_path / "out", "acdc", PrepareConfig())
    assert Cohort.open(tmp_path / "out").digest == cohort.digest
    assert (len(cohort), cohort.labels) == (patients, labels)
    for i in range(len(cohort)):
        ed, es = cohort.volumes(i)
        assert (ed.phase, es.phase) == (Phase.ED, Phase.ES)
        assert (ed.mask == Label.LV).sum() > (es.mask == Label.LV).sum()


def test_one_patient_under_two_names_is_kept_once(tmp_path):
    folder = acdc_patient(tmp_path / "src" / "patient001")
    for path in folder.iterdir():
        twin = tmp_path / "src" / "patient002" / path.name.replace("patient001", "patient002")
        twin.parent.mkdir(exist_ok=True)
        shutil.copy(path, twin)
    cohort = prepare(tmp_path / "src", tmp_path / "out", "acdc", PrepareConfig(size_px=32))
    assert cohort.patient_ids == ("patient001",)
    aside = json.loads((tmp_path / "out" / "quarantine.json").read_text())
    assert [item["patient_id"] for item in aside] == ["patient002"]
    assert "patient001_frame01.nii.gz: the same patient under two identifiers" in aside[0]["reason"]

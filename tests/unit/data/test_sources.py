import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from cmrfed.core.errors import ConfigError, DataError
from cmrfed.data.geometry.affine import view_of
from cmrfed.data.labels import Label, Phase
from cmrfed.data.sources import SOURCES, read
from cmrfed.data.sources.raw import read_nifti
from tests.source_files import REAL_SPACING, acdc_patient, save, short_axis
from tests.support import real_data

SWAPPED = np.array([0, 3, 2, 1], np.uint8)
"""Canonical label → M&Ms label."""


def patients(src, source):
    return {p.patient_id: p for p in read(src, source)}


def volumes(patient):
    assert patient.problem is None
    return {v.phase: v.load() for v in patient.volumes}


# --- NIfTI ----------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_axes_and_spacing_are_turned_together(tmp_path, suffix):
    image = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(float)
    got, grid = read_nifti(save(tmp_path / f"a{suffix}", image, (1.5, 1.25, 10.0)))
    assert np.array_equal(view_of(grid).of(got), image)
    assert (grid.spacing, grid.notes) == ((1.5, 1.25, 10.0), ())


@pytest.mark.parametrize(
    ("affine", "known"),
    [
        (np.diag([1.5, 1.5, 8, 1]), True),
        (np.eye(4), False),
        (np.diag([-1.0, -1, 1, 1]), False),
        (np.diag([1.0, 1, 8, 1]), False),
        (np.diag([0.1, 0.1, 8, 1]), False),
        (np.diag([9.0, 9, 8, 1]), False),
    ],
)
def test_spacing_is_unknown_when_the_header_knows_nothing(tmp_path, affine, known):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 2), np.float32), affine), tmp_path / "a.nii")
    _, grid = read_nifti(tmp_path / "a.nii")
    assert (grid.spacing is not None) == known
    assert any("spacing unknown" in note for note in grid.notes) != known


def test_one_millimetre_with_a_real_position_is_believed(tmp_path):
    affine = np.eye(4)
    affine[:3, 3] = (-120, 35, 7)
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 2), np.float32), affine), tmp_path / "a.nii")
    grid = read_nifti(tmp_path / "a.nii")[1]
    assert (grid.spacing, grid.slice_axis, grid.notes) == ((1, 1, 1), 2, ())


def test_a_damaged_file_is_named(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(4, 50, 50)))
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"nonsense", b"", gzip.compress(b"\0" * 400)):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"a\.nii\.gz cannot be read.*restore the file"):
            read_nifti(path)


def test_wrong_number_of_axes(tmp_path):
    film = save(tmp_path / "film.nii", np.zeros((3, 5, 6, 4)))
    assert read_nifti(film, 3)[0].shape == (6, 5, 3)
    with pytest.raises(DataError, match=r"not an image of that kind.*\(6, 5, 3, 4\).*Expected: \(X, Y, slices\)"):
        read_nifti(film)
    with pytest.raises(DataError, match=r"with frame 4"):
        read_nifti(film, 4)
    with pytest.raises(DataError, match=r"with frame 0"):
        read_nifti(save(tmp_path / "still.nii", np.zeros((3, 5, 6))), 0)


# --- ACDC -----------------------------------------------------------------------------------
def test_acdc_reads_what_was_written(tmp_path):
    acdc_patient(tmp_path / "training" / "patient001", "HCM")
    image, mask = short_axis()
    patient = patients(tmp_path, "acdc")["patient001"]
    got = volumes(patient)
    assert patient.group == "HCM"
    assert np.allclose(got[Phase.ED].image - got[Phase.ED].image.min(), image - image.min(), atol=1e-3)
    assert np.array_equal(got[Phase.ED].mask, mask)
    assert got[Phase.ED].spacing_mm == (REAL_SPACING[1], REAL_SPACING[0], REAL_SPACING[2])
    assert (got[Phase.ES].mask == Label.LV).sum() < (mask == Label.LV).sum()


def test_acdc_is_found_from_any_folder_above(tmp_path):
    folder = acdc_patient(tmp_path / "data" / "training" / "patient001", suffix=".nii")
    (folder / "._patient001_frame01.nii").write_bytes(b"left by a file manager")
    for src in (tmp_path, tmp_path / "data", tmp_path / "data" / "training", folder):
        assert list(patients(src, "acdc")) == ["patient001"]


def test_equal_names_in_several_folders_are_told_apart(tmp_path):
    for site in ("site-0", "site-1"):
        acdc_patient(tmp_path / site / "patient001")
    acdc_patient(tmp_path / "site-1" / "patient002")
    assert set(patients(tmp_path, "acdc")) == {"site-0-patient001", "site-1-patient001", "patient002"}


def test_acdc_without_info_takes_the_larger_cavity_as_ed(tmp_path):
    folder = acdc_patient(tmp_path / "p", info=False)
    for suffix in (".nii.gz", "_gt.nii.gz"):  # the ES frame now has the lower number
        (folder / f"p_frame09{suffix}").rename(folder / f"p_frame00{suffix}")
    patient = patients(tmp_path, "acdc")["p"]
    assert {v.phase: v.image_path.name for v in patient.volumes} == {
        Phase.ED: "p_frame01.nii.gz",
        Phase.ES: "p_frame00.nii.gz",
    }
    assert "larger LV cavity" in patient.notes[0]


def test_a_bad_patient_does_not_hide_the_others(tmp_path):
    for name in ("a", "b", "c", "d"):
        acdc_patient(tmp_path / name)
    (tmp_path / "a" / "Info.cfg").write_text("ED: first\nES: 9\n")
    (tmp_path / "b" / "Info.cfg").write_text("ED: 1\nES: 12\n")
    (tmp_path / "c" / "Info.cfg").unlink()
    (tmp_path / "c" / "c_frame01_gt.nii.gz").unlink()
    got = patients(tmp_path, "acdc")
    assert got["d"].problem is None
    for name, words in {
        "a": "ED: first",
        "b": r"lacks the frames.*\[1, 9\].*\[1, 12\]",
        "c": "which frame is ED",
    }.items():
        assert not got[name].volumes
        with pytest.raises(DataError, match=words):
            raise got[name].problem


def test_a_mask_of_another_shape_is_named(tmp_path):
    folder = acdc_patient(tmp_path / "a")
    save(folder / "a_frame01_gt.nii.gz", short_axis(slices=5)[1])
    with pytest.raises(DataError, match=r"a_frame01_gt\.nii\.gz does not fit its image.*\(96, 80, 5\)"):
        volumes(patients(tmp_path, "acdc")["a"])


def test_real_acdc():
    found = patients(real_data("acdc"), "acdc")
    assert len(found) == 70
    assert {p.group for p in found.values()} == {"DCM", "HCM", "MINF", "NOR", "RV"}
    got = volumes(found["patient001"])
    assert got[Phase.ED].image.shape == (10, 256, 216)
    assert got[Phase.ED].spacing_mm is None
    assert set(np.unique(got[Phase.ED].mask)) == {0, 1, 2, 3}


# --- M&Ms -----------------------------------------------------------------------------------
MNMS_HEADER = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"


def mnms_patient(root, code, mask=True):
    image, label = short_axis()
    film = np.stack([image * k for k in range(4)], axis=-1)
    save(root / code / f"{code}_sa.nii.gz", film)
    if mask:
        frames = [label * 0, short_axis(squeeze=0.6)[1], label * 0, label]
        save(root / code / f"{code}_sa_gt.nii.gz", SWAPPED[np.stack(frames, axis=-1)])


def test_mnms(tmp_path):
    mnms_patient(tmp_path / "Training" / "Labeled", "A0S9V9")
    mnms_patient(tmp_path / "Training" / "Unlabeled", "B1", mask=False)
    mnms_patient(tmp_path / "Testing", "C2")
    mnms_patient(tmp_path / "Testing", "D3")
    rows = ["0,A0S9V9,Siemens,A,1,3,1,44,HCM,F,170,60", "1,B1,Philips,B,2,3,1,,DCM,M,,", "2,C2,GE,C,4,,1,,NOR,M,,"]
    (tmp_path / "info.csv").write_text("\n".join([MNMS_HEADER, *rows, *[",,,,,,,,,,,"] * 50]) + "\n")
    got = patients(tmp_path, "mnms")
    first = got["A0S9V9"]
    assert (first.group, first.vendor, first.centre) == ("HCM", "Siemens", "1")
    image, label = short_axis()
    arrays = volumes(first)
    assert np.array_equal(arrays[Phase.ED].mask, label)
    assert np.allclose(arrays[Phase.ED].image, image * 3, rtol=1e-5)
    assert (arrays[Phase.ES].mask == Label.LV).sum() < (label == Label.LV).sum()
    assert volumes(got["B1"])[Phase.ED].mask is None
    assert "unlabelled" in got["B1"].notes[0]
    with pytest.raises(DataError, match="which frame of C2 is ED"):
        raise got["C2"].problem
    with pytest.raises(DataError, match="D3 is not in the CSV"):
        raise got["D3"].problem


def test_mnms_without_its_table(tmp_path):
    mnms_patient(tmp_path / "a" / "b", "A0")
    with pytest.raises(DataError, match=r"no table of patients.*column 'External code'"):
        patients(tmp_path / "a" / "b", "mnms")


# --- M&Ms-2 ---------------------------------------------------------------------------------
def test_mnms2(tmp_path):
    for code in ("001", "042"):
        for phase, squeeze in (("ED", 1.0), ("ES", 0.6)):
            image, mask = short_axis(squeeze=squeeze)
            for axis in ("SA", "LA"):
                save(tmp_path / "dataset" / code / f"{code}_{axis}_{phase}.nii.gz", image)
                save(tmp_path / "dataset" / code / f"{code}_{axis}_{phase}_gt.nii.gz", SWAPPED[mask])
    (tmp_path / "dataset" / "042" / "042_SA_ES.nii.gz").unlink()
    table = "SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD\n1,HCM,SIEMENS,Avanto,1.5\n42,NOR,GE,Signa,3.0\n"
    (tmp_path / "dataset_information.csv").write_text(table + ",,,,\n" * 1000)
    got = patients(tmp_path, "mnms2")
    assert set(got) == {"001", "042"}
    assert (got["001"].group, got["001"].vendor, got["001"].centre) == ("HCM", "SIEMENS", None)
    assert np.array_equal(volumes(got["001"])[Phase.ED].mask, short_axis()[1])
    with pytest.raises(DataError, match="042 lacks a phase"):
        raise got["042"].problem


# --- nnU-Net --------------------------------------------------------------------------------
def nnunet_folder(root, cases, labels=None, **more):
    labels = labels or {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
    for case in cases:
        image, mask = short_axis()
        save(root / "imagesTr" / f"{case}_0000.nii.gz", image)
        save(root / "labelsTr" / f"{case}.nii.gz", SWAPPED[mask])
    description = {"channel_names": {"0": "cine"}, "labels": labels, "numTraining": len(cases), **more}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_nnunet_groups_cases_by_patient(tmp_path):
    cases = ["p1_frame12", "p1_frame02", "p2_ES", "p2_ED", "alone", "p3_frame1", "p3_frame2", "p3_frame3"]
    got = patients(nnunet_folder(tmp_path, cases), "nnunet")
    assert set(got) == {"p1", "p2", "p3", "alone"}

    def names(patient):
        return {v.phase.name: v.image_path.name for v in got[patient].volumes}

    assert names("p1") == {"ED": "p1_frame02_0000.nii.gz", "ES": "p1_frame12_0000.nii.gz"}
    assert names("p2") == {"ED": "p2_ED_0000.nii.gz", "ES": "p2_ES_0000.nii.gz"}
    assert names("alone") == {"ED": "alone_0000.nii.gz"}
    assert "lower number" in got["p1"].notes[0]
    assert got["p2"].notes == ()
    assert "taken as ED" in got["alone"].notes[0]
    assert np.array_equal(volumes(got["p2"])[Phase.ED].mask, short_axis()[1])
    with pytest.raises(DataError, match="p3 has cases of no known phase"):
        raise got["p3"].problem


def test_nnunet_case_without_label_file_has_no_mask(tmp_path):
    root = nnunet_folder(tmp_path, ["p_ED", "p_ES"])
    (root / "imagesTs").mkdir()
    shutil.move(root / "imagesTr" / "p_ES_0000.nii.gz", root / "imagesTs")
    got = volumes(patients(root, "nnunet")["p"])
    assert got[Phase.ED].mask is not None
    assert got[Phase.ES].mask is None


def test_nnunet_names_of_labels(tmp_path):
    labels = {"background": 0, "right_ventricle": 3, "Myocardium": 2, "LVBP": 1}
    assert volumes(patients(nnunet_folder(tmp_path, ["p_ED"], labels), "nnunet")["p"])


@pytest.mark.parametrize("labels", [{"background": 0, "scar": 1}, {"LV": [1, 2], "RV": 3}, {"LV": 1, "LVC": 2}])
def test_nnunet_labels_that_are_not_understood(tmp_path, labels):
    with pytest.raises(DataError, match=r"labels of .*dataset\.json are not those.*MYO: myo, lvm.*rename"):
        patients(nnunet_folder(tmp_path, ["p_ED"], labels), "nnunet")


def test_nnunet_refuses_several_channels(tmp_path):
    root = nnunet_folder(tmp_path, ["p_ED"], channel_names={"0": "cine", "1": "lge"})
    with pytest.raises(DataError, match="several channels"):
        patients(root, "nnunet")


# --- all ------------------------------------------------------------------------------------
@pytest.mark.parametrize("source", SOURCES.builtin_names)
def test_an_empty_folder_is_an_error(tmp_path, source):
    with pytest.raises(DataError, match=r"holds no patient|dataset\.json is missing"):
        patients(tmp_path, source)


def test_an_unknown_source_lists_the_known(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no data source nrrd\. Expected: acdc or dicom or mnms or mnms2 or nnunet\. Do: choose"
    ):
        patients(tmp_path, "nrrd")

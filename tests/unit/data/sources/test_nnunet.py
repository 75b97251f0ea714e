import json

import numpy as np
import pytest

from cmrfed.core.errors import DataError
from cmrfed.data.labels import Label, Phase
from cmrfed.data.sources import read
from cmrfed.data.sources.nnunet import PAIRS, label_mapping
from tests.source_files import save, short_axis

LABELS = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
CASES = ("p1_frame01", "p1_frame09", "p2_ED", "p2_ES")


def folder(root, cases=CASES, channel="_0000", description=None):
    for case in cases:
        image, mask = short_axis(squeeze=0.6 if case.endswith(("ES", "09")) else 1.0)
        save(root / "imagesTr" / f"{case}{channel}.nii.gz", image + len(case))
        save(root / "labelsTr" / f"{case}.nii.gz", mask)
    description = {"channel_names": {"0": "cineMRI"}, "labels": LABELS} if description is None else description
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def accounted(root):
    return {p.patient_id: "used" if p.problem is None else str(p.problem) for p in read(root, "nnunet")}


ACDC = {0: Label.BACKGROUND, 1: Label.RV, 2: Label.MYO, 3: Label.LV}


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        {"0": "background", "1": "RV", "2": "MLV", "3": "LVC"},
        {"background": "0", "RV": "1", "Myo": "2", "LV": "3"},
        {"background": 0, "right_ventricle": 1, "left-ventricular-myocardium": 2, "Left Ventricle (cavity)": 3},
        {"RV blood pool": 1, "LVM": 2, "LVBP": 3},
        {"3": "LV", "1": "RV", "2": "LV_Myo"},
        {"RV-BP": 1, "LV-Myocardium": 2, "LV_bp": 3},
        {"RightVentricle": 1, "LVMyo": 2, "LeftVentricle": 3},
    ],
)
def test_labels_by_name(tmp_path, labels):
    assert label_mapping(labels, tmp_path) == ACDC


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "whole": [1, 2, 3], "RV": 1}, "'whole' is a region of several"),
        ({**LABELS, "ignore": 4}, "'ignore' marks voxels that nobody annotated"),
        ({"background": 1, "RV": 2, "LV": 3}, "not those of a short-axis heart"),
        ({"RV": 0, "LV": 1}, "not those"),
        ({"background": 0}, "not those"),
        ({"LV": 1.5}, "not those"),
        ({"LV": True}, "not those"),
        ({"LV": 10**9}, "not those"),
        ({"LV": None}, "not those"),
        ({"LV": {"a": 1}}, "not those"),
        (["background", "RV"], "not those"),
        (None, "not those"),
        ("RV", "not those"),
        ({}, "not those"),
        ({"LV": 1, "LVC": 1}, "not those"),
    ],
)
def test_labels_that_are_refused(tmp_path, labels, words):
    with pytest.raises(DataError, match=words):
        label_mapping(labels, tmp_path)


def test_the_converter_of_nnunet_itself(tmp_path):
    found = list(read(folder(tmp_path), "nnunet"))
    assert [(p.patient_id, p.problem, p.phases_assumed) for p in found] == [("p1", None, True), ("p2", None, False)]
    assert np.array_equal(found[1].volumes[0].load().mask > 0, short_axis()[1] > 0)


def test_the_description_of_version_1(tmp_path):
    folder(tmp_path, description={"modality": {"0": "MRI"}, "labels": {str(v): k for k, v in LABELS.items()}})
    assert accounted(tmp_path) == {"p1": "used", "p2": "used"}


def test_names_without_a_channel(tmp_path):
    folder(tmp_path, ("heart_0001", "heart_0002", "heart_0003"), channel="")
    assert accounted(tmp_path) == dict.fromkeys(("heart_0001", "heart_0002", "heart_0003"), "used")


def test_a_second_channel_on_disk_is_refused(tmp_path):
    folder(tmp_path)
    save(tmp_path / "imagesTr" / "p1_frame01_0001.nii.gz", short_axis()[0])
    with pytest.raises(DataError, match=r"several channels.*_0000, _0001"):
        read(tmp_path, "nnunet")


@pytest.mark.parametrize("case", ["p1-ED", "p1.ed", "p1_SA_ED", "p1_Ed"])
def test_names_of_phases(tmp_path, case):
    folder(tmp_path, (case, case.replace("ED", "ES").replace("ed", "es").replace("Ed", "Es")))
    (patient,) = read(tmp_path, "nnunet")
    assert (patient.patient_id, patient.problem) == ("p1", None)
    assert [v.phase for v in patient.volumes] == list(Phase)


def test_everybody_who_was_seen(tmp_path):
    folder(tmp_path, (*CASES, "p3_ED", "p4_ED"))
    (tmp_path / "imagesTr" / "p3_ED_0000.nii.gz").unlink()
    (tmp_path / "labelsTr" / "p4_ED.nii.gz").unlink()
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTr" / "p2_ES_0000.nii.gz").rename(tmp_path / "imagesTs" / "p2_ES_0000.nii.gz")
    (tmp_path / "imagesTs" / "p5_0000.nii.gz").symlink_to("gone")
    (tmp_path / "labelsTr" / "p4_ED.nii.gz").symlink_to("gone")
    data = read(tmp_path, "nnunet")
    found = accounted(tmp_path)
    assert (found["p1"], found["p2"]) == ("used", "used")
    assert "its image is missing" in found["p3"]
    assert "p4_ED.nii.gz is a link whose target is missing" in found["p4"]
    assert "p5_0000.nii.gz is a link whose target is missing" in found["p5"]
    lost = {item.path: item.kind for item in data.left_out}
    assert lost["labelsTr/p2_ES.nii.gz"] == "masks without their image"


def test_images_of_a_test_set_have_no_mask_and_say_so(tmp_path):
    folder(tmp_path, ("p1_ED",))
    (tmp_path / "labelsTr").rename(tmp_path / "elsewhere")
    (patient,) = read(tmp_path, "nnunet")
    assert any("unlabelled" in note for note in patient.notes)


def test_labels_behind_a_broken_link_are_not_taken_for_none(tmp_path):
    folder(tmp_path)
    (tmp_path / "labelsTr").rename(tmp_path / "elsewhere")
    (tmp_path / "labelsTr").symlink_to("gone")
    with pytest.raises(DataError, match="labelsTr is a link whose target is missing"):
        read(tmp_path, "nnunet")


def test_one_case_in_both_parts_costs_its_patient(tmp_path):
    folder(tmp_path)
    save(tmp_path / "imagesTs" / "p2_ED_0000.nii.gz", short_axis()[0])
    found = accounted(tmp_path)
    assert found["p1"] == "used"
    assert "p2_ED in imagesTr and in imagesTs" in found["p2"]


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".png", 3])
def test_other_kinds_of_files_are_refused_by_name(tmp_path, ending):
    folder(tmp_path, description={"labels": LABELS, "file_ending": ending})
    with pytest.raises(DataError, match=r"names files that are not read.*convert"):
        read(tmp_path, "nnunet")


def test_no_nifti_among_the_images(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "p1_0000.mha").write_bytes(b"x")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    with pytest.raises(DataError, match=r"no NIfTI in imagesTr and imagesTs, but p1_0000\.mha"):
        read(tmp_path, "nnunet")


def test_uncompressed_files(tmp_path):
    folder(tmp_path, description={"labels": LABELS, "file_ending": ".nii"})
    for case in CASES:
        image, mask = short_axis()
        for kind, name, array in (("images", f"{case}_0000", image), ("labels", case, mask)):
            (tmp_path / f"{kind}Tr" / f"{name}.nii.gz").unlink()
            save(tmp_path / f"{kind}Tr" / f"{name}.nii", array)
    assert accounted(tmp_path) == {"p1": "used", "p2": "used"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "[" * 10_000, '{"labels": 1e999}', "\ufeff{}", '{"modality": 1}']
)
def test_a_damaged_description(tmp_path, text):
    folder(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError):
        read(tmp_path, "nnunet")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_description_with_a_mark(tmp_path, encoding):
    text = (folder(tmp_path) / "dataset.json").read_text()
    (tmp_path / "dataset.json").write_bytes(text.encode(encoding))
    assert accounted(tmp_path) == {"p1": "used", "p2": "used"}


def test_pairs_of_numbers_are_pointed_out(tmp_path):
    folder(tmp_path, ("A1_0001", "A1_0012", "B1_0000x", "B2_0001", "B2_0009"))
    left = [item for item in read(tmp_path, "nnunet").left_out if item.kind == PAIRS]
    assert [item.path for item in left] == ["imagesTr/A1_0001", "imagesTr/B2_0001"]

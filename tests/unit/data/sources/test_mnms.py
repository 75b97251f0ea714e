import numpy as np
import pytest

from cmrfed.data.labels import Phase
from cmrfed.data.sources import read
from tests.source_files import save, short_axis

SWAPPED = np.array([0, 3, 2, 1], np.uint8)
HEADER = "External code,VendorName,ED,ES,Pathology\n"


def film(root, code, own=0.0):
    image, label = short_axis()
    save(root / code / f"{code}_sa.nii.gz", np.stack([image * k + own for k in range(1, 4)], axis=-1))
    frames = [label * 0, short_axis(squeeze=0.6)[1], label]
    save(root / code / f"{code}_sa_gt.nii.gz", SWAPPED[np.stack(frames, axis=-1)])
    return root / code


def stills(root, code):
    for phase, squeeze in (("ED", 1.0), ("ES", 0.6)):
        image, mask = short_axis(squeeze=squeeze)
        save(root / code / f"{code}_SA_{phase}.nii.gz", image)
        save(root / code / f"{code}_SA_{phase}_gt.nii.gz", SWAPPED[mask])
    return root / code


def accounted(root, source):
    """Patient → "used", "skipped" or the reason."""
    data = read(root, source)
    return {p.patient_id: "skipped" if p.skipped else str(p.problem) if p.problem else "used" for p in data}


@pytest.mark.parametrize("value", ["inf", "nan", "1e400", "-1", "12.7", "", "first"])
def test_a_bad_row_costs_one_patient(tmp_path, value):
    for code in ("A1", "B1"):
        film(tmp_path, code)
    (tmp_path / "info.csv").write_text(f"{HEADER}A1,GE,2,1,NOR\nB1,GE,{value},1,NOR\n")
    found = accounted(tmp_path, "mnms")
    assert found["A1"] == "used"
    assert "the CSV does not say which frame of B1 is ED" in found["B1"]


def test_everybody_who_was_seen_in_mnms(tmp_path):
    for code in ("A1", "B1", "C1"):
        film(tmp_path / "Training", code)
    (tmp_path / "Training" / "B1" / "B1_sa.nii.gz").unlink()
    (tmp_path / "Training" / "D1").mkdir()
    (tmp_path / "Training" / "E1").symlink_to("gone")
    rows = "A1,GE,2,1,NOR\nB1,GE,2,1,NOR\nD1,GE,2,1,NOR\nF1,GE,2,1,NOR\n"
    (tmp_path / "info.csv").write_text(HEADER + rows)
    found = accounted(tmp_path, "mnms")
    assert (found.pop("A1"), found.pop("F1")) == ("used", "skipped")
    for name, words in {
        "B1": "its image is missing",
        "C1": "C1 is not in the CSV",
        "D1": "holds no image of the patient",
        "E1": "is a link whose target is missing",
    }.items():
        assert words in found.pop(name)
    assert not found


def test_everybody_who_was_seen_in_mnms2(tmp_path):
    for code in ("001", "002", "003"):
        stills(tmp_path / "dataset", code)
    (tmp_path / "dataset" / "002" / "002_SA_ES.nii.gz").unlink()
    (tmp_path / "dataset" / "004").mkdir()
    table = "subject code;Disease;VENDOR\r\n1;HCM;GE\r\n2;HCM;GE\r\n4;NOR;GE\r\n5,0;NOR;GE\r\n"
    (tmp_path / "dataset_information.csv").write_bytes(table.encode("utf-16"))
    found = accounted(tmp_path, "mnms2")
    assert (found.pop("001"), found.pop("005")) == ("used", "skipped")
    for name, words in {
        "002": "its mask is there, its image is missing",
        "003": "003 is not in the CSV",
        "004": "holds no image of the patient",
    }.items():
        assert words in found.pop(name)
    assert not found


def test_a_mask_behind_a_broken_link_is_not_taken_for_none(tmp_path):
    folder = film(tmp_path, "A1")
    film(tmp_path, "B1")
    (folder / "A1_sa_gt.nii.gz").unlink()
    (folder / "A1_sa_gt.nii.gz").symlink_to("gone")
    (tmp_path / "info.csv").write_text(f"{HEADER}A1,GE,2,1,NOR\nB1,GE,2,1,NOR\n")
    found = accounted(tmp_path, "mnms")
    assert found["B1"] == "used"
    assert "A1_sa_gt.nii.gz is a link whose target is missing" in found["A1"]


def test_names_in_any_letter_case(tmp_path):
    for path in list(stills(tmp_path, "001").iterdir()):
        path.rename(path.with_name(path.name.replace("SA", "sa").replace("_gt", "_GT")))
    (tmp_path / "info.csv").write_text("SUBJECT_CODE,DISEASE,VENDOR\n001,NOR,GE\n")
    (patient,) = read(tmp_path, "mnms2")
    assert patient.problem is None
    assert {v.phase for v in patient.volumes if v.mask_path} == set(Phase)

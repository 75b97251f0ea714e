import pytest

from cmrfed.core.errors import DataError
from cmrfed.data.labels import Phase
from cmrfed.data.sources import read
from cmrfed.data.sources.acdc import read_info
from tests.source_files import acdc_patient, save, short_axis


def ids(root):
    return {p.patient_id: (None if p.problem is None else str(p.problem)) for p in read(root, "acdc")}


INFO = "ED: 1\nES: 9\nGroup: NOR\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize(
    "text",
    [
        INFO,
        INFO.replace("\n", "\r\n"),
        INFO.replace("\n", "\r"),
        INFO.replace(": ", " = "),
        INFO.replace(": ", ":").lower().replace("nor", "NOR"),
        "# ED: 5\n; ES: 7\nName: Größe\nED : 01\nES:\t9.0 # end-systole\n  Group:  NOR  \nNbFrame: 30\n",
        'ED: "1"\nES: 9,0\nES: 9,0\nGroup: NOR',
    ],
)
def test_info_as_editors_write_it(tmp_path, encoding, text):
    acdc_patient(tmp_path / "p1")
    folder = acdc_patient(tmp_path / "p2")
    save(folder / "p2_frame05.nii.gz", short_axis()[0])  # a cine of which two frames have masks
    (folder / "Info.cfg").write_bytes(text.encode(encoding))
    (patient,) = (p for p in read(tmp_path, "acdc") if p.patient_id == "p2")
    assert patient.problem is None, patient.problem
    assert [v.image_path.name for v in patient.volumes] == ["p2_frame01.nii.gz", "p2_frame09.nii.gz"]
    assert patient.group == "NOR"
    assert not patient.notes


@pytest.mark.parametrize("name", ["info.cfg", "INFO.CFG", "Info.cfg.txt"])
def test_info_under_other_names(tmp_path, name):
    folder = acdc_patient(tmp_path / "p1")
    (folder / "Info.cfg").rename(folder / name)
    (patient,) = read(tmp_path, "acdc")
    assert (patient.group, patient.notes) == ("NOR", ())


@pytest.mark.parametrize("value", [" inf", "nan", "1e400", "-1", "1.5", "first", "", "0", "9" * 5000])
def test_a_bad_value_costs_one_patient(tmp_path, value):
    acdc_patient(tmp_path / "p1")
    (acdc_patient(tmp_path / "p2") / "Info.cfg").write_text(f"ED:{value}\nES: 9\n")
    found = ids(tmp_path)
    assert found["p1"] is None
    assert "p2/Info.cfg does not say which frame is ED" in found["p2"]


def test_info_that_contradicts_itself(tmp_path):
    (tmp_path / "a").write_text("ED: 1\nED: 2\n")
    with pytest.raises(DataError, match="gives ED twice"):
        read_info(tmp_path / "a")


def test_folders_without_frames_are_accounted_for(tmp_path):
    acdc_patient(tmp_path / "training" / "patient001")
    (tmp_path / "training" / "patient002").mkdir()
    save(tmp_path / "training" / "patient003" / "patient003_4d.nii.gz", short_axis()[0])
    (tmp_path / "training" / "other").mkdir()
    (tmp_path / "training" / "other" / "Info.cfg").write_text("ED: 1\n")
    (tmp_path / "training" / "code").mkdir()
    (tmp_path / "training" / "patient001" / "patient001_extra").mkdir()
    mask = acdc_patient(tmp_path / "training" / "patient004")
    for frame in ("01", "09"):
        (mask / f"patient004_frame{frame}.nii.gz").unlink()
    found = ids(tmp_path)
    assert {name for name, problem in found.items() if problem is None} == {"patient001"}
    assert "holds no image of the patient. Got: nothing" in found["patient002"]
    assert "Got: patient003_4d.nii.gz" in found["patient003"]
    assert "Got: Info.cfg" in found["other"]
    assert "its image is missing" in found["patient004"]
    assert set(found) == {"patient001", "patient002", "patient003", "other", "patient004"}


def test_a_lone_mask_beside_frames_is_pointed_out(tmp_path):
    folder = acdc_patient(tmp_path / "p1")
    save(folder / "p1_frame05_gt.nii.gz", short_axis()[1])
    data = read(tmp_path, "acdc")
    assert [(item.path, item.lost) for item in data.left_out] == [("p1/p1_frame05_gt", True)]
    assert data.patients[0].problem is None


def test_only_folders_without_frames(tmp_path):
    (tmp_path / "patient001").mkdir()
    assert "holds no image" in ids(tmp_path)["patient001"]


def test_files_of_other_names_are_named(tmp_path):
    folder = acdc_patient(tmp_path / "patient001")
    save(folder / "patient001_4d.nii.gz", short_axis()[0])
    save(folder / "patient001_frame01 (1).nii.gz", short_axis()[0])
    data = read(tmp_path, "acdc")
    assert [item.path for item in data.left_out] == ["patient001/patient001_frame01 (1).nii.gz"]


@pytest.mark.parametrize(
    "change", [str.upper, lambda s: s.replace("_frame0", "_frame"), lambda s: s.replace("frame", "frame_")]
)
def test_variants_of_names(tmp_path, change):
    folder = acdc_patient(tmp_path / "p1")
    for path in list(folder.glob("*.nii.gz")):
        path.rename(folder / change(path.name))
    (patient,) = read(tmp_path, "acdc")
    assert patient.problem is None, patient.problem
    assert all(v.mask_path is not None for v in patient.volumes)
    assert {v.phase for v in patient.volumes} == set(Phase)


def test_one_frame_under_two_numbers(tmp_path):
    folder = acdc_patient(tmp_path / "p1")
    save(folder / "p1_frame1.nii.gz", short_axis()[0])
    assert "holds frame 1 twice" in ids(tmp_path)["p1"]


def test_info_of_a_folder_with_several_patients_is_not_used(tmp_path):
    for name in ("p1", "p2"):
        for path in list(acdc_patient(tmp_path / name).iterdir()):
            path.rename(tmp_path / path.name)
        (tmp_path / name).rmdir()
    (tmp_path / "Info.cfg").write_text("ED: 9\nES: 1\n")
    patients = list(read(tmp_path, "acdc"))
    assert [p.patient_id for p in patients] == ["p1", "p2"]
    for patient in patients:
        assert {v.phase: v.image_path.name[2:] for v in patient.volumes} == {
            Phase.ED: "_frame01.nii.gz",
            Phase.ES: "_frame09.nii.gz",
        }
        assert "Info.cfg is not used" in patient.notes[0]

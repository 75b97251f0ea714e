import pytest

from cmrfed.data.preparation.account import note_counts
from cmrfed.data.sources import read
from cmrfed.data.sources.seen import pattern_of
from tests.source_files import acdc_patient


def ids(data):
    return {p.patient_id: (None if p.problem is None else str(p.problem)) for p in data}


def test_patterns():
    assert pattern_of("Patient007") == pattern_of("patient12") != pattern_of("patients")
    assert pattern_of("A0S9V9") == pattern_of("b1H22c3") != pattern_of("A0S9V9_old")
    assert pattern_of("training") != pattern_of("testing")


def test_a_link_farm_does_not_make_twins(tmp_path):
    real = acdc_patient(tmp_path / "scans" / "z" / "patient001")
    farm = tmp_path / "scans" / "a" / "patient001"
    farm.mkdir(parents=True)
    for path in real.iterdir():
        (farm / path.name).symlink_to(path)
    data = read(tmp_path / "scans", "acdc")
    assert ids(data) == {"patient001": None}
    assert data.patients[0].path == real  # the way without links
    assert [(item.path, item.lost) for item in data.left_out] == [("a/patient001", False)]


def test_hard_links_of_one_patient_count_once(tmp_path):
    real = acdc_patient(tmp_path / "scans" / "day-1" / "patient001")
    copy = tmp_path / "scans" / "day-2" / "patient001"
    copy.mkdir(parents=True)
    for path in real.iterdir():
        (copy / path.name).hardlink_to(path)
    assert ids(read(tmp_path / "scans", "acdc")) == {"patient001": None}


def test_the_same_files_under_two_names_stay_two_patients(tmp_path):
    real = acdc_patient(tmp_path / "scans" / "patient001")
    twin = tmp_path / "scans" / "patient002"
    twin.mkdir()
    for path in real.iterdir():
        (twin / path.name.replace("patient001", "patient002")).symlink_to(path)
    assert set(ids(read(tmp_path / "scans", "acdc"))) == {"patient001", "patient002"}


def test_equal_info_files_of_a_store_belong_to_both_patients(tmp_path):
    store = tmp_path / "objects"
    store.mkdir()
    for name in ("patient001", "patient002"):
        folder = acdc_patient(tmp_path / "scans" / name)
        for path in list(folder.iterdir()):
            kept = store / ("info" if path.name == "Info.cfg" else path.name)
            path.replace(kept)
            path.symlink_to(kept)
    data = read(tmp_path / "scans", "acdc")
    assert ids(data) == {"patient001": None, "patient002": None}
    assert {p.group for p in data} == {"NOR"}


@pytest.mark.parametrize("what", ["image", "mask", "info", "folder"])
def test_a_link_without_target_costs_its_patient_and_says_so(tmp_path, what):
    acdc_patient(tmp_path / "p1")
    folder = acdc_patient(tmp_path / "p2")
    name = {"image": "p2_frame09.nii.gz", "mask": "p2_frame01_gt.nii.gz", "info": "Info.cfg"}.get(what)
    if name is None:
        (tmp_path / "p3").symlink_to(tmp_path / "gone")
    else:
        (folder / name).unlink()
        (folder / name).symlink_to("gone")
    data = read(tmp_path, "acdc")
    bad = "p3" if what == "folder" else "p2"
    assert ids(data)["p1"] is None
    assert "link whose target is missing: " in ids(data)[bad]
    assert sum(item.lost for item in data.left_out) == 1


def test_notes_are_counted_by_kind_and_name_nobody():
    notes = [
        (
            "slices turned: the file begins at the apex",
            "spacing unknown: the header's (0.1, 0.1, 8) mm is not plausible",
        ),
        ("spacing unknown: the header's (9.0, 0.1, 8) mm is not plausible",),
        ("spacing unknown: the header says 1 mm with an identity affine",),
        ("phases swapped: Info.cfg of /data/patient017 says the opposite", "frame 12 is odd", "frame 7 is odd"),
        ("no mask: centred on what moves between ED and ES",),
        (),
    ]
    assert note_counts(notes) == {
        "spacing unknown": 3,
        "frame … is odd": 1,
        "no mask: centred on what moves between ED and ES": 1,
        "phases swapped": 1,
        "slices turned: the file begins at the apex": 1,
    }

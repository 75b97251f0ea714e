"""Folders as they come: damaged, renamed, empty, zipped, copied, large; and what `prepare` makes of them."""

import shutil
import time
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from PIL import ImageDraw
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.fileset import FileSet
from pydicom.uid import JPEGLosslessSV1

from cmrfed.core.errors import DataError
from cmrfed.data.cohort import Cohort
from cmrfed.data.dicom.burned_in import looks_like_text
from cmrfed.data.dicom.headers import DAMAGED, INDEX, NO_DICOM, images_of
from cmrfed.data.labels import Label, Phase
from cmrfed.data.preparation.account import kinds_of
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.preparation.verify import detect, verify
from cmrfed.data.sources import read
from cmrfed.data.sources.dicom import ARCHIVES, BY_MASKS, COPIES, LOST_OF_INDEX, BurnedIn
from cmrfed.data.sources.dicom import read as read_dicom
from cmrfed.data.sources.walk import walk
from tests.dicom_studies import classic, phantom_cine, save

SMALL = PrepareConfig(size_px=32)


@pytest.fixture(scope="module")
def made():
    return phantom_cine(0)


@pytest.fixture(scope="module")
def study(made, tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("export"), classic(made))


@pytest.fixture
def copy(study, tmp_path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "export"))


def kinds(root: Path) -> dict[str, int]:
    return {kind.kind: kind.count for kind in kinds_of(read(root, "dicom").left_out)}


def only(root: Path):
    (patient,) = read(root, "dicom")
    return patient


# --- files ------------------------------------------------------------------------------------
def test_names_of_files_and_folders_do_not_matter(copy):
    for number, path in enumerate(sorted(copy.iterdir())):
        folder = copy / f"a{number % 3}" / "b.c"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / f"{number} ü.{number % 7}")
    assert only(copy).problem is None
    assert kinds(copy) == {}


def test_a_truncated_file_is_found_without_its_pixels_and_its_phase_is_taken_from_another(copy):
    path = copy / "IM00005"
    path.write_bytes(path.read_bytes()[:-100])
    assert images_of(path) == DAMAGED
    patient = only(copy)
    assert kinds(copy) == {DAMAGED: 1}
    assert "taken from their neighbours" in patient.volumes[0].cine.stack.notes[0]


@pytest.mark.parametrize("length", [0, 10, 131, 132, 140, 300, 700])
def test_a_file_that_ends_anywhere_raises_nothing(copy, length):
    path = copy / "IM00005"
    path.write_bytes(path.read_bytes()[:length])
    assert images_of(path) in (DAMAGED, NO_DICOM)


def test_damaged_bytes_raise_nothing_but_data_errors(copy):
    rng, path = np.random.default_rng(0), copy / "IM00005"
    whole = path.read_bytes()
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(128, 1200, 6):
            content[place] = int(rng.integers(256))
        path.write_bytes(content)
        images_of(path)
    for patient in read(copy, "dicom"):
        for volume in patient.volumes:
            with suppress(DataError):
                volume.load()


def test_files_that_are_no_images_and_archives_are_counted(copy, tmp_path):
    (copy / "notes.txt").write_text("x", encoding="utf-8")
    (copy / "empty").write_bytes(b"")
    with zipfile.ZipFile(copy / "more.zip", "w") as archive:
        archive.write(copy / "IM00001")
    shutil.copy(copy / "IM00002", copy / "again")
    assert kinds(copy) == {NO_DICOM: 2, ARCHIVES: 1, COPIES: 1}
    with pytest.raises(DataError, match=r"archives \(unpack them first\) \(1\)"):
        prepare(copy, tmp_path / "out", "dicom", SMALL, strict=True)


def test_an_index_is_read_for_what_is_missing(study, tmp_path):
    index = FileSet()
    for path in sorted(study.iterdir())[:4]:
        data = dcmread(path)
        data.StudyTime, data.StudyID = "10", "1"
        index.add(data)
    index.write(tmp_path / "media")
    files = [p for p in (tmp_path / "media").rglob("*") if p.is_file() and p.name != "DICOMDIR"]
    files[0].unlink()
    assert kinds(tmp_path / "media")[LOST_OF_INDEX] == 1
    assert kinds(tmp_path / "media")[INDEX] == 1
    assert len(read(tmp_path / "media" / "DICOMDIR", "dicom")) == 1


def test_trash_is_not_entered(copy):
    shutil.copytree(copy, copy / ".Trash-1000" / "old")
    assert kinds(copy) == {"trash": 1}


def test_a_folder_without_an_image_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="holds no patient in DICOM layout"):
        read(tmp_path, "dicom")


def test_headers_of_many_files_take_little_time_and_memory(study):
    """Ten thousand files take two minutes at most, and what is kept of each is a few kilobytes."""
    files = 3 * sorted(study.iterdir())
    start = time.process_time()
    found = [images_of(path) for path in files]
    assert (time.process_time() - start) / len(files) < 120 / 10_000
    tracemalloc.start()
    found = [images_of(path) for path in files[:50]]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(found) < 8_000


# --- other sources ----------------------------------------------------------------------------
@pytest.mark.parametrize("source", ["acdc", "mnms", "mnms2", "nnunet"])
def test_another_layout_says_that_this_is_dicom(study, tmp_path, source):
    with pytest.raises(DataError, match=r"looks like DICOM.*Do: --source dicom"):
        prepare(study, tmp_path / "out", source, SMALL)


def test_verify_knows_dicom(study):
    assert detect(study) == "dicom"
    report = verify(study)
    assert report.ok
    assert "1 patients, 2 volumes: 1 in order" in report.text()


# --- patients ---------------------------------------------------------------------------------
def test_a_cohort_of_one_study(study, made, tmp_path):
    cohort = prepare(study, tmp_path / "out", "dicom", SMALL)
    assert (cohort.name, cohort.labels, len(cohort)) == ("out", (), 1)
    assert [v.phase for v in cohort.volumes(0)] == [Phase.ED, Phase.ES]
    assert all(v.mask is None for v in cohort.volumes(0))
    record = cohort.patients[0]
    assert not record.has_mask
    assert record.vendor == "Siemens"
    assert record.spacing_mm[2] == pytest.approx(made.spacing_mm[2], rel=1e-4)
    assert any("ED and ES by bright blood" in note for note in record.notes)
    assert (tmp_path / "out.key").is_file()


def test_one_phase_is_end_diastole_alone(made, tmp_path):
    one = [d for d in classic(made, layout="stack", description="SAX cine") if d.TriggerTime == 0]
    cohort = prepare(save(tmp_path / "in", one), tmp_path / "out", "dicom", SMALL)
    assert [v.phase for v in cohort.volumes(0)] == [Phase.ED]
    assert "one phase alone: taken as ED" in cohort.patients[0].notes


def test_of_several_studies_of_a_patient_the_last_that_can_be_used_is_taken(made, tmp_path):
    first, last = classic(made), classic(made, study="1.2.826.0.1.2")
    for data in last:
        data.AcquisitionDate = data.StudyDate = "20250101"
        data.PixelData = (np.frombuffer(data.PixelData, np.uint16) // 2).tobytes()
    save(tmp_path / "a", first)
    save(tmp_path / "b", last)
    images = only(tmp_path).volumes[0].load().image
    assert images.max() <= made.images.max() // 2
    for path in list((tmp_path / "b").iterdir())[:50]:
        path.unlink()
    assert only(tmp_path).problem is None


def test_one_id_of_two_persons_is_set_aside(made, tmp_path):
    first, second = classic(made), classic(made, study="1.2.826.0.1.2")
    for data in first:
        data.PatientBirthDate = "19500101"
    for data in second:
        data.PatientBirthDate = "19600101"
    save(tmp_path / "a", first)
    save(tmp_path / "b", second)
    problem = str(only(tmp_path).problem)
    assert "one patient id stands for several persons" in problem
    assert "1950" not in problem


def test_without_a_patient_id_each_study_is_one(made, tmp_path):
    datasets = classic(made)
    for data in datasets:
        data.PatientID = ""
    assert only(save(tmp_path, datasets)).notes == ("no patient id: each study counts as a patient",)


def test_masks_of_a_segmenter_tell_the_phases(study, made):
    largest = np.array([np.count_nonzero(m == Label.LV) for m in made.masks])

    def segment(image: np.ndarray) -> np.ndarray:
        for t, own in enumerate(made.images):
            if np.array_equal(image, own[::-1]):
                return made.masks[t]
        raise AssertionError

    (patient,) = read_dicom(walk(study), segment=segment)
    beat = patient.volumes[0].cine.beat
    assert beat.by == BY_MASKS
    assert (beat.ed, beat.es) == (largest.argmax(), largest.argmin())


# --- pixels -----------------------------------------------------------------------------------
def drawn_over(pixels: np.ndarray) -> np.ndarray:
    picture = Picture.new("L", pixels.shape[::-1])
    ImageDraw.Draw(picture).text((2, 2), "DOE JOHN 1947", fill=255)
    return np.where(np.asarray(picture) > 100, np.uint16(4095), pixels)


def test_text_in_the_pixels_is_set_aside_without_a_picture(made, tmp_path):
    datasets = classic(made)
    for data in datasets:
        pixels = np.frombuffer(data.PixelData, np.uint16).reshape(made.images.shape[2:])
        data.PixelData = drawn_over(pixels).astype(np.uint16).tobytes()
    patient = only(save(tmp_path / "in", datasets))
    with pytest.raises(BurnedIn, match="text seems to be drawn"):
        patient.volumes[0].load()
    patient.keep(tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


def test_images_without_text_are_not_taken_for_text(made):
    assert not any(looks_like_text(made.images[:, z]) for z in range(made.images.shape[1]))
    assert looks_like_text(np.stack([drawn_over(p) for p in made.images[:, 3]]))


def test_pixels_that_need_another_decoder_say_which_extra_has_it(copy):
    for path in copy.iterdir():
        data = dcmread(path)
        data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        data.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        data["PixelData"].is_undefined_length = True
        data.save_as(path, enforce_file_format=True)
    with pytest.raises(
        DataError, match=r"needs another decoder.*JPEG Lossless.*Do: pip install 'cmrfed\[dicom-jpeg\]'"
    ):
        only(copy).volumes[0].load()


def test_the_cohort_of_a_study_that_is_set_aside_is_not_written(made, tmp_path):
    datasets = classic(made)[: 3 * len(made.images)]
    with pytest.raises(DataError, match="the cohort would be empty"):
        prepare(save(tmp_path / "in", datasets), tmp_path / "out", "dicom", SMALL)
    assert not (tmp_path / "out").exists()


def test_an_open_cohort_names_its_source(study, tmp_path):
    prepare(study, tmp_path / "out", "dicom", SMALL)
    assert Cohort.open(tmp_path / "out").header.source == "dicom"

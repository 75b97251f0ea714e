"""Nothing that identifies a patient survives: a marker in every attribute, and in the names of folders and files."""

import re
import stat
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pydicom import config
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_keyword, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from typer.testing import CliRunner

from cmrfed.cli.main import app
from cmrfed.core.errors import DataError
from cmrfed.data.cohort import Cohort
from cmrfed.data.dicom.headers import WANTED
from cmrfed.data.dicom.identity import pseudonym, site_key
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.sources import read
from tests.dicom_studies import classic, phantom_cine, save

MARK = "ZEBRAFINCH"
NUMBER = "7294618305"
DATE, TIME = "19470203", "040506"
UID = f"1.2.{NUMBER}"
_KEPT = {  # what the images cannot be without
    "SOPClassUID", "TransferSyntaxUID", "Modality", "ImageType", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "TriggerTime", "NominalInterval", "PixelData",
    "InstanceNumber", "NumberOfFrames", "BurnedInAnnotation", "RescaleSlope", "RescaleIntercept",
    "SpecificCharacterSet",
    "SmallestValidPixelValue", "FloatPixelData", "DoubleFloatPixelData", "InversionTime", "ScanningSequence",
    "TemporalPositionIdentifier", "PlanarConfiguration", "PixelDataProviderURL", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
}  # fmt: skip
_VALUES = {
    "LO": MARK, "SH": MARK, "PN": f"{MARK}^{MARK}", "ST": MARK, "LT": MARK, "UT": MARK, "UC": MARK, "UR": MARK,
    "AE": MARK, "CS": MARK, "DA": DATE, "TM": TIME, "DT": DATE + TIME, "AS": "083Y", "UI": UID, "IS": NUMBER[:9],
    "DS": NUMBER,
    "OB": MARK.encode(),
}  # fmt: skip
TRACES = (MARK, MARK.lower(), NUMBER[:9], DATE, TIME, "1947-02-03", "04:05:06", "083Y", UID)


@cache
def every_attribute() -> Dataset:
    """The marker in every attribute of the dictionary that images can be without, in private ones and in an overlay."""
    data = Dataset()
    for tag in DicomDictionary:
        keyword, kind = dictionary_keyword(tag), dictionary_VR(tag)
        if tag >> 16 < 0x0008 or keyword in _KEPT or not keyword or tag >> 16 == 0xFFFE:
            continue
        if kind == "SQ":
            item = Dataset()
            item.PatientName, item.PatientID = f"{MARK}^{MARK}", MARK
            data.add_new(tag, kind, Sequence([item]))
        elif kind in _VALUES:
            data.add_new(tag, kind, _VALUES[kind])
    data.private_block(0x0021, MARK, create=True).add_new(1, "LO", MARK)
    data.add_new(Tag(0x60000022), "LO", MARK)
    return data


def marked(data: Dataset, *, whole: bool) -> None:
    """Put the marker into a dataset: into everything that is read, or into everything."""
    for element in every_attribute():
        if whole or element.keyword in WANTED:
            data.add_new(element.tag, element.VR, element.value)
    data.SeriesDescription, data.Manufacturer = f"{MARK} cine SAX", f"Siemens {MARK}"
    data.SeriesNumber = NUMBER[:9]
    data.file_meta.SourceApplicationEntityTitle = MARK


def every_text(folder: Path) -> bytes:
    return b"\n".join(
        str(p.relative_to(folder)).encode() + b"\n" + p.read_bytes() for p in folder.rglob("*") if p.is_file()
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients: one whole, one that lacks a slice, one with a damaged file; and what is no image."""
    root = tmp_path_factory.mktemp("export")
    made, before = phantom_cine(0), config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        for number, patient in enumerate(("A", "B", "C")):
            datasets = classic(made)
            for data in datasets:
                pixels = np.frombuffer(data.PixelData, np.uint16)
                data.PixelData = np.minimum(pixels + 3 * number, 4095).astype(np.uint16).tobytes()
                series = int(data.SeriesNumber)
                marked(data, whole=data is datasets[0])
                data.PatientID = f"{MARK}{patient}"
                data.StudyInstanceUID, data.SeriesInstanceUID = f"{UID}.{number}", f"{UID}.{number}.{series}"
                data.SOPInstanceUID = f"{UID}.{number}.{series}.{data.InstanceNumber}"
            if patient == "B":
                datasets = [d for d in datasets if not d.SeriesInstanceUID.endswith(".3")]
            folder = save(root / f"{MARK}_{patient}" / MARK, datasets)
        (folder / "IM00003").write_bytes((folder / "IM00003").read_bytes()[:-2000])
        (folder / f"{MARK}.txt").write_text(MARK, encoding="utf-8")
        (folder / f"{MARK}.zip").write_bytes(b"PK")
        (folder / "away").symlink_to(folder / f"{MARK}_gone")
    finally:
        config.settings.writing_validation_mode = before
    return root


def test_nothing_that_is_written_printed_or_logged_holds_the_marker(study, tmp_path, caplog, capfd):
    out = tmp_path / "cohort"
    with caplog.at_level("DEBUG"):
        done = CliRunner().invoke(app, ["prepare", str(study), str(out), "--source", "dicom", "--size", "32"])
        assert done.exit_code == 0, done.output
        checked = CliRunner().invoke(app, ["verify", str(study)])
    with pytest.raises(DataError) as strict:
        prepare(study, tmp_path / "strict", "dicom", PrepareConfig(size_px=32), strict=True)
    captured = capfd.readouterr()
    said = "\n".join([done.output, checked.output, caplog.text, captured.out, captured.err, str(strict.value)])
    said = said.replace(str(study), "")
    assert len(Cohort.open(out)) == 2
    assert "1 set aside" in said
    written = every_text(tmp_path)
    for trace in TRACES:
        assert trace not in said, trace
        assert trace.encode() not in written, trace
        assert trace.encode("utf-16-le") not in written, trace


def test_the_marker_is_in_what_is_read(study):
    content = b"".join(path.read_bytes() for path in study.rglob("IM00000"))
    for trace in (MARK, NUMBER[:9], DATE, TIME, "083Y", UID):
        assert trace.encode() in content


def test_who_is_set_aside_has_a_picture_and_who_is_not_a_curve(study, tmp_path):
    out = tmp_path / "cohort"
    done = CliRunner().invoke(app, ["prepare", str(study), str(out), "--source", "dicom", "--size", "32"])
    assert done.exit_code == 0, done.output
    ids = set(Cohort.open(out).patient_ids)
    assert {path.stem for path in (out / "evidence").iterdir()} == ids
    (picture,) = (out / "set-aside").iterdir()
    assert picture.stem not in ids
    assert all(re.fullmatch(r"p-[0-9a-f]{16}", name) for name in ids | {picture.stem})


# --- names ------------------------------------------------------------------------------------
def test_the_same_key_gives_the_same_names_and_another_key_others(study, tmp_path):
    first = {p.patient_id for p in read(study, "dicom", b"a" * 32)}
    assert first == {p.patient_id for p in read(study, "dicom", b"a" * 32)}
    assert first.isdisjoint({p.patient_id for p in read(study, "dicom", b"b" * 32)})
    assert first == {pseudonym(b"a" * 32, f"{MARK}{who}", MARK) for who in "ABC"}


def test_the_issuer_tells_two_hospitals_apart():
    assert pseudonym(b"k" * 32, "1", "A") != pseudonym(b"k" * 32, "1", "B")
    assert pseudonym(b"k" * 32, " 1 ") == pseudonym(b"k" * 32, "1")


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "deep" / "cohort.key"
    key = site_key(path, tmp_path / "cohort")
    assert key == site_key(path)
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_in_the_cohort_and_a_file_that_is_no_key_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"the key would lie in the cohort.*Do: --key"):
        site_key(tmp_path / "cohort" / "key", tmp_path / "cohort")
    (tmp_path / "key").write_text("abc", encoding="utf-8")
    with pytest.raises(DataError, match="is not a key"):
        site_key(tmp_path / "key")

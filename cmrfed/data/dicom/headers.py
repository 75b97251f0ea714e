"""What is read of a DICOM file before its pixels: a fixed list of attributes, and no private one.

Nothing that pydicom says of a file reaches a message: its errors and warnings quote values.
"""

import logging
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MediaStorageDirectoryStorage,
    MRImageStorage,
)

from cmrfed.core.errors import DataError
from cmrfed.data.sources.walk import DICOM_MARK, DICOM_MARK_AT

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

NO_DICOM = "files that are not DICOM"
DAMAGED = "DICOM files that are damaged or truncated"
INDEX = "DICOMDIR indexes"
REPORTS = "DICOM objects without an MR image (reports, presentation states, screenshots, other modalities)"
_MULTI_FRAME = (EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)
MOST_FRAMES = 20_000
"""Largest number of frames of one object that is believed."""
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
WANTED = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "IssuerOfPatientID",
    "PatientBirthDate", "StudyDate", "StudyTime", "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime",
    "AcquisitionDateTime", "Modality", "ImageType", "Manufacturer", "SeriesDescription", "ProtocolName",
    "SeriesNumber", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SliceThickness", "Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "NumberOfFrames",
    "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "BurnedInAnnotation", "TriggerTime",
    "TemporalPositionIdentifier", "NominalInterval", "ScanningSequence", "InversionTime", *_GROUPS,
)  # fmt: skip
"""The attributes that are read. Patient ID, its issuer, birth date and UIDs tell patients, studies and copies apart;
date and time order repeats. None of them is kept."""
_VENDORS = (
    ("siemens", "Siemens"), ("philips", "Philips"), ("ge", "GE"), ("canon", "Canon"), ("toshiba", "Canon"),
    ("uih", "UIH"), ("united imaging", "UIH"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """What the images of one file share. ``person`` and the UIDs are for comparison, in memory alone."""

    path: Path
    patient_id: str
    issuer: str
    born: str
    study: str
    series: str
    uid: str
    modality: str
    image_type: tuple[str, ...]
    words: str
    """Description and protocol of the series, in lower case; they are matched, and never quoted."""
    vendor: str | None
    series_number: int | None
    shape: tuple[int, int]
    burned_in: bool
    inverted: bool
    """MONOCHROME1: the lowest value is white."""
    colour: bool
    prepared: bool
    """Whether an inversion pulse prepared the contrast, as for late enhancement and maps."""
    when: str
    """Date and time of acquisition, by which repeats are ordered."""


@dataclass(frozen=True, slots=True)
class Image:
    """One two-dimensional image: a file, or a frame of one. Lengths in mm, times in ms, DICOM's patient axes (LPS)."""

    header: Header
    frame: int | None
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    """Directions of a row (rising column) and of a column (rising row): 6 numbers."""
    spacing: tuple[float, float]
    """Between rows, between columns."""
    thickness: float | None
    time: float | None
    """Delay after the R wave."""
    order: float | None
    """Temporal position, where the object has one."""
    interval: float | None
    """Length of the heart beat."""
    instance: int
    slope: float
    intercept: float


def images_of(path: Path) -> tuple[Image, ...] | str:
    """The MR images of a file, by its header alone; else the kind of files that it belongs to.

    A file without the mark of DICOM at byte 128 counts when it begins with an element of group 2 or 8: old exports do.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            if not _begins_like_dicom(file.read(DICOM_MARK_AT + len(DICOM_MARK))):
                return NO_DICOM
            file.seek(0)
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(WANTED))
            return _images(path, dataset, os.fstat(file.fileno()).st_size - file.tell())
    except Exception:  # pydicom raises many kinds for damaged files, whose texts quote the file
        return DAMAGED


def missing_of_index(path: Path) -> int:
    """How many of the files that a DICOMDIR names are not there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            records = pydicom.dcmread(path).DirectoryRecordSequence
            parts = [record.get("ReferencedFileID") for record in records]
    except Exception:
        return 0
    named = [[part] if isinstance(part, str) else list(part) for part in parts if part]
    return sum(not path.parent.joinpath(*map(str, part)).exists() for part in named)


def _begins_like_dicom(start: bytes) -> bool:
    return start[DICOM_MARK_AT:] == DICOM_MARK or (start[:2] in (b"\x02\0", b"\x08\0") and start[3:4] == b"\0")


def _images(path: Path, data: Dataset, left: int) -> tuple[Image, ...] | str:
    """The images of a file that has ``left`` bytes behind its header."""
    kind = str(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID") or "")
    if kind == MediaStorageDirectoryStorage:
        return INDEX
    if not kind:
        return DAMAGED if "StudyInstanceUID" in data else NO_DICOM
    modality = _text(data, "Modality").upper()
    if kind not in (MRImageStorage, *_MULTI_FRAME) or modality not in ("MR", ""):
        return REPORTS
    if _is_short(data, left):
        return DAMAGED
    header = _header(path, data, modality)
    if kind in _MULTI_FRAME:
        return tuple(_frames(header, data))
    return (_image(header, None, data, data, {}),)


def _is_short(data: Dataset, left: int) -> bool:
    """Whether an uncompressed file is shorter than its pixels."""
    syntax = data.file_meta.get("TransferSyntaxUID") if hasattr(data, "file_meta") else None
    if syntax is not None and (syntax.is_compressed or syntax == DeflatedExplicitVRLittleEndian):
        return False
    frames = int(data.get("NumberOfFrames") or 1)
    pixels = int(data.Rows) * int(data.Columns) * frames * int(data.get("SamplesPerPixel") or 1)
    return left < pixels * int(data.get("BitsAllocated") or 16) // 8


def _header(path: Path, data: Dataset, modality: str) -> Header:
    words = f"{_text(data, 'SeriesDescription')} {_text(data, 'ProtocolName')}".lower()
    maker = _text(data, "Manufacturer").lower()
    number = _number(data, "SeriesNumber")
    sequence = data.get("ScanningSequence") or ()
    return Header(
        path=path,
        patient_id=_text(data, "PatientID"),
        issuer=_text(data, "IssuerOfPatientID"),
        born=_text(data, "PatientBirthDate").strip("0"),
        study=_text(data, "StudyInstanceUID"),
        series=_text(data, "SeriesInstanceUID"),
        uid=_text(data, "SOPInstanceUID"),
        modality=modality,
        image_type=tuple(part.upper() for part in _several(data.get("ImageType"))),
        words=words,
        vendor=next((name for start, name in _VENDORS if maker.startswith(start)), None),
        series_number=int(number) if number is not None and 0 <= number < 1_000_000 else None,
        shape=(int(data.Rows), int(data.Columns)),
        burned_in=_text(data, "BurnedInAnnotation").upper() == "YES",
        inverted=_text(data, "PhotometricInterpretation").upper() == "MONOCHROME1",
        colour=int(data.get("SamplesPerPixel") or 1) > 1,
        prepared="IR" in _several(sequence) or bool(_number(data, "InversionTime")),
        when=_when(data),
    )


def _when(data: Dataset) -> str:
    whole = _text(data, "AcquisitionDateTime")
    if whole:
        return whole
    for name in ("Acquisition", "Series", "Study"):
        if time := _text(data, f"{name}Time"):
            return (_text(data, f"{name}Date") or _text(data, "StudyDate")) + time
    return _text(data, "StudyDate")


def _frames(header: Header, data: Dataset) -> Iterator[Image]:
    shared = _first(data, _GROUPS[0])
    groups = data.get(_GROUPS[1]) or ()
    if len(groups) > MOST_FRAMES:
        raise DataError("an object has too many frames")
    for number, own in enumerate(groups):
        parts: dict[str, Dataset] = {}
        for name in (
            "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "FrameContentSequence",
            "CardiacSynchronizationSequence", "PixelValueTransformationSequence",
        ):  # fmt: skip
            parts[name] = _first(own, name) or _first(shared, name) or Dataset()
        yield _image(header, number, data, Dataset(), parts)


def _image(header: Header, frame: int | None, data: Dataset, own: Dataset, parts: dict[str, Dataset]) -> Image:
    """An image of a file; ``own`` has the attributes of a classic object, ``parts`` those of a frame."""

    def of(part: str) -> Dataset:
        return parts.get(part, own)

    measures, beat = of("PixelMeasuresSequence"), of("CardiacSynchronizationSequence")
    content, transform = of("FrameContentSequence"), of("PixelValueTransformationSequence")
    position = _floats(of("PlanePositionSequence"), "ImagePositionPatient", 3)
    spacing = _floats(measures, "PixelSpacing", 2)
    time = _number(beat, "NominalCardiacTriggerDelayTime" if parts else "TriggerTime")
    order = _number(content, "TemporalPositionIndex" if parts else "TemporalPositionIdentifier")
    instance = _number(data, "InstanceNumber") or 0
    slope = _number(transform, "RescaleSlope")
    return Image(
        header=header,
        frame=frame,
        position=(position[0], position[1], position[2]) if position else (math.nan,) * 3,
        orientation=_floats(of("PlaneOrientationSequence"), "ImageOrientationPatient", 6) or (math.nan,) * 6,
        spacing=(spacing[0], spacing[1]) if spacing else (math.nan, math.nan),
        thickness=_number(measures, "SliceThickness"),
        time=time,
        order=order,
        interval=_number(beat, "RRIntervalTimeNominal" if parts else "NominalInterval"),
        instance=int(instance) if frame is None else frame,
        slope=slope if slope else 1.0,
        intercept=_number(transform, "RescaleIntercept") or 0.0,
    )


# --- values -----------------------------------------------------------------------------------
def _first(data: Dataset | None, name: str) -> Dataset | None:
    items = None if data is None else data.get(name)
    return items[0] if items else None


def _text(data: Dataset, name: str) -> str:
    value = data.get(name)
    return "" if value is None else str(value).strip().strip("\0")


def _several(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(part) for part in value)


def _number(data: Dataset, name: str) -> float | None:
    try:
        value = float(data.get(name))
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _floats(data: Dataset, name: str, count: int) -> tuple[float, ...] | None:
    try:
        values = tuple(float(part) for part in data.get(name))
    except (TypeError, ValueError):
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None

"""Cine studies of the phantom as DICOM: lists of datasets, which a test changes before they are saved."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from cmrfed.core.rng import numpy_generator
from cmrfed.data.geometry.affine import short_axis_affine
from cmrfed.data.labels import Label, Phase
from cmrfed.data.phantom.anatomy import GROUPS, Heart, Ventricles, _systole, draw_heart
from cmrfed.data.phantom.render import render
from cmrfed.data.phantom.signal import site_style

RR_MS = 900.0
SYSTOLE = 0.36


@dataclass(frozen=True)
class PhantomCine:
    """images: uint16 (T, Z, H, W), base first; masks alike; volume_ml: (T,) of the LV cavity by its geometry."""

    images: np.ndarray
    masks: np.ndarray
    volume_ml: np.ndarray
    spacing_mm: tuple[float, float, float]

    def frame(self, t: int, z: int) -> np.ndarray:
        return self.images[t, z]


def contraction(share: float) -> float:
    """How far the heart has contracted at a share of its beat: emptied at SYSTOLE, filled again, a pause, the atria."""
    if share < SYSTOLE:
        return math.sin(math.pi / 2 * share / SYSTOLE) ** 2
    rest = (share - SYSTOLE) / (1 - SYSTOLE)
    return 0.82 * math.exp(-((rest / 0.25) ** 2)) + 0.18 * (math.cos(math.pi / 2 * rest) ** 2)


def beating(heart: Heart, phases: int, start: float = 0.0) -> Heart:
    """The heart at equal steps of its beat; ``start`` is the share of the beat at which the first phase lies."""
    ed = heart.phases[Phase.ED]
    moments: dict[Any, Ventricles] = {}
    for t in range(phases):
        amount = contraction((t / phases + start) % 1)
        told = heart.physiology
        physiology = replace(told, lv_ef=told.lv_ef * amount, rv_ef=told.rv_ef * amount)
        shape = replace(heart.shape, shortening=heart.shape.shortening * amount)
        moments[t] = replace(_systole(ed, physiology, shape), shape=heart.shape) if amount > 1e-6 else ed
    return Heart(heart.physiology, heart.shape, moments)


@lru_cache(maxsize=4)
def phantom_cine(
    number: int = 0, phases: int = 12, start: float = 0.0, pixels: int = 80, slices: int = 6
) -> PhantomCine:
    """A phantom patient's cine, cut to ``pixels`` about the middle and ``slices``; a pure function of its arguments."""
    rng = numpy_generator(11, "phantom cine", number)
    heart = beating(draw_heart(GROUPS[number % len(GROUPS)], rng), phases, start)
    plan, scans = render(heart, replace(site_style(number % 3), axial_share=0.0), rng)
    images = np.stack([scans[t][0] for t in range(phases)])
    masks = np.stack([scans[t][1] for t in range(phases)])
    drawn = (masks == Label.LV).any(axis=(0, 2, 3))
    keep = slice(int(np.argmax(drawn)), int(np.argmax(drawn)) + slices)
    rows, columns = ((n - pixels) // 2 for n in images.shape[2:])
    cut = np.s_[:, keep, rows : rows + pixels, columns : columns + pixels]
    volume = np.array([v.lv_volumes_ml()[0] for v in heart.phases.values()])
    spacing = (round(plan.pixel_mm, 4), round(plan.pixel_mm, 4), plan.slice_mm)
    grey = np.clip(images[cut] * 300, 0, 4000).astype(np.uint16)
    return PhantomCine(grey, masks[cut], volume, spacing)


# --- datasets ---------------------------------------------------------------------------------
def classic(
    cine: PhantomCine,
    *,
    layout: str = "slice",
    patient: str = "DOE-4711",
    study: str = "1.2.826.0.1.1",
    description: str = "cine_trufi",
    first_series: int = 1,
    times: Callable[[int, int], float] | None = None,
) -> list[Dataset]:
    """One dataset for each image, slice by slice; ``layout`` says what a series is: "slice", "stack" or "phase"."""
    count, depth = cine.images.shape[:2]
    out = []
    for z in range(depth):
        for t in range(count):
            index = {"slice": z, "stack": 0, "phase": t}[layout]
            data = header(cine, z, patient, study)
            data.SOPClassUID = MRImageStorage
            data.SeriesInstanceUID = f"{study}.{first_series + index}"
            data.SeriesNumber = first_series + index
            data.SeriesDescription = description
            data.InstanceNumber = {"slice": t, "stack": z * count + t, "phase": z}[layout] + 1
            data.TriggerTime = round(t * RR_MS / count if times is None else times(z, t), 3)
            data.NominalInterval = int(RR_MS)
            data.AcquisitionTime = f"10{first_series:02d}00.{data.InstanceNumber:06d}"
            data.PixelData = cine.frame(t, z).tobytes()
            out.append(data)
    return out


def header(cine: PhantomCine, z: int, patient: str, study: str) -> Dataset:
    """What images of one slice share."""
    row, column, depth_mm = cine.spacing_mm
    affine = short_axis_affine(cine.spacing_mm, cine.images.shape[1:])
    lps = np.diag([-1.0, -1.0, 1.0])
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPInstanceUID = generate_uid()
    data.PatientID, data.PatientName, data.StudyInstanceUID = patient, f"Name^{patient}", study
    data.Modality, data.Manufacturer = "MR", "SIEMENS"
    data.StudyDate = data.AcquisitionDate = "20240229"
    data.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    data.ImageOrientationPatient = [
        round(float(v), 8) for axis in (0, 1) for v in lps @ affine[:3, axis] / np.linalg.norm(affine[:3, axis])
    ]
    data.ImagePositionPatient = [round(float(v), 5) for v in lps @ (affine @ [0, 0, z, 1])[:3]]
    data.PixelSpacing, data.SliceThickness = [row, column], depth_mm
    data.Rows, data.Columns = cine.images.shape[2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    return data


def enhanced(cine: PhantomCine, *, patient: str = "DOE-4711", study: str = "1.2.826.0.1.1") -> Dataset:
    """The whole cine as one multi-frame object, phases outermost."""
    count, depth = cine.images.shape[:2]
    data = header(cine, 0, patient, study)
    plain = {z: header(cine, z, patient, study) for z in range(depth)}
    data.SOPClassUID, data.SeriesInstanceUID, data.SeriesNumber = EnhancedMRImageStorage, f"{study}.1", 1
    data.NumberOfFrames, data.InstanceNumber = count * depth, 1
    for name in ("ImagePositionPatient", "PixelSpacing", "SliceThickness"):
        delattr(data, name)
    plane = part(ImageOrientationPatient=plain[0].ImageOrientationPatient)
    del data.ImageOrientationPatient
    measures = part(PixelSpacing=plain[0].PixelSpacing, SliceThickness=plain[0].SliceThickness)
    data.SharedFunctionalGroupsSequence = [part(PlaneOrientationSequence=[plane], PixelMeasuresSequence=[measures])]
    data.PerFrameFunctionalGroupsSequence = [
        part(
            PlanePositionSequence=[part(ImagePositionPatient=plain[z].ImagePositionPatient)],
            FrameContentSequence=[part(TemporalPositionIndex=t + 1)],
            CardiacSynchronizationSequence=[part(NominalCardiacTriggerDelayTime=t * RR_MS / count)],
            PixelValueTransformationSequence=[part(RescaleSlope=2.0, RescaleIntercept=-7.0)],
        )
        for t in range(count)
        for z in range(depth)
    ]
    data.PixelData = cine.images.tobytes()
    return data


def part(**values: Any) -> Dataset:
    """An item of a sequence."""
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def save(folder: Path, datasets: Sequence[Dataset]) -> Path:
    """Write datasets as files that are named by their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(datasets):
        data.save_as(folder / f"IM{number:05d}", enforce_file_format=True)
    return folder

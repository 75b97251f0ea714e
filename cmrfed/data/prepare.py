"""From a source's files to a cohort: one orientation, one field of view around the heart, one range of grey."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator
from scipy import ndimage

from cmrfed.artifacts import digest_bytes, write_json
from cmrfed.config import Section
from cmrfed.data.account import Account, kinds_of
from cmrfed.data.cohort import Cohort, PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.labels import Label
from cmrfed.data.sources import DataSet, RawArrays, RawPatient, read
from cmrfed.data.verify import check_volume
from cmrfed.errors import DataError
from cmrfed.progress import Track, say, track

UNSURE_GROWTH = 0.02
"""Change of the drawn area a slice, summed over ED and ES, below which the order is in doubt (70 ACDC patients: 0.096
and more; 45 Sunnybrook patients: one of 0.005, a dilated apex, the others 0.03 and more)."""


class PrepareConfig(Section):
    """How slices are cropped, resampled and scaled."""

    size_px: int = Field(64, ge=8)
    """Height and width of the prepared slices."""
    field_px: int = Field(128, ge=8)
    """Field of view in the source's pixels, where the spacing is unknown."""
    field_mm: float = Field(180.0, gt=0)
    """Field of view, where the spacing is known."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Grey values of the crop that become -1 and 1, in per cent."""

    @model_validator(mode="after")
    def _ordered(self) -> "PrepareConfig":
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError("percentiles must be two rising numbers from 0 to 100")
        return self


@dataclass(frozen=True)
class Quarantined:
    """A patient that is not in the cohort, and why; ``status`` is "set aside" or "skipped"."""

    patient_id: str
    path: str
    reason: str
    status: str = "set aside"


def prepare(
    src: Path,
    out: Path,
    source: str,
    config: PrepareConfig,
    *,
    name: str | None = None,
    strict: bool = False,
) -> Cohort:
    """Prepare a data set as a cohort folder.

    A patient that cannot be used is set aside: the others go on, and ``quarantine.json`` in the cohort says why. It
    has an entry for everybody who was found and is not in the cohort; ``cohort.json`` counts them.

    Args:
        src: Folder of the data set.
        out: Cohort folder; an older cohort there is replaced, anything else is not.
        source: A key of ``sources.SOURCES``.
        config: Sizes and ranges.
        name: Name of the cohort; the name of ``src`` by default.
        strict: Fail on the first patient that cannot be used.

    Raises:
        ConfigError: The source is not known.
        DataError: The folder does not hold that source, no patient can be used, ``out`` holds something else, or
            with ``strict`` any patient cannot be used.
    """
    src, out = Path(src).absolute(), Path(out).absolute()
    _refuse_to_overwrite(out)
    found = read(src, source)
    if strict:
        _refuse_unread(found)
    taken: list[str] = []
    aside: list[Quarantined] = []
    try:
        with track(f"preparing {src.name}", len(found)) as progress:
            cohort = write_cohort(
                out,
                _usable(found.patients, config, taken, aside, progress, strict),
                name=name or src.name,
                source=source,
                size_px=config.size_px,
                labels=None,
                preparation=_as_record(config),
                account=lambda: _account(found, taken, aside),
            )
    finally:
        _report(found, taken, aside)
    write_json(out / "quarantine.json", [asdict(item) for item in aside])
    return cohort


def _refuse_to_overwrite(out: Path) -> None:
    if out.exists() and not (out / "cohort.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} holds something else", expected="a new folder or a cohort", do="choose another folder")


def _as_record(config: PrepareConfig) -> dict[str, float | int | str | None]:
    low, high = config.percentiles
    return {**config.model_dump(exclude={"percentiles"}), "percentile_low": low, "percentile_high": high}


def _usable(
    raw: Sequence[RawPatient],
    config: PrepareConfig,
    taken: list[str],
    aside: list[Quarantined],
    progress: Track,
    strict: bool,
) -> Iterator[PreparedPatient]:
    pixels: dict[str, str] = {}
    for patient in raw:
        if patient.skipped:
            aside.append(Quarantined(patient.patient_id, str(patient.path), str(patient.problem), "skipped"))
            progress.advance(note=patient.patient_id)
            continue
        try:
            if patient.patient_id in taken:
                raise DataError(f"patient {patient.patient_id} comes twice", do="rename or remove one of the two")
            arrays = load(patient)
            _refuse_twin(patient.patient_id, arrays, pixels)
            prepared = _prepare(patient, arrays, config)
        except DataError as error:
            if strict:
                raise
            aside.append(Quarantined(patient.patient_id, str(patient.path), str(error)))
        else:
            taken.append(patient.patient_id)
            yield prepared
        progress.advance(note=patient.patient_id)


def _refuse_unread(found: DataSet) -> None:
    """With ``strict``, a file or folder that cannot be read is an error even where it belongs to no patient."""
    if lost := [kind for kind in kinds_of(found.left_out) if kind.lost]:
        raise DataError(
            "something cannot be read",
            got="; ".join(kind.text() for kind in lost),
            expected="files and links that can be followed",
            do="restore or remove them",
        )


def _account(found: DataSet, taken: Sequence[str], aside: Sequence[Quarantined]) -> Account:
    skipped = sum(item.status == "skipped" for item in aside)
    return Account(
        found=len(found),
        accepted=len(taken),
        set_aside=len(aside) - skipped,
        skipped=skipped,
        left_out=kinds_of(found.left_out),
    )


def _report(found: DataSet, taken: Sequence[str], aside: Sequence[Quarantined]) -> None:
    if len(taken) + len(aside) == len(found):  # not so where the first unusable patient ended it
        for line in _account(found, taken, aside).lines():
            say(line)
    refused = [item for item in aside if item.status != "skipped"]
    if refused:
        say(f"{len(refused)} of {len(found)} patients set aside (see quarantine.json):")
        for item in refused:
            say(f"  {item.patient_id}: {item.reason}")


def _refuse_twin(patient_id: str, raw: Sequence[RawArrays], pixels: dict[str, str]) -> None:
    """One patient under two names would be on both sides of a split; the one that comes later is set aside."""
    for arrays in raw:
        key = digest_bytes(arrays.image.tobytes())
        twin = pixels.setdefault(key, patient_id)
        if twin != patient_id:
            raise DataError(
                f"patient {patient_id} has the same images as {twin}",
                expected="one name for each patient",
                do="nothing, if they are one patient; else correct the file that was copied",
            )


def load(patient: RawPatient) -> list[RawArrays]:
    """Read the volumes of one patient.

    Raises:
        DataError: A file cannot be read.
    """
    if patient.problem is not None:
        raise patient.problem
    return [volume.load() for volume in patient.volumes]


def prepare_patient(patient: RawPatient, config: PrepareConfig) -> PreparedPatient:
    """Read, orient, crop, resample and scale the volumes of one patient.

    Raises:
        DataError: A file cannot be read, the phases do not share a grid, ``verify.check_volume`` finds something
            wrong with a volume, or an image is constant about the heart.
    """
    return _prepare(patient, load(patient), config)


def _prepare(patient: RawPatient, raw: list[RawArrays], config: PrepareConfig) -> PreparedPatient:
    _check(patient, raw)
    raw, notes = orient(raw)
    centre, more = heart_centre(raw)
    spacing = raw[0].spacing_mm
    pixel = config.field_mm / config.size_px
    prepared = None if spacing is None else (pixel, pixel, spacing[2])
    masked = all(r.mask is not None for r in raw)
    if not masked and any(r.mask is not None for r in raw):
        more = (*more, "only one phase has a mask: it serves to centre and orient, and is not kept")
    volumes = []
    for volume, arrays in zip(patient.volumes, raw, strict=True):
        image, mask = crop(arrays, centre, config)
        image = scale(image, config.percentiles, str(volume.image_path))
        volumes.append(Volume(patient.patient_id, volume.phase, image, mask if masked else None, prepared))
    record = PatientRecord(
        patient_id=patient.patient_id,
        group=patient.group,
        vendor=patient.vendor,
        centre=patient.centre,
        has_mask=masked,
        spacing_mm=prepared,
        notes=(*patient.notes, *notes, *more, *((raw[0].spacing_note,) if raw[0].spacing_note else ())),
    )
    return PreparedPatient(record, tuple(volumes))


def _check(patient: RawPatient, raw: Sequence[RawArrays]) -> None:
    if len({(v.image_path, v.frame) for v in patient.volumes}) < len(patient.volumes):
        raise DataError(f"ED and ES of {patient.patient_id} are the same frame", do="correct the table or Info.cfg")
    grids = {(r.image.shape[1:], r.spacing_mm and tuple(round(v, 3) for v in r.spacing_mm)) for r in raw}
    if len(grids) != 1:
        raise DataError(
            f"the phases of {patient.patient_id} do not share a grid", got=sorted(map(str, grids)), expected="one"
        )
    drawn = {int(v) for r in raw if r.mask is not None for v in np.unique(r.mask)} - {0}
    for volume, arrays in zip(patient.volumes, raw, strict=True):
        if problems := check_volume(arrays.image, arrays.mask, drawn):
            raise DataError(
                f"{volume.image_path} cannot be used: {'; '.join(problems)}",
                do="correct the image or its mask, or leave the patient out",
            )


def orient(raw: Sequence[RawArrays]) -> tuple[list[RawArrays], tuple[str, ...]]:
    """Turn all volumes of a patient so that the first slice is the base.

    The heart is larger at the base: the order is turned when its drawn area grows along the slices (slope of a
    least-squares line over the drawn slices, summed over the phases). Without masks the file's order is kept.
    A note says so where the order had to be turned or is not assured.
    """
    masks = [r.mask for r in raw if r.mask is not None]
    if not masks:
        return list(raw), ("no mask: slices in the order of the file, base first is not assured",)
    growth = sum(_growth(mask) for mask in masks)
    doubt = ("the drawn area hardly changes along the slices: base first is not assured",)
    notes = doubt if abs(growth) < UNSURE_GROWTH else ()
    if growth <= 0:
        return list(raw), notes
    turned = [
        RawArrays(r.image[::-1], None if r.mask is None else r.mask[::-1], r.spacing_mm, r.spacing_note) for r in raw
    ]
    return turned, ("slices turned: the file begins at the apex", *notes)


def _growth(mask: np.ndarray) -> float:
    """Change of the drawn area from slice to slice, as a share of the largest area."""
    area = np.count_nonzero(mask, axis=(1, 2))
    drawn = np.flatnonzero(area)
    return float(np.polyfit(drawn, area[drawn], 1)[0] / area.max()) if len(drawn) > 1 else 0.0


def heart_centre(raw: Sequence[RawArrays]) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Find one centre (row, column) for all volumes of a patient, in pixels.

    With masks it is the centroid of everything drawn in all phases; without, see :func:`centre_from_motion`.
    """
    masks = [r.mask for r in raw if r.mask is not None]
    if masks:
        drawn = np.sum([mask.astype(bool).sum(axis=0) for mask in masks], axis=0)
        row, column = ndimage.center_of_mass(drawn)
        return (float(row), float(column)), ()
    if len(raw) > 1:
        return centre_from_motion(raw[0].image, raw[1].image), ("no mask: centred on what moves between ED and ES",)
    rows, columns = raw[0].image.shape[1:]
    return ((rows - 1) / 2, (columns - 1) / 2), ("no mask and one phase: centred on the middle of the image",)


def centre_from_motion(ed: np.ndarray, es: np.ndarray) -> tuple[float, float]:
    """Find the heart as what moves between end-diastole and end-systole.

    The absolute difference of the two phases, summed over the slices and smoothed, times a Gaussian prior about
    the middle of the image; the centre is the centroid of the region about the peak that is above its half.

    Distance to the masks' centroid, in source pixels (median / 90th percentile / largest): 9.4 / 17.2 / 24.0 on
    70 ACDC patients, on which the widths were chosen (the middle of the image: 16.2 / 26.5 / 58.0). On 45
    Sunnybrook patients, whose masks show the LV alone, 15.7 / 22.3 / 24.2 (the middle: 8.0 / 15.4 / 20.5): a rough
    centre, to be used with a field of view that leaves room.

    Args:
        ed: (Z, H, W), any range.
        es: (Z', H, W), same range. Where one has more slices, the other is compared where it fits best.

    Returns:
        Row and column in pixels.

    Raises:
        DataError: The two images are equal.
    """
    long, short = (ed, es) if len(ed) >= len(es) else (es, ed)
    starts = range(len(long) - len(short) + 1)
    energy = min((np.abs(long[z : z + len(short)] - short).sum(axis=0) for z in starts), key=np.sum)
    if not energy.any():
        raise DataError("ED and ES show the same image, and there is no mask to centre on", do="check the two files")
    smooth = ndimage.gaussian_filter(energy, min(energy.shape) / 16)
    axes = [(np.arange(n) - (n - 1) / 2) / (0.2 * n) for n in energy.shape]
    prior = np.exp(-0.5 * (axes[0][:, None] ** 2 + axes[1][None, :] ** 2))
    weight = smooth * prior
    regions, _ = ndimage.label(weight > weight.max() / 2)
    peak = regions[np.unravel_index(np.argmax(weight), weight.shape)]
    row, column = ndimage.center_of_mass(weight, regions, peak)
    return float(row), float(column)


def crop(raw: RawArrays, centre: tuple[float, float], config: PrepareConfig) -> tuple[np.ndarray, np.ndarray | None]:
    """Cut the field of view about ``centre`` and resample it to ``size_px`` in plane.

    Masks are resampled per label and the strongest label wins, so that no label appears between two others.

    Returns:
        Image float32 (Z, size, size) in the source's range, mask uint8 (Z, size, size) or None.
    """
    spacing = raw.spacing_mm
    field = (float(config.field_px),) * 2 if spacing is None else tuple(config.field_mm / s for s in spacing[:2])
    edge = (raw.image[:, [0, -1], :], raw.image[:, :, [0, -1]])
    lowest = float(min(part.min() for part in edge))
    image = _resample(raw.image, centre, field, config.size_px, lowest)
    if raw.mask is None:
        return image, None
    votes = [
        _resample((raw.mask == label).astype(np.float32), centre, field, config.size_px, float(label == 0))
        for label in Label
    ]
    return image, np.argmax(votes, axis=0).astype(np.uint8)


def _resample(
    volume: np.ndarray, centre: tuple[float, float], field: Sequence[float], size: int, outside: float
) -> np.ndarray:
    """Linear resampling in plane; a Gaussian first where the pixels grow, as in skimage.transform.resize."""
    step = np.array([f / size for f in field])
    blurred = ndimage.gaussian_filter(volume, (0, *np.maximum(0, (step - 1) / 2)), mode="nearest")
    start = np.array(centre) - step * (size - 1) / 2
    return ndimage.affine_transform(
        blurred,
        np.array([1, *step]),
        np.array([0, *start]),
        output_shape=(len(volume), size, size),
        order=1,
        mode="constant",
        cval=outside,
    )


def scale(image: np.ndarray, percentiles: tuple[float, float], where: str) -> np.ndarray:
    """Map two percentiles of a volume to -1 and 1, and clip.

    Raises:
        DataError: The two percentiles are equal: the image is (nearly) constant.
    """
    low, high = np.percentile(image, percentiles)
    if not high > low:
        raise DataError(
            f"{where} is constant about the heart", got=f"{low} at both percentiles", expected="an image with contrast"
        )
    return np.clip(2 * (image - low) / (high - low) - 1, -1, 1).astype(np.float32)

"""From a source's files to a cohort: one orientation, one field of view around the heart, one range of grey."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator
from scipy import ndimage

from cmrfed.core.artifacts import write_json
from cmrfed.core.errors import DataError
from cmrfed.core.progress import say, track
from cmrfed.core.settings.config import Section
from cmrfed.data.cohort import Cohort, PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.dicom.identity import key_beside, site_key
from cmrfed.data.geometry.orientation import orient
from cmrfed.data.labels import Label
from cmrfed.data.preparation.account import Account, kinds_of
from cmrfed.data.preparation.checks import Examined, Problem, Twins, examine, image_key, lacking, place_of, structures
from cmrfed.data.sources import DICOM, DataSet, RawArrays, RawPatient, read

SKIPPED = "skipped"
NAMED_MOST = 5
"""Largest number of patients that a note names."""


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


@dataclass(frozen=True)
class Verdict:
    """What became of a patient: prepared, or what is wrong with it."""

    patient: RawPatient
    prepared: PreparedPatient | None
    problems: tuple[Problem, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What had to be assumed."""
        return () if self.prepared is None else self.prepared.record.notes


def prepare(
    src: Path,
    out: Path,
    source: str,
    config: PrepareConfig,
    *,
    name: str | None = None,
    strict: bool = False,
    key: Path | None = None,
) -> Cohort:
    """Prepare a data set as a cohort folder.

    A patient of which `cmrfed verify` would report anything is set aside: the others go on, and ``quarantine.json`` in
    the cohort says why. It has an entry for everybody who was found and is not in the cohort; ``cohort.json`` counts
    them.

    Args:
        src: Folder of the data set.
        out: Cohort folder; an older cohort there is replaced, anything else is not.
        source: A name in ``sources.SOURCES``.
        config: Sizes and ranges.
        name: Name of the cohort; by default that of ``src``, or of ``out`` for DICOM, whose folders may name patients.
        strict: Fail when a patient cannot be used.
        key: Of DICOM, the file with the key of patients' names, which is made where there is none; beside ``out`` by
            default.

    Raises:
        ConfigError: The source is not known.
        DataError: The folder does not hold that source, no patient can be used, ``out`` holds something else, or
            with ``strict`` any patient cannot be used.
    """
    src, out = Path(src).absolute(), Path(out).absolute()
    _refuse_to_overwrite(out)
    if source == DICOM:
        name = name or out.name
        found = read(src, source, site_key(key or key_beside(out), out))
    else:
        found = read(src, source)
    if strict:
        _refuse_unread(found)
    verdicts = assess(found.patients, config, title=f"preparing {src.name}")
    aside = [_quarantined(verdict) for verdict in verdicts if verdict.prepared is None]
    account = _account(found, aside)
    _report(account, aside, verdicts)
    if strict and (refused := [item for item in aside if item.status != SKIPPED]):
        raise DataError(f"patient {refused[0].patient_id} cannot be used: {refused[0].reason}")
    cohort = write_cohort(
        out,
        (v.prepared for v in verdicts if v.prepared is not None),
        name=name or src.name,
        source=source,
        size_px=config.size_px,
        labels=None,
        preparation=_as_record(config),
        account=lambda: account,
    )
    write_json(out / "quarantine.json", [asdict(item) for item in aside])
    for verdict in verdicts:
        if verdict.patient.keep is not None:
            verdict.patient.keep(out, verdict.prepared is not None)
    return cohort


def _refuse_to_overwrite(out: Path) -> None:
    if out.exists() and not (out / "cohort.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} holds something else", expected="a new folder or a cohort", do="choose another folder")


def _as_record(config: PrepareConfig) -> dict[str, float | int | str | None]:
    low, high = config.percentiles
    return {**config.model_dump(exclude={"percentiles"}), "percentile_low": low, "percentile_high": high}


def _quarantined(verdict: Verdict) -> Quarantined:
    patient = verdict.patient
    status = SKIPPED if patient.skipped else "set aside"
    return Quarantined(patient.patient_id, str(patient.path), "; ".join(map(str, verdict.problems)), status)


def _refuse_unread(found: DataSet) -> None:
    """With ``strict``, a file or folder that cannot be read is an error even where it belongs to no patient."""
    if lost := [kind for kind in kinds_of(found.left_out) if kind.lost]:
        raise DataError(
            "something cannot be read",
            got="; ".join(kind.text() for kind in lost),
            expected="files and links that can be followed",
            do="restore or remove them",
        )


def _account(found: DataSet, aside: Sequence[Quarantined]) -> Account:
    skipped = sum(item.status == SKIPPED for item in aside)
    return Account(
        found=len(found),
        accepted=len(found) - len(aside),
        set_aside=len(aside) - skipped,
        skipped=skipped,
        left_out=kinds_of(found.left_out),
    )


def _report(account: Account, aside: Sequence[Quarantined], verdicts: Sequence[Verdict]) -> None:
    for line in account.lines():
        say(line)
    if account.set_aside:
        say(f"{account.set_aside} of {account.found} patients set aside (see quarantine.json):")
    for item in aside:
        if item.status != SKIPPED:
            say(f"  {item.patient_id}: {item.reason}")
    for line in grouped_notes((v.patient.patient_id, v.notes) for v in verdicts):
        say(f"note: {line}")


def grouped_notes(notes: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """One line for each different note, with the patients that it is about."""
    about: dict[str, list[str]] = {}
    for patient, texts in notes:
        for text in texts:
            about.setdefault(text, []).append(patient)
    lines = []
    for text, patients in about.items():
        more = f" and {len(patients) - NAMED_MOST} more" if len(patients) > NAMED_MOST else ""
        lines.append(f"{text} ({', '.join(patients[:NAMED_MOST])}{more})")
    return lines


# --- which patients can be used ---------------------------------------------------------------
@dataclass(frozen=True)
class _Seen:
    """What is kept of a patient until all of its data set have been read."""

    patient: RawPatient
    prepared: PreparedPatient | None
    problems: tuple[Problem, ...]
    images: tuple[tuple[str, str], ...] = ()
    """Place and digest of each image."""
    drawn: tuple[tuple[str, frozenset[int]], ...] = ()
    """Place of each image and the structures that are drawn in it."""


def assess(
    raw: Sequence[RawPatient],
    config: PrepareConfig,
    *,
    title: str,
    twins: Twins | None = None,
    owner: Callable[[str], str] = str,
) -> list[Verdict]:
    """Read, check and prepare the patients of a data set: what `prepare` takes and what `verify` reports.

    Args:
        raw: The patients, in order.
        config: Sizes and ranges.
        title: What the progress bar says.
        twins: Images of other data sets, which must not come again; grows by those that are accepted.
        owner: Patient identifier → its name in ``twins``.

    Returns:
        One verdict a patient, in order. Images are kept in float16, as a cohort keeps them.
    """
    seen = []
    with track(title, len(raw)) as progress:
        for patient in raw:
            seen.append(_look(patient, config))
            progress.advance(note=patient.patient_id)
    annotated = frozenset[int]().union(*(labels for s in seen if not s.problems for _, labels in s.drawn))
    twins, names = Twins() if twins is None else twins, set[str]()
    verdicts = []
    for item in seen:
        problems = list(item.problems)
        if item.patient.patient_id in names:
            reason = f"patient {item.patient.patient_id} comes twice: rename or remove one of the two"
            problems.append(Problem(str(item.patient.path), reason))
        for place, labels in item.drawn:
            problems += [Problem(place, reason) for reason in lacking(labels, annotated)]
        problems = problems or twins.problems(owner(item.patient.patient_id), item.images)
        if not problems:
            names.add(item.patient.patient_id)
        verdicts.append(Verdict(item.patient, None if problems else item.prepared, tuple(problems)))
    return verdicts


def _look(patient: RawPatient, config: PrepareConfig) -> _Seen:
    examined = examine(patient)
    if examined.problems:
        return _Seen(patient, None, examined.problems)
    try:
        prepared = _prepared(examined, config)
    except DataError as error:
        return _Seen(patient, None, (Problem(str(patient.path), str(error)),))
    pairs = list(zip(examined.volumes, examined.arrays, strict=True))
    return _Seen(
        patient,
        prepared,
        (),
        tuple((place_of(v), image_key(a.image)) for v, a in pairs),
        tuple((place_of(v), structures(a.mask)) for v, a in pairs),
    )


def _prepared(examined: Examined, config: PrepareConfig) -> PreparedPatient:
    """Orient, crop, resample and scale the volumes of one patient.

    Raises:
        DataError: The heart cannot be found, or an image is constant about it.
    """
    patient = examined.patient
    raw, notes = orient(examined.arrays)
    centre, more = heart_centre(raw)
    spacing = raw[0].spacing_mm
    pixel = config.field_mm / config.size_px
    prepared = None if spacing is None else (pixel, pixel, spacing[2])
    volumes = []
    for volume, arrays in zip(examined.volumes, raw, strict=True):
        image, mask = crop(arrays, centre, config)
        image = scale(image, config.percentiles, str(volume.image_path)).astype(np.float16)
        volumes.append(Volume(patient.patient_id, volume.phase, image, mask, prepared))
    record = PatientRecord(
        patient_id=patient.patient_id,
        group=patient.group,
        vendor=patient.vendor,
        centre=patient.centre,
        has_mask=all(r.mask is not None for r in raw),
        spacing_mm=prepared,
        notes=(*examined.notes, *notes, *more),
    )
    return PreparedPatient(record, tuple(volumes))


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

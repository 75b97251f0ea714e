"""What must be true of a patient before it is used: one list of checks, which `prepare` and `verify` both ask."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from cmrfed.core.artifacts import digest_bytes
from cmrfed.core.errors import DataError
from cmrfed.data.geometry.overlay import fits_better_turned
from cmrfed.data.labels import STRUCTURES, Label, Phase
from cmrfed.data.sources.raw import RawArrays, RawPatient, RawVolume

MIN_RING = 0.7
"""Least share of the LV's outline that must border on myocardium (140 ACDC volumes: 0.998 and more; with LV and RV
swapped at most 0.42)."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file or patient."""

    path: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.path in self.reason else f"{self.path} cannot be used: {self.reason}"


@dataclass(frozen=True)
class Examined:
    """A patient with what was read: volumes (ED before ES) and their arrays, none where something is wrong."""

    patient: RawPatient
    volumes: tuple[RawVolume, ...] = ()
    arrays: tuple[RawArrays, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def examine(patient: RawPatient) -> Examined:
    """Read a patient and ask all that can be asked of it alone."""
    if patient.problem is not None:
        return Examined(patient, problems=(Problem(str(patient.path), str(patient.problem)),))
    if len({(v.image_path, v.frame) for v in patient.volumes}) < len(patient.volumes):
        reason = f"ED and ES of {patient.patient_id} are the same frame: correct the table or Info.cfg"
        return Examined(patient, problems=(Problem(str(patient.path), reason),))
    arrays, problems = [], [*_half_masked(patient)]
    for volume in patient.volumes:
        try:
            arrays.append(volume.load())
        except DataError as error:
            culprit = volume.mask_path if str(volume.mask_path) in str(error) else volume.image_path
            problems.append(Problem(str(culprit), str(error)))
        else:
            image, mask = arrays[-1].image, arrays[-1].mask
            wrong = check_volume(image, mask, structures(mask))
            if not wrong and mask is not None and fits_better_turned(image, mask, 0):
                wrong = ["the mask lies mirrored or turned on its image: its outlines fit the greys better another way"]
            problems += [Problem(str(volume.image_path), reason) for reason in wrong]
    if not problems:
        problems += _between_phases(patient, arrays)
    if problems:
        return Examined(patient, problems=tuple(problems))
    volumes, arrays, notes = by_cavity(patient, arrays)
    every = dict.fromkeys((*patient.notes, *notes, *(n for a in arrays for n in a.notes)))
    return Examined(patient, tuple(volumes), tuple(arrays), tuple(every))


def place_of(volume: RawVolume) -> str:
    """The file of a volume, with its frame where it has several."""
    return str(volume.image_path) + ("" if volume.frame is None else f" frame {volume.frame}")


def _half_masked(patient: RawPatient) -> list[Problem]:
    bare = [v for v in patient.volumes if v.mask_path is None]
    if not bare or len(bare) == len(patient.volumes):
        return []
    return [Problem(str(v.image_path), "its mask is missing, while the other phase has one") for v in bare]


def _between_phases(patient: RawPatient, arrays: Sequence[RawArrays]) -> list[Problem]:
    """What is wrong with the phases of a patient side by side."""
    problems = []
    grids = {(a.image.shape[1:], a.spacing_mm and tuple(round(v, 2) for v in a.spacing_mm)) for a in arrays}
    if len(grids) > 1:
        said = "; ".join(sorted(f"{shape}, {spacing}" for shape, spacing in grids))
        reason = f"the phases of {patient.patient_id} do not share a grid: (rows, columns), spacing: {said}"
        problems.append(Problem(str(patient.path), reason))
    if len(arrays) == 2 and np.array_equal(arrays[0].image, arrays[1].image):
        first, second = (place_of(v) for v in patient.volumes)
        problems.append(Problem(second, f"same image as {first}: both phases show the same image"))
    return problems


def by_cavity(
    patient: RawPatient, arrays: Sequence[RawArrays]
) -> tuple[list[RawVolume], list[RawArrays], tuple[str, ...]]:
    """Put the volumes in order of phase by the LV's cavity: it is larger at end-diastole, whatever a file's name says.

    Where the cavity is not drawn in both phases, the source is believed.
    """
    volumes, loaded = list(patient.volumes), list(arrays)
    size = [np.count_nonzero(a.mask == Label.LV) for a in loaded if a.mask is not None]
    if len(size) != 2 or not all(size) or {v.phase for v in volumes} != set(Phase):
        return volumes, loaded, ()
    if size[0] == size[1]:
        return volumes, loaded, ("the LV cavity is equally large in both phases: which is end-diastole is not assured",)
    diastole = int(np.argmax(size))
    claimed = next(i for i, v in enumerate(volumes) if v.phase is Phase.ED)
    order = [diastole, 1 - diastole]
    volumes = [replace(volumes[i], phase=phase) for i, phase in zip(order, Phase, strict=True)]
    note = "ED and ES exchanged: the source calls the phase with the smaller LV cavity end-diastole"
    contradicts = claimed != diastole and not patient.phases_assumed
    return volumes, [loaded[i] for i in order], (note,) if contradicts else ()


# --- one volume -------------------------------------------------------------------------------
def check_volume(image: np.ndarray, mask: np.ndarray | None, annotated_labels: Iterable[int]) -> list[str]:
    """Say what is wrong with a volume.

    Args:
        image: (Z, H, W), any range.
        mask: (Z, H, W), canonical labels; None where there is none.
        annotated_labels: Structures that the annotators drew in this data set. A rule that needs a structure
            which they did not draw is left out (Sunnybrook, for example, has the LV alone).

    Returns:
        Reasons, empty when nothing is wrong.
    """
    problems = []
    if not np.isfinite(image).all():
        problems.append(f"the image holds {int((~np.isfinite(image)).sum())} values that are NaN or infinite")
    elif image.min() == image.max():
        problems.append(f"the image is constant: {float(image.flat[0])} everywhere")
    if mask is None:
        return problems
    if mask.shape != image.shape:
        return [*problems, f"image and mask differ in shape: {image.shape} and {mask.shape}"]
    strange = sorted({int(v) for v in np.unique(mask)} - {int(label) for label in Label})
    if strange:
        return [*problems, f"the mask holds unexpected labels {strange}"]
    return problems + _check_mask(mask, {Label(v) for v in annotated_labels} - {Label.BACKGROUND})


def _check_mask(mask: np.ndarray, annotated: set[Label]) -> list[str]:
    if not mask.any():
        return ["the mask is empty"]
    absent = [label.name for label in STRUCTURES if label in annotated and not (mask == label).any()]
    if absent:
        return [f"the mask lacks {' and '.join(absent)}"]
    problems = []
    if annotated >= {Label.LV, Label.MYO, Label.RV} and not lv_is_nearer(mask):
        problems.append("LV and RV seem swapped: the RV's centroid is nearer to the myocardium's than the LV's is")
    elif annotated >= {Label.LV, Label.MYO} and (share := ring_share(mask)) < MIN_RING:
        problems.append(
            f"the myocardium does not enclose the LV: it borders on {share:.0%} of the LV's outline, "
            f"at least {MIN_RING:.0%} is expected (swapped labels?)"
        )
    return problems


def lv_is_nearer(mask: np.ndarray) -> bool:
    """Whether the LV's in-plane centroid lies nearer to the myocardium's than the RV's does."""
    lv, rv, myo = (
        np.array([axis.mean() for axis in np.nonzero(mask == label)[1:]]) for label in (Label.LV, Label.RV, Label.MYO)
    )
    return bool(np.linalg.norm(lv - myo) < np.linalg.norm(rv - myo))


def ring_share(mask: np.ndarray) -> float:
    """Share of the pixels around the LV (in plane) that are myocardium."""
    cross = ndimage.generate_binary_structure(2, 1)[None]
    lv = mask == Label.LV
    around = ndimage.binary_dilation(lv, cross) & ~lv
    return float((mask[around] == Label.MYO).mean()) if around.any() else 0.0


# --- patients side by side --------------------------------------------------------------------
@dataclass
class Twins:
    """Images that were accepted before: one patient under two names would be on both sides of a split."""

    seen: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Key of an image → its patient and place."""

    def problems(self, owner: str, images: Iterable[tuple[str, str]]) -> list[Problem]:
        """Which of a patient's images, (place, key), were seen elsewhere; they are registered if none was.

        A patient that is not accepted is never registered, so that its corrected copy is taken.
        """
        images, found = list(images), []
        for place, key in images:
            other, where = self.seen.get(key, (owner, place))
            if where != place:
                what = "both phases show the same image" if other == owner else "the same patient under two identifiers"
                found.append(Problem(place, f"same image as {where}: {what}"))
        if not found:
            self.seen.update({key: (owner, place) for place, key in images})
        return found


def image_key(image: np.ndarray) -> str:
    """Key under which the same image is found again."""
    content = np.ascontiguousarray(image, np.float32)
    return f"{content.shape}{digest_bytes(content.tobytes())}"


def structures(mask: np.ndarray | None) -> frozenset[int]:
    """The labels of a mask but for the background; none without a mask."""
    return frozenset() if mask is None else frozenset(int(v) for v in np.unique(mask)) - {int(Label.BACKGROUND)}


def lacking(drawn: frozenset[int], annotated: frozenset[int]) -> list[str]:
    """Say which structures of a data set a mask lacks; nothing where it has all, or there is no mask."""
    if not drawn or annotated <= drawn:
        return []
    absent = " and ".join(Label(v).name for v in sorted(annotated - drawn))
    return [f"the mask lacks {absent}, which other volumes have"]

"""Scoring of segmenters, per volume; the network and its training are those of `cmrfed.segmentation.segmenter`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import nn

from cmrfed.core.errors import EvaluationError
from cmrfed.data.cohort import Volume
from cmrfed.data.labels import STRUCTURES, Label, Phase
from cmrfed.evaluation.utility.surface_distance import PIXELS, Spacing, SurfaceDistance, surface_distance
from cmrfed.segmentation.segmenter import (
    LabelledSlices,
    augment,
    build_segmenter,
    labelled_slices,
    segment,
    train_segmenter,
)

__all__ = [
    "LabelledSlices",
    "Patients",
    "VolumeDice",
    "augment",
    "build_segmenter",
    "dice_per_volume",
    "labelled_slices",
    "score_volumes",
    "segment",
    "train_segmenter",
    "volume_dice",
]


@dataclass(frozen=True)
class VolumeDice:
    """Dice of one volume per structure: None where neither mask nor prediction has it, 0 where only one has.

    ``missed`` are structures that the mask has and the prediction lacks; they count as 0. ``surface`` is in mm, or in
    pixels where ``spacing_mm`` is None; ``voxels`` are those found and those drawn.
    """

    patient_id: str
    phase: Phase
    dice: dict[Label, float | None]
    missed: tuple[Label, ...]
    surface: dict[Label, SurfaceDistance | None] = field(default_factory=dict)
    voxels: dict[Label, tuple[int, int]] = field(default_factory=dict)
    spacing_mm: Spacing | None = None


def volume_dice(predicted: np.ndarray, mask: np.ndarray, label: Label) -> float | None:
    """Dice of one structure over a whole volume; None when both are empty (Dice 1945; 0/0 has no value)."""
    found, truth = predicted == label, mask == label
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else None


class Patients(Protocol):
    """What a segmenter is tested on: a cohort, or images that were made from one."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def labels(self) -> tuple[Label, ...]:
        """Structures that the annotators drew."""

    def iter_volumes(self) -> Iterator[Volume]:
        """Volume after volume."""


def _score(predicted: np.ndarray, volume: Volume, mask: np.ndarray, labels: Sequence[Label]) -> VolumeDice:
    """Compare a prediction (Z, H, W) with the mask of its volume."""
    spacing = volume.spacing_mm
    voxels = {v: (int((predicted == v).sum()), int((mask == v).sum())) for v in labels}
    return VolumeDice(
        patient_id=volume.patient_id,
        phase=volume.phase,
        dice={v: volume_dice(predicted, mask, v) for v in labels},
        missed=tuple(v for v, (found, drawn) in voxels.items() if drawn and not found),
        surface={v: surface_distance(predicted == v, mask == v, spacing or PIXELS) for v in labels},
        voxels=voxels,
        spacing_mm=spacing,
    )


def dice_per_volume(model: nn.Module, cohort: Patients, labels: Sequence[Label] = STRUCTURES) -> list[VolumeDice]:
    """Score a segmenter on every volume with a mask, on those of ``labels`` that the cohort's annotators drew."""
    return score_volumes(lambda image: segment(model, image), cohort, labels)


def score_volumes(
    find: Callable[[np.ndarray], np.ndarray], cohort: Patients, labels: Sequence[Label]
) -> list[VolumeDice]:
    """Score whatever turns images (Z, H, W) into labels uint8 (Z, H, W); asked once for every volume with a mask."""
    out, scored = [], [label for label in STRUCTURES if label in cohort.labels and label in labels]
    for volume in cohort.iter_volumes():
        if volume.mask is None:
            continue
        out.append(_score(find(volume.image), volume, volume.mask, scored))
    if not out or not scored:
        raise EvaluationError(
            f"cohort {cohort.name} cannot test a segmenter",
            got=f"{len(out)} volumes with masks, structures {[label.name for label in cohort.labels]}",
            expected=f"volumes with masks of one of {[label.name for label in labels]}",
            do="give another cohort",
        )
    return out

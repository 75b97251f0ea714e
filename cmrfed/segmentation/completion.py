"""Masks of public patients made whole: what an annotator drew is kept, and what nobody drew comes from a segmenter.

Public data sets often show some structures alone: Sunnybrook has the cavity of the left ventricle. A segmenter that was
trained on a phantom, whose masks are known in full, fills in the others (self-training with partial labels, as in
Zhou et al., ICCV 2019, arXiv 1904.06346, without their prior).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cmrfed.core.device import HOST, batch_that_fits, to_device, to_host
from cmrfed.core.errors import DataError
from cmrfed.data.cohort import Cohort, PreparedPatient, write_cohort
from cmrfed.data.labels import STRUCTURES, Label
from cmrfed.segmentation.segmenter import (
    BATCH,
    BYTES,
    LARGEST_BATCH,
    LabelledSlices,
    labelled_slices,
    segment,
    train_segmenter,
)
from cmrfed.segmentation.settings import SegmenterConfig

NOTE = "structures filled in by a segmenter: "
"""How the note of a patient begins whose mask was completed."""


@dataclass(frozen=True)
class Completion:
    """A cohort with whole masks, and how it came by them.

    pixels: share of all pixels that carry a structure which was filled in. slices: share of slices with such a pixel.
    agreement: Dice of the segmenter's own known structures with the true ones, mean over volumes; a structure that no
    annotator drew has none.
    """

    cohort: Cohort
    pixels: float
    slices: float
    agreement: dict[Label, float]


def train_public_segmenter(
    phantom: Cohort,
    config: SegmenterConfig,
    seed: int,
    *,
    completed: Sequence[Cohort] = (),
    on_step: Callable[[], None] | None = None,
    device: torch.device = HOST,
) -> nn.Module:
    """Train the reference segmenter on public patients: on the phantom, and on completed cohorts where there are some.

    Args:
        phantom: Simulated patients, with whole masks.
        config: Size of the network and of the training.
        seed: Decides weights, order and augmentation.
        completed: Cohorts with whole masks, which together fill ``config.mixed_share`` of every batch.
        on_step: Called after every step.
        device: Where it is trained, and stays.

    Raises:
        EvaluationError: The size of the slices does not fit the network.
    """
    first = labelled_slices(phantom)
    second = joined([labelled_slices(cohort) for cohort in completed]) if completed else None
    return train_segmenter(first.images, first.masks, config, seed, mixed_with=second, on_step=on_step, device=device)


def joined(parts: Sequence[LabelledSlices]) -> LabelledSlices:
    """Slices of several sets as one, in order."""
    if len(parts) == 1:
        return parts[0]
    return LabelledSlices(torch.cat([p.images for p in parts]), torch.cat([p.masks for p in parts]))


@torch.no_grad()
def complete_masks(model: nn.Module, images: np.ndarray, masks: np.ndarray, known: Sequence[Label]) -> np.ndarray:
    """Fill in the structures that nobody drew.

    Pixels of a known structure keep it, and no other pixel gets one: each of them takes the likeliest label among the
    background and the structures that are not known. Without known structures this is plain segmentation.

    Args:
        model: (B, 1, H, W) => logits (B, 4, H, W).
        images: (N, H, W) in [-1, 1].
        masks: uint8 (N, H, W), canonical labels; those that are not known are not looked at.
        known: Structures that the annotators drew.

    Returns:
        uint8 (N, H, W).
    """
    model.eval()
    device = next((weights.device for weights in model.parameters()), HOST)
    size = batch_that_fits(device, BATCH, images[0].size * BYTES, most=LARGEST_BATCH)
    batches = torch.from_numpy(np.asarray(images, np.float32))[:, None].split(size)
    barred = [int(label) for label in known]

    def filled(x: Tensor) -> Tensor:
        logits = model(to_device(x, device)).float()
        logits[:, barred] = -torch.inf
        return to_host(logits.argmax(1))

    found = torch.cat([filled(x) for x in batches]).numpy().astype(np.uint8)
    return np.where(np.isin(masks, barred), masks, found).astype(np.uint8)


def complete_labels(
    cohort: Cohort, model: nn.Module, out: Path, *, known: Sequence[Label] | None = None, name: str | None = None
) -> Completion:
    """Write a cohort whose masks show all structures.

    Args:
        cohort: Its images, and as far as they go its masks; a patient without a mask gets all structures.
        model: (B, 1, H, W) => logits (B, 4, H, W).
        out: Folder of the new cohort.
        known: Structures to keep as they were drawn; None: all that the annotators drew; empty: none.
        name: Of the new cohort; None: as the cohort.

    Raises:
        DataError: The cohort is empty.
    """
    if not len(cohort):
        raise DataError(f"cohort {cohort.name} is empty", expected="at least one patient", do="add patients")
    kept = cohort.labels if known is None else tuple(known)
    count = _Count(kept)
    whole = write_cohort(
        out,
        _patients(cohort, model, kept, count),
        name=name or cohort.name,
        source=cohort.header.source,
        size_px=cohort.size_px,
        labels=sorted(STRUCTURES),
        preparation=cohort.header.preparation,
    )
    return Completion(whole, *count.shares, count.agreement)


class _Count:
    """What was filled in, and how well the segmenter finds what is known."""

    def __init__(self, known: Sequence[Label]) -> None:
        self._known = known
        self._filled = self._pixels = self._touched = self._slices = 0
        self._dice: dict[Label, list[float]] = {label: [] for label in known}

    def add(self, mask: np.ndarray | None, whole: np.ndarray, found: np.ndarray) -> None:
        """Take a volume: what was drawn, what it became and what the segmenter says by itself, each (Z, H, W)."""
        known = np.zeros(whole.shape, bool) if mask is None else np.isin(mask, [int(v) for v in self._known])
        new = (whole != Label.BACKGROUND) & ~known
        self._filled, self._pixels = self._filled + int(new.sum()), self._pixels + new.size
        self._touched, self._slices = self._touched + int(new.any((1, 2)).sum()), self._slices + len(new)
        for label in self._known if mask is not None else ():
            drawn, own = np.asarray(mask == label), np.asarray(found == label)
            if total := int(drawn.sum()) + int(own.sum()):
                self._dice[label].append(2 * int((drawn & own).sum()) / total)

    @property
    def shares(self) -> tuple[float, float]:
        """Of pixels, and of slices."""
        return self._filled / max(self._pixels, 1), self._touched / max(self._slices, 1)

    @property
    def agreement(self) -> dict[Label, float]:
        """Mean Dice of each known structure."""
        return {label: float(np.mean(values)) for label, values in self._dice.items() if values}


def _patients(cohort: Cohort, model: nn.Module, known: Sequence[Label], count: _Count) -> Iterator[PreparedPatient]:
    names = " and ".join(label.name for label in STRUCTURES if label not in known)
    for i, record in enumerate(cohort.patients):
        volumes = []
        for volume in cohort.volumes(i):
            empty = np.zeros(volume.image.shape, np.uint8)
            kept = known if volume.mask is not None else ()
            whole = complete_masks(model, volume.image, empty if volume.mask is None else volume.mask, kept)
            count.add(volume.mask, whole, segment(model, volume.image))
            volumes.append(replace(volume, mask=whole))
        notes = (*record.notes, *([NOTE + names] if names else []))
        yield PreparedPatient(record.model_copy(update={"has_mask": True, "notes": notes}), tuple(volumes))

"""Random access to the slices of a cohort: which rows to draw, and rows as a batch of tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmrfed.core.errors import DataError
from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import Phase

NO_SLICE = -1
"""Marks every pixel of a neighbouring mask that does not exist."""


@dataclass(frozen=True)
class SliceBatch:
    """Slices with the anatomy around them.

    image: float32 (B, 1, H, W) in [-1, 1]. mask: int64 (B, H, W), canonical labels.
    basal: int64 (B, H, W), the mask one slice nearer to the base in the same phase; -1 where there is none.
    ed: int64 (B, H, W), the end-diastolic mask at the same position, for ES slices; -1 elsewhere.
    phase: int64 (B,). position: float32 (B,), 0 at the base, 1 at the apex. patient: int64 (B,), number in the folder.
    """

    image: Tensor
    mask: Tensor
    basal: Tensor
    ed: Tensor
    phase: Tensor
    position: Tensor
    patient: Tensor

    def __len__(self) -> int:
        return len(self.image)

    @property
    def neighbours(self) -> Tensor:
        """The basal neighbour and the ED mask, int64 (B, 2, H, W); -1 where there is none."""
        return torch.stack([self.basal, self.ed], 1)


def draw_rows(cohort: Cohort, patients: int, slices_each: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``patients`` patients with replacement and of each ``slices_each`` slices: rows (patients * slices_each,).

    Every patient is equally likely, however many slices there are of them.
    """
    if not len(cohort):
        raise DataError(f"cohort {cohort.name} is empty", expected="at least one patient", do="add patients")
    chosen = rng.integers(len(cohort), size=patients)
    return np.concatenate([rng.choice(cohort.rows_of[i], size=slices_each) for i in chosen])


@dataclass(frozen=True)
class Places:
    """Where slices and their neighbours are in a cohort's files, and what is known of them beside the pixels.

    rows, basal, ed: int64 (B,), rows of the files; -1 where there is no such neighbour. phase, patient: int64 (B,).
    position: float32 (B,).
    """

    rows: np.ndarray
    basal: np.ndarray
    ed: np.ndarray
    phase: np.ndarray
    position: np.ndarray
    patient: np.ndarray


def places(cohort: Cohort, rows: np.ndarray) -> Places:
    """Where rows and their neighbours are; no pixel is read."""
    rows = np.asarray(rows)
    table = cohort.slices[rows]
    index, count = table["index"].astype(int), table["count"].astype(int)
    return Places(
        rows=rows,
        basal=np.where(index > 0, rows - 1, -1),
        ed=_ed_rows(cohort, rows),
        phase=table["phase"].astype(int),
        position=(index / np.maximum(count - 1, 1)).astype(np.float32),
        patient=table["patient"].astype(np.int64),
    )


def gather(cohort: Cohort, rows: np.ndarray) -> SliceBatch:
    """Read rows of the cohort's folder as a batch, on the host."""
    at = places(cohort, rows)

    def neighbours(rows: np.ndarray) -> Tensor:
        there = cohort.masks[np.maximum(rows, 0)].astype(np.int64)
        return torch.from_numpy(np.where((rows >= 0)[:, None, None], there, NO_SLICE))

    return SliceBatch(
        image=torch.from_numpy(np.asarray(cohort.images[at.rows], np.float32))[:, None],
        mask=torch.from_numpy(np.asarray(cohort.masks[at.rows], np.int64)),
        basal=neighbours(at.basal),
        ed=neighbours(at.ed),
        phase=torch.from_numpy(at.phase),
        position=torch.from_numpy(at.position),
        patient=torch.from_numpy(at.patient),
    )


def _ed_rows(cohort: Cohort, rows: np.ndarray) -> np.ndarray:
    """For ES rows, the row of the same patient's ED slice at the nearest relative position; -1 for others."""
    out = np.full(len(rows), -1)
    owners = np.asarray(cohort.slices["patient"])
    for k, row in enumerate(rows):
        entry = cohort.slices[row]
        if entry["phase"] != Phase.ES:
            continue
        first = int(np.searchsorted(owners, entry["patient"], "left"))
        if cohort.slices[first]["phase"] == Phase.ED:
            depth = int(cohort.slices[first]["count"])
            place = int(entry["index"]) / max(int(entry["count"]) - 1, 1)
            out[k] = first + round(place * (depth - 1))
    return out

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


def gather(cohort: Cohort, rows: np.ndarray) -> SliceBatch:
    """Read rows of the cohort's folder as a batch."""
    rows = np.asarray(rows)
    table = cohort.slices[rows]
    index, count, phase = table["index"].astype(int), table["count"].astype(int), table["phase"].astype(int)
    masks = np.asarray(cohort.masks[rows], np.int64)
    basal = np.where((index > 0)[:, None, None], cohort.masks[np.maximum(rows - 1, 0)].astype(np.int64), NO_SLICE)
    ed_rows = _ed_rows(cohort, rows)
    ed = np.where((ed_rows >= 0)[:, None, None], cohort.masks[np.maximum(ed_rows, 0)].astype(np.int64), NO_SLICE)
    return SliceBatch(
        image=torch.from_numpy(np.asarray(cohort.images[rows], np.float32))[:, None],
        mask=torch.from_numpy(masks),
        basal=torch.from_numpy(basal),
        ed=torch.from_numpy(ed),
        phase=torch.from_numpy(phase),
        position=torch.from_numpy((index / np.maximum(count - 1, 1)).astype(np.float32)),
        patient=torch.from_numpy(table["patient"].astype(np.int64)),
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

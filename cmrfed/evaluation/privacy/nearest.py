"""Nearest neighbours by blocks: the full matrix of distances is never held."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 512
CLOSE = 1e-2
"""Squared distances below this share of the squared norms have lost digits in float32, and are computed again."""


@dataclass(frozen=True)
class Neighbours:
    """Distance of every query slice to the nearest slice of each patient (N, P), and that slice's row (N, P)."""

    distance: np.ndarray
    row: np.ndarray
    patients: np.ndarray

    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """Distance (N,) to the nearest slice of any patient, and its row (N,)."""
        best = self.distance.argmin(1)
        rows = np.arange(len(best))
        return self.distance[rows, best], self.row[rows, best]


def neighbours(queries: np.ndarray, others: np.ndarray, owners: np.ndarray) -> Neighbours:
    """Nearest slice of every patient.

    Products are float32, about the mean of ``others``. Where that loses digits, for what is nearly the same, the
    distance is that of float64; between slices of one patient that are equally near to one part in 10,000, either
    may be named.

    Args:
        queries: (N, D).
        others: (M, D).
        owners: Patient of each of ``others``, (M,).

    Returns:
        Root-mean-square distances: Euclidean, divided by the root of D.
    """
    patients, order = np.unique(owners), np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[order], patients)
    centre = np.asarray(others, np.float64).mean(0)
    y = torch.from_numpy((others[order] - centre).astype(np.float32))
    norms = y.square().sum(1)
    ends = [*starts[1:], len(order)]
    distance, row = np.empty((len(queries), len(patients))), np.empty((len(queries), len(patients)), int)
    for start in range(0, len(queries), BLOCK):
        block = slice(start, start + BLOCK)
        x = torch.from_numpy((queries[block] - centre).astype(np.float32))
        own = x.square().sum(1, keepdim=True)
        squared = torch.addmm(norms[None], x, y.T, alpha=-2).add_(own)
        best, place = _per_patient(squared, starts, ends)
        row[block], distance[block] = order[place], best
        lost = distance[block] < CLOSE * (own.numpy() + norms.numpy()[place])
        _again(distance[block], row[block], lost, queries[block], others)
    return Neighbours(np.sqrt(np.maximum(distance, 0) / others.shape[1]), row, patients)


def _per_patient(squared: Tensor, starts: np.ndarray, ends: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Smallest entry of each run of columns, and its column: (B, P) each."""
    found = [squared[:, a:b].min(1) for a, b in zip(starts, ends, strict=True)]
    values = torch.stack([f.values for f in found], 1)
    places = torch.stack([f.indices + int(a) for f, a in zip(found, starts, strict=True)], 1)
    return values.numpy(), places.numpy()


def _again(distance: np.ndarray, row: np.ndarray, lost: np.ndarray, x: np.ndarray, others: np.ndarray) -> None:
    """Squared distances in float64, in place, where they are needed."""
    for i in np.flatnonzero(lost.any(1)):
        which = lost[i]
        gap = np.asarray(others[row[i, which]], np.float64) - np.asarray(x[i], np.float64)
        distance[i, which] = np.square(gap).sum(1)

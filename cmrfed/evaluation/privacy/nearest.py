"""Nearest neighbours by blocks: neither the matrix of distances nor a copy of a set is ever held."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cmrfed.core.device import HOST, to_device, to_host
from cmrfed.data.spool import blocks, release

BLOCK = 512
"""Rows of the one set that are compared at a time."""
WIDE = 8
"""Blocks of the other set that they are compared with."""
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
        return self.distance[rows, best].astype(np.float64), self.row[rows, best]


@dataclass(frozen=True, eq=False)
class Points:
    """A set of slices as vectors (N, D), with the patient of each (N,); what it was compared with is remembered.

    ``device`` is where they are compared.
    """

    vectors: np.ndarray
    owners: np.ndarray
    device: torch.device = HOST
    _found: dict[int, "tuple[Points, Neighbours]"] = field(default_factory=dict, repr=False)

    def to(self, others: "Points") -> Neighbours:
        """Neighbours of these slices among the others; those of the others among these are found beside them."""
        if id(others) not in self._found:
            mine = _Sorted(self.vectors, self.owners)
            theirs = mine if others is self else _Sorted(others.vectors, others.owners)
            there, back = _search(mine, theirs, self.device)
            others._found[id(self)] = self, back
            self._found[id(others)] = others, there
        return self._found[id(others)][1]

    def to_other_patients(self) -> np.ndarray:
        """Distance (N,) of each slice to the nearest slice of another patient; infinite if there is no other."""
        found = self.to(self)
        return np.where(found.patients[None] == self.owners[:, None], np.inf, found.distance).min(1)

    def forget(self) -> None:
        """Free the memory of all neighbours that were found."""
        for others, _ in list(self._found.values()):
            others._found.pop(id(self), None)
        self._found.clear()


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
    return _search(_Sorted(queries, np.arange(len(queries))), _Sorted(others, owners), HOST, back=False)[0]


# --- the search -----------------------------------------------------------------------------------
class _Sorted:
    """Vectors in order of their patients, cut into blocks."""

    def __init__(self, vectors: np.ndarray, owners: np.ndarray) -> None:
        self.vectors = vectors
        self.patients, self.order = np.unique(owners), np.argsort(owners, kind="stable")
        self.starts = np.searchsorted(owners[self.order], self.patients)
        self.ends = np.append(self.starts[1:], len(owners))

    def mean(self) -> np.ndarray:
        """Mean vector (D,), float64."""
        total = np.zeros(self.vectors.shape[1])
        for _, block in blocks(self.vectors):
            total += np.asarray(block, np.float64).sum(0)
        return total / len(self.vectors)

    def runs(self, first: int, last: int) -> list[slice]:
        """The rows of each patient within the sorted rows from ``first`` to ``last``, counted from the former."""
        return [slice(a - first, b - first) for a, b in self._within(first, last)]

    def columns(self, first: int, last: int) -> slice:
        """The patients within these sorted rows."""
        return slice(int(np.searchsorted(self.starts, first)), int(np.searchsorted(self.starts, last)))

    def _within(self, first: int, last: int) -> Sequence[tuple[int, int]]:
        chosen = self.columns(first, last)
        return list(zip(self.starts[chosen].tolist(), self.ends[chosen].tolist(), strict=True))

    def cuts(self) -> list[tuple[int, int]]:
        """Sorted rows from and to, of blocks of whole patients: at most `BLOCK` rows, or one patient."""
        out, first = [], 0
        for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            if end - first > BLOCK and start > first:
                out.append((first, start))
                first = start
        return [*out, (first, len(self.order))]

    def read(self, first: int, last: int, centre: np.ndarray) -> Tensor:
        """Sorted rows less the centre, float32."""
        out = torch.empty(last - first, len(centre), device=HOST)
        for place, rows in blocks(self.order[first:last]):
            out[place] = torch.from_numpy((self.vectors[rows] - centre).astype(np.float32))
            release(self.vectors)
        return out


class _Table:
    """The neighbours of one set among another, filled block by block."""

    def __init__(self, queries: _Sorted, others: _Sorted) -> None:
        shape = len(queries.order), len(others.patients)
        self.queries, self.others = queries, others
        self.distance, self.row = np.empty(shape, np.float32), np.empty(shape, np.int32)

    def fill(
        self, squared: Tensor, norms: tuple[Tensor, Tensor], mine: tuple[int, int], theirs: tuple[int, int]
    ) -> None:
        """Take the least of each patient from squared distances (B, C) of sorted rows of both sets."""
        runs = self.others.runs(*theirs)
        found = [squared[:, run].min(1) for run in runs]
        within = to_host(torch.stack([f.indices for f in found], 1)).numpy()
        places = within + np.array([run.start for run in runs])
        best = to_host(torch.stack([f.values for f in found], 1)).double().numpy()
        rows, row = self.queries.order[slice(*mine)], self.others.order[theirs[0] + places]
        own, their = (to_host(each).numpy() for each in norms)
        lost = best < CLOSE * (own[:, None] + their[places])
        for i in np.flatnonzero(lost.any(1)):
            which = lost[i]
            x, y = self.queries.vectors[rows[i]], self.others.vectors[row[i, which]]
            best[i, which] = np.square(np.asarray(y, np.float64) - np.asarray(x, np.float64)).sum(1)
        place = rows[:, None], np.arange(len(self.others.patients))[self.others.columns(*theirs)][None]
        self.distance[place] = np.sqrt(np.maximum(best, 0) / self.others.vectors.shape[1])
        self.row[place] = row

    def found(self) -> Neighbours:
        return Neighbours(self.distance, self.row, self.others.patients)


def _search(
    queries: _Sorted, others: _Sorted, device: torch.device, *, back: bool = True
) -> tuple[Neighbours, Neighbours]:
    """Neighbours of the queries, and, if they are asked for, those of the others among the queries."""
    same = queries is others
    centre, cuts = others.mean(), queries.cuts()
    there, reverse = _Table(queries, others), None
    if back:
        reverse = there if same else _Table(others, queries)
    pieces = others.cuts()
    for start in range(0, len(pieces), WIDE):
        theirs = pieces[start][0], pieces[min(start + WIDE, len(pieces)) - 1][1]
        y = to_device(others.read(*theirs, centre), device)
        their_norms = y.square().sum(1)
        for mine in cuts:
            if same and mine[1] <= theirs[0]:
                continue  # found already, as the way back
            x = to_device(queries.read(*mine, centre), device)
            norms = x.square().sum(1)
            squared = torch.addmm(their_norms[None], x, y.T, alpha=-2).add_(norms[:, None])
            there.fill(squared, (norms, their_norms), mine, theirs)
            if reverse and not (same and mine[0] < theirs[1]):
                reverse.fill(squared.T, (their_norms, norms), theirs, mine)
        release(others.vectors)
    return there.found(), (reverse or there).found()

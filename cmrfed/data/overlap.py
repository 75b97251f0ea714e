"""Patients who are in two cohorts, found by what their images show: identifiers differ between copies, and so do files.

A slice that is equal in both settles it. Copies that were saved again are found by normalised cross-correlation: the
middle of a patient's central slices is looked for in every slice of the other cohort, at every place, which a change of
brightness, contrast, noise or crop leaves alone. Of 45 Sunnybrook patients at 64 px, different ones reach at most .89;
copies that were moved by up to 5 pixels and got another contrast, clipped, and noise reach .95 to .99.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from cmrfed.core.artifacts import digest_bytes
from cmrfed.data.cohort import Cohort

ALIKE = 0.92
"""Mean correlation of a patient's central slices from which two patients are one."""
_WORTH_A_LOOK, _COARSE_PX, _FINE_PX = 0.82, 32, 64
_FLAT = 1e-6


@dataclass(frozen=True)
class Same:
    """One patient under two names."""

    first: str
    second: str
    likeness: float
    """1 where a slice is equal, and otherwise the correlation."""


def shared_patients(first: Cohort, second: Cohort) -> list[Same]:
    """Patients of two cohorts who are the same; each patient of the second is named at most once.

    The field of view must be of about one size in both (within 5 %), and hearts must lie alike, as `cmrfed prepare`
    makes them; a copy that was turned, mirrored or much distorted is not found.

    Args:
        first: Any patients.
        second: Any patients.
    """
    equal = _equal(first, second)
    found = {same.second: same for same in equal}
    left = [name for name in second.patient_ids if name not in found]
    if left and len(first):
        rest = second.select(left)
        for i, j, likeness in _alike(first, rest):
            name = rest.patient_ids[j]
            if name not in found or found[name].likeness < likeness:
                found[name] = Same(first.patient_ids[i], name, likeness)
    return [found[name] for name in second.patient_ids if name in found]


def without_shared(cohort: Cohort, others: list[Cohort]) -> tuple[Cohort, list[Same]]:
    """The patients of a cohort who are in none of the others, and those who are."""
    gone: dict[str, Same] = {}
    for other in others:
        gone.update({same.second: same for same in shared_patients(other, cohort)})
    if not gone:
        return cohort, []
    return cohort.select([name for name in cohort.patient_ids if name not in gone]), list(gone.values())


# --- equal slices -------------------------------------------------------------------------------
def _keys(cohort: Cohort) -> Iterator[tuple[str, str]]:
    """Name of the patient and digest of each slice that shows anything."""
    for name, rows in zip(cohort.patient_ids, cohort.rows_of, strict=True):
        for row in rows:
            pixels = np.ascontiguousarray(cohort.images[row])
            if np.ptp(pixels) > 0:
                yield name, digest_bytes(pixels.tobytes())


def _equal(first: Cohort, second: Cohort) -> list[Same]:
    owner = {key: name for name, key in _keys(first)}
    found: dict[str, Same] = {}
    for name, key in _keys(second):
        if key in owner:
            found.setdefault(name, Same(owner[key], name, 1.0))
    return list(found.values())


# --- slices that look alike ---------------------------------------------------------------------
def _alike(first: Cohort, second: Cohort) -> Iterator[tuple[int, int, float]]:
    """Numbers of patients who are the same, with their likeness: a coarse look at all pairs, a fine one at a few."""
    coarse = min(_COARSE_PX, first.size_px, second.size_px)
    fine = min(_FINE_PX, first.size_px, second.size_px)
    others = [_slices(second, j, fine) for j in range(len(second))]
    small = [_shrunk(slices, coarse) for slices in others]
    pile, ends = np.concatenate(small), np.cumsum([len(slices) for slices in small])
    spectra = _Spectra(pile)
    for i in range(len(first)):
        mine = _slices(first, i, fine, central=True)
        every = spectra.correlations(_shrunk(mine, coarse))
        best = [part.max(1).mean() for part in np.split(every, ends[:-1], axis=1)]
        for j in np.flatnonzero(np.array(best) >= _WORTH_A_LOOK):
            likeness = float(_Spectra(others[j]).correlations(mine).max(1).mean())
            if likeness >= ALIKE:
                yield i, int(j), likeness


def _slices(cohort: Cohort, number: int, size: int, *, central: bool = False) -> np.ndarray:
    """Slices of a patient, float32 (N, size, size); ``central``: the three in the middle of each phase."""
    rows = cohort.rows_of[number]
    if central:
        table = cohort.slices[rows]
        rows = rows[np.abs(table["index"].astype(int) - table["count"].astype(int) // 2) <= 1]
    return _shrunk(np.asarray(cohort.images[rows], np.float32), size)


def _shrunk(images: np.ndarray, size: int) -> np.ndarray:
    if images.shape[-1] == size:
        return images
    return F.adaptive_avg_pool2d(torch.from_numpy(images)[:, None], size)[:, 0].numpy()


class _Spectra:
    """Slices (N, S, S) in which others are looked for, with what that takes."""

    def __init__(self, images: np.ndarray) -> None:
        self.size = images.shape[-1]
        self.window = self.size // 2
        box = np.zeros((self.size, self.size))
        box[: self.window, : self.window] = 1
        ones = np.fft.rfft2(box).conj()
        self._spectra = np.fft.rfft2(images)
        mean = self._back(self._spectra * ones) / self.window**2
        square = self._back(np.fft.rfft2(images.astype(np.float64) ** 2) * ones) / self.window**2
        self._deviation = np.sqrt(np.maximum(square - mean**2, 0)) * self.window

    def correlations(self, wanted: np.ndarray) -> np.ndarray:
        """Largest correlation, over all places, of the middle of each wanted slice (M, S, S) in each slice: (M, N)."""
        start = (self.size - self.window) // 2
        middle = wanted[:, start : start + self.window, start : start + self.window].astype(np.float64)
        middle -= middle.mean((1, 2), keepdims=True)
        norms = np.sqrt((middle**2).sum((1, 2)))
        spectra = np.fft.rfft2(middle, (self.size, self.size)).conj()
        out = np.zeros((len(wanted), len(self._spectra)))
        for i in np.flatnonzero(norms > _FLAT):
            there = np.maximum(self._deviation * norms[i], _FLAT)
            out[i] = (self._back(self._spectra * spectra[i]) / there).max((1, 2))
        return np.minimum(out, 1.0)

    def _back(self, spectrum: np.ndarray) -> np.ndarray:
        places = self.size - self.window + 1
        return np.fft.irfft2(spectrum, (self.size, self.size))[:, :places, :places]

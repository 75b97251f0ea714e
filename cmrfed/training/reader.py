"""Slices of a cohort as batches on a device, without a wait for it.

On a CPU rows are read from the cohort's files. On an accelerator all rows lie in its memory as they are stored (float16
images, uint8 masks) where there is room; elsewhere they are read ahead by a thread and sent from pinned memory. Types
and values are the same in all three.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cmrfed.core.device import HOST, fits, to_device
from cmrfed.data.cohort import Cohort
from cmrfed.data.draws import NO_SLICE, Places, SliceBatch, gather, places

_AHEAD = 2
"""Batches that are read while the device computes."""


@dataclass(frozen=True)
class _Stored:
    """Slices as cohorts store them: images float16 (B, H, W), masks uint8 (B, H, W) each."""

    image: Tensor
    mask: Tensor
    basal: Tensor
    ed: Tensor


@dataclass(frozen=True)
class _Numbers:
    """What is known of slices beside the pixels: int64 (4, B), positions float32 (B,)."""

    whole: Tensor
    position: Tensor


class SliceReader:
    """Reads rows of a cohort as batches on a device.

    Args:
        cohort: Whose slices.
        device: Where batches are wanted.
        keep: Whether all slices may be sent there at once: not where what a step does must not depend on how many
            there are.
    """

    def __init__(self, cohort: Cohort, device: torch.device, *, keep: bool = True) -> None:
        self.cohort, self.device = cohort, device
        self._order = np.zeros(0, np.int64)
        """Row in the cohort's files => row in the device's memory."""
        pixels = len(cohort.rows) * cohort.size_px**2
        self._kept = self._keep() if keep and fits(device, pixels * _bytes_of_a_pixel(cohort)) else None

    @cached_property
    def kept(self) -> bool:
        """Whether all slices are in the device's memory."""
        return self._kept is not None

    def read(self, rows: np.ndarray) -> SliceBatch:
        """Rows as a batch on the device."""
        if self.device == HOST:
            return gather(self.cohort, rows)
        if self._kept is not None:
            return self._taken(*self._kept, rows)
        return self._sent(*self._read(rows))

    def batches(self, drawn: Iterable[np.ndarray]) -> Iterator[SliceBatch]:
        """`read` of one array of rows after the other; the next ones are read ahead where that saves a wait."""
        if self.device == HOST or self.kept:
            yield from map(self.read, drawn)
            return
        ahead: deque[Future[tuple[_Stored, Places]]] = deque()
        with ThreadPoolExecutor(1) as thread:
            for rows in drawn:
                ahead.append(thread.submit(self._read, rows))
                if len(ahead) > _AHEAD:
                    yield self._sent(*ahead.popleft().result())
            while ahead:
                yield self._sent(*ahead.popleft().result())

    # --- in the device's memory -----------------------------------------------------------------
    def _keep(self) -> tuple[Tensor, Tensor]:
        rows = self.cohort.rows
        self._order = np.full(len(self.cohort.slices), -1)
        self._order[rows] = np.arange(len(rows))
        images, masks = (torch.from_numpy(np.asarray(a[rows])) for a in (self.cohort.images, self.cohort.masks))
        return to_device(images, self.device), to_device(masks, self.device)

    def _taken(self, images: Tensor, masks: Tensor, rows: np.ndarray) -> SliceBatch:
        at = places(self.cohort, rows)
        own, basal, ed = (self._order[np.maximum(part, 0)] for part in (at.rows, at.basal, at.ed))
        sent = to_device(torch.from_numpy(np.stack([own, basal, ed])), self.device)
        return _batch(_Stored(images[sent[0]], *(masks[part] for part in sent)), self._numbers(at))

    # --- from the host, ahead of the device -----------------------------------------------------
    def _read(self, rows: np.ndarray) -> tuple[_Stored, Places]:
        at = places(self.cohort, rows)
        basal, ed = (np.maximum(part, 0) for part in (at.basal, at.ed))
        arrays = [self.cohort.images[at.rows], *(self.cohort.masks[part] for part in (at.rows, basal, ed))]
        return _Stored(*(torch.from_numpy(np.asarray(array)) for array in arrays)), at

    def _sent(self, stored: _Stored, at: Places) -> SliceBatch:
        return _batch(to_device(stored, self.device), self._numbers(at))

    def _numbers(self, at: Places) -> _Numbers:
        whole = np.stack([at.basal >= 0, at.ed >= 0, at.phase, at.patient]).astype(np.int64)
        return to_device(_Numbers(torch.from_numpy(whole), torch.from_numpy(at.position)), self.device)


def _bytes_of_a_pixel(cohort: Cohort) -> int:
    return int(cohort.images.dtype.itemsize + cohort.masks.dtype.itemsize)


def _batch(stored: _Stored, numbers: _Numbers) -> SliceBatch:
    has_basal, has_ed, phase, patient = numbers.whole
    return SliceBatch(
        image=stored.image[:, None].float(),
        mask=stored.mask.long(),
        basal=torch.where(has_basal[:, None, None] > 0, stored.basal.long(), NO_SLICE),
        ed=torch.where(has_ed[:, None, None] > 0, stored.ed.long(), NO_SLICE),
        phase=phase,
        position=numbers.position,
        patient=patient,
    )

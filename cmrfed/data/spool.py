"""Arrays of a whole set on disk: they are read in blocks, and no set is ever held in memory.

A spool is a file without a name, so that it is gone when the process is, however that ends.
"""

import hashlib
import mmap
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

ROWS = 256
"""Rows that are read at a time where nothing else is asked for."""


class Spool:
    """Rows of one shape, written one after the other and read as one memory-mapped array.

    Args:
        shape: Of a row.
        dtype: Type of the array.
        folder: Where there is room for all rows; None: the system's folder for temporary files.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype | type, folder: Path | None = None) -> None:
        self._shape, self._dtype, self._count = shape, np.dtype(dtype), 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = tempfile.TemporaryFile("w+b", encoding=None, dir=folder)  # noqa: SIM115 - lives as long as the array

    def add(self, rows: np.ndarray) -> None:
        """Write rows (K, …); they are cast to the type of the array.

        Raises:
            ValueError: They have another shape.
        """
        if rows.shape[1:] != self._shape:
            raise ValueError(f"rows of shape {rows.shape[1:]} do not fit an array of {self._shape}")
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self._count += len(rows)

    def array(self) -> np.ndarray:
        """All rows (N, …), memory-mapped and writable."""
        whole = (self._count, *self._shape)
        if 0 in whole:
            return np.zeros(whole, self._dtype)
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r+", shape=whole)


def release(array: np.ndarray) -> None:
    """Let the system take back the memory of a mapped array; its content stays. Nothing for an array in memory."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def blocks(array: np.ndarray, rows: int = ROWS) -> Iterator[tuple[slice, np.ndarray]]:
    """An array (N, …) in blocks, each with its place; what is mapped of it is released after each."""
    for start in range(0, len(array), rows):
        place = slice(start, min(start + rows, len(array)))
        yield place, array[place]
        release(array)


def digest_array(array: np.ndarray) -> str:
    """SHA-256 over the bytes of an array, read in blocks."""
    total = hashlib.sha256()
    for _, block in blocks(array):
        total.update(np.ascontiguousarray(block).data)
    return total.hexdigest()

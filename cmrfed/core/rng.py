"""Stateless randomness: every stream is a pure function of a seed and a purpose, so a resume stores none."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def fold(seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit seed from a seed and a purpose.

    >>> fold(0, "mask", 3) == fold(0, "mask", 3), fold(0, "mask", 3) == fold(0, "mask", 4)
    (True, False)
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(p).__name__}:{p}" for p in purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def uniform(seed: int, *purpose: str | int) -> float:
    """A number in [0, 1) for ``fold(seed, *purpose)``, of 53 bits."""
    return (fold(seed, *purpose) >> 10) / 2.0**53


def torch_generator(seed: int, *purpose: str | int) -> "torch.Generator":
    """Make a CPU torch generator for ``fold(seed, *purpose)``."""
    import torch  # who needs seeds alone does not wait for it

    return torch.Generator().manual_seed(fold(seed, *purpose))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Make a numpy generator for ``fold(seed, *purpose)``."""
    return np.random.default_rng(fold(seed, *purpose))

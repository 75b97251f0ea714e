"""How processes of this project start, and that they end with the one that started them."""

import ctypes
import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1
"""Of Linux' prctl(2)."""


def end_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Ask Linux to send this process a signal when the one that started it dies, however it dies.

    To be called in the new process; elsewhere than on Linux nothing is done.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)


@contextmanager
def loading(*, for_good: bool = False) -> Iterator[None]:
    """Import modules without looking for garbage in between: of what torch and its like take to load, that is a fifth.

    Args:
        for_good: The process is this project's own, so what it holds now is left out of every later collection too.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if for_good and not gc.get_freeze_count():
            gc.freeze()
        if enabled:
            gc.enable()

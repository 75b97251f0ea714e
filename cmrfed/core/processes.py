"""Processes that end with the one that started them."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""Of Linux' prctl(2)."""


def end_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Ask Linux to send this process a signal when the one that started it dies, however it dies.

    To be called in the new process; elsewhere than on Linux nothing is done.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)

"""Progress that suits its reader: a bar on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
_PLAIN_SECONDS = 10.0


class Track:
    """One task with a known number of steps; ``advance`` is called as they are done."""

    def __init__(self, title: str, total: int, bar: Progress | None) -> None:
        self._title, self._total, self._done, self._bar = title, total, 0, bar
        self._last = time.monotonic()
        self._task = bar.add_task(title, total=total, note="") if bar else None

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count ``steps`` more as done and show a short note beside the bar."""
        self._done += steps
        if self._bar is not None and self._task is not None:
            fields: dict[str, Any] = {"note": note} if note else {}
            self._bar.update(self._task, advance=steps, **fields)
        elif time.monotonic() - self._last >= _PLAIN_SECONDS or self._done >= self._total:
            self._last = time.monotonic()
            print(f"{self._title}: {self._done}/{self._total} {note}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def track(title: str, total: int) -> Iterator[Track]:
    """Show the progress of ``total`` steps under ``title``."""
    if not console.is_terminal:
        yield Track(title, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield Track(title, total, bar)


def say(text: str) -> None:
    """Print one line for the user (standard error, so that output can be piped)."""
    console.print(text, markup=False, soft_wrap=True)

"""Progress that suits its reader, with the time that is left: a bar on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cmrfed.core.eta import Job, Pace, spoken

console = Console(stderr=True, highlight=False)
_PLAIN_SECONDS = 10.0


_job: ContextVar[Job | None] = ContextVar("job", default=None)


@contextmanager
def job(expected: Mapping[str, float], begun: float | None = None) -> Iterator[None]:
    """Tell where the whole job stands beside its tasks: the block does steps that take so many seconds each.

    Args:
        expected: Step => seconds, in order.
        begun: When the whole began, by `time.monotonic`; None: now.
    """
    token = _job.set(Job(expected, time.monotonic, begun))
    try:
        yield
    finally:
        _job.reset(token)


@contextmanager
def step(name: str) -> Iterator[None]:
    """A step of the job, if there is one."""
    found = _job.get()
    if found is not None:
        found.begin(name)
    yield
    if found is not None:
        found.end(name)


class Track:
    """One task with a known number of steps; ``advance`` is called as they are done."""

    def __init__(
        self, title: str, total: int, bar: Progress | None, done: int = 0, *, whole: bool = False, equal: bool = True
    ) -> None:
        self._title, self._bar, self._whole, self._equal, self._note = title, bar, whole, equal, ""
        self._pace = Pace(total, done, time.monotonic)
        self._last = time.monotonic()
        self._task = bar.add_task(title, total=total, completed=done, note="", left="") if bar else None

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count ``steps`` more as done and show a short note beside the bar."""
        self._pace.advance(steps)
        self._note = note or self._note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=steps, note=self._note, left=self._left().removeprefix(", "))
        elif time.monotonic() - self._last >= _PLAIN_SECONDS or self._pace.done >= self._pace.total:
            self._last = time.monotonic()
            line = f"{self._title}: {self._pace.done}/{self._pace.total} {note}".rstrip()
            print(line + self._left(), file=sys.stderr, flush=True)

    def _left(self) -> str:
        """What is left of the task, and of the job that it belongs to, as far as there is evidence."""
        if self._pace.done >= self._pace.total:
            return ""
        found, left = _job.get(), self._pace.left if self._equal else None
        where = found.words(left, self._whole) if found else ""
        return (f", {spoken(left)} left" if left is not None else "") + (f" ({where})" if where else "")


@contextmanager
def track(title: str, total: int, done: int = 0, *, whole: bool = False, equal: bool = True) -> Iterator[Track]:
    """Show the progress of ``total`` steps under ``title``, and when they will be done.

    Args:
        title: Of the task.
        total: Its steps.
        done: How many were done before.
        whole: It is the whole of a `step`, not one task of several.
        equal: Its steps take about equally long; if not, nothing is said of the time that is left.
    """
    if not console.is_terminal:
        yield Track(title, total, None, done, whole=whole, equal=equal)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield Track(title, total, bar, done, whole=whole, equal=equal)


def say(text: str) -> None:
    """Print one line for the user (standard error, so that output can be piped)."""
    console.print(text, markup=False, soft_wrap=True)

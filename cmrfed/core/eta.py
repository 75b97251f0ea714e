"""How long something will still take: the pace of a task of equal steps, and a job of several tasks."""

import time
from collections.abc import Callable, Mapping

SAMPLES = 200
"""Of how many places along a task the times are kept."""
LEAST_INTERVALS = 2
"""How many intervals between steps, after the first step, make evidence."""


def spoken(seconds: float) -> str:
    """A time as it is said when it is not known exactly, to about a twentieth: 40 s, 2 min 30 s, 25 min, 1 h 20 min."""
    if seconds < 95:
        return f"{max(round(seconds), 1)} s"
    if seconds < 595:
        minutes, rest = divmod(round(seconds, -1), 60)
        return f"{minutes:.0f} min {rest:.0f} s" if rest else f"{minutes:.0f} min"
    minutes = round(seconds / 60)
    if minutes < 95:
        return f"{minutes:.0f} min"
    hours, rest = divmod(round(minutes, -1), 60)
    return f"{hours:.0f} h {rest:.0f} min" if rest else f"{hours:.0f} h"


class Pace:
    """Seconds that a task still takes, from when its steps were done.

    Up to the first step everything is start-up (imports, compilation, first allocations), and does not count. Of the
    rest the later half decides, so that a pace that has changed is followed.
    """

    def __init__(self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self._clock = total, done, clock
        self._samples: list[tuple[int, float]] = []
        """(steps done, time), the first step's first."""

    def advance(self, steps: int) -> None:
        """Count steps as done now."""
        self.done += steps
        if not self._samples or self.done - self._samples[-1][0] >= self.total / SAMPLES:
            self._samples.append((self.done, self._clock()))

    @property
    def left(self) -> float | None:
        """Seconds to the end; None while there is no evidence."""
        if self.done >= self.total:
            return 0.0
        if len(self._samples) <= LEAST_INTERVALS:
            return None
        (first, _), (last, end) = self._samples[0], self._samples[-1]
        middle = last - (last - first) / 2
        begun, start = next(sample for sample in reversed(self._samples) if sample[0] <= middle)
        seconds_a_step = (end - start) / (last - begun)
        return max(seconds_a_step * (self.total - last) - (self._clock() - end), 0.0)


class Job:
    """Steps that are done one after the other, each expected to take some seconds; expectations follow what is seen.

    Args:
        expected: Step => seconds, in order; 0 where nothing is known, which then is not counted.
        clock: Seconds.
        begun: When the whole began, by the clock; None: now.
    """

    def __init__(
        self, expected: Mapping[str, float], clock: Callable[[], float] = time.monotonic, begun: float | None = None
    ) -> None:
        self._expected, self._clock = dict(expected), clock
        self._begun = clock() if begun is None else begun
        self._names = list(expected)
        self._step: str | None = None
        self._step_begun = clock()
        self._seen = self._foreseen = 0.0
        """Seconds that finished steps took, and were expected to take."""

    def begin(self, step: str) -> None:
        """A step begins; those before it are done."""
        self._step, self._step_begun = step, self._clock()

    def end(self, step: str) -> None:
        """It has ended."""
        if self._expected.get(step):
            self._seen += self._clock() - self._step_begun
            self._foreseen += self._expected[step]
        self._step = None

    def words(self, task_left: float | None, whole: bool) -> str:
        """Where the job stands, or nothing where the step is none of its own.

        Args:
            task_left: Seconds to the end of the task that tells.
            whole: Whether that task is the whole step, rather than one of several.
        """
        if self._step not in self._expected:
            return ""
        at = self._names.index(self._step)
        place = f"step {at + 1} of {len(self._names)}"
        left = self._left(at, task_left, whole)
        if left is None:
            return place
        return f"{place}, about {spoken(self._clock() - self._begun + left)} in all"

    def _left(self, at: int, task_left: float | None, whole: bool) -> float | None:
        """Seconds to the end of the job."""
        expected, spent = self._expected[self._names[at]], self._clock() - self._step_begun
        seen, foreseen = self._seen, self._foreseen
        if whole and task_left is not None and expected:
            seen, foreseen = seen + spent + task_left, foreseen + expected
        if not foreseen:
            return None
        ratio = seen / foreseen
        here = max(expected * ratio - spent, 0.0)
        if task_left is not None:
            here = task_left if whole else max(task_left, here)
        return here + ratio * sum(self._expected[name] for name in self._names[at + 1 :])


class Queue:
    """Tasks in order, of which some are at work at a time, each expected to take some seconds.

    Args:
        expected: Task => seconds.
        workers: How many are at work at a time.
        clock: Seconds.
    """

    def __init__(
        self, expected: Mapping[str, float], workers: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._waiting, self._workers, self._clock = dict(expected), workers, clock
        self._working: dict[str, tuple[float, float]] = {}
        """Task => seconds that are expected of it, and when it began."""
        self._seen = self._foreseen = 0.0

    def begin(self, task: str) -> None:
        """A task begins."""
        self._working[task] = self._waiting.pop(task, 0.0), self._clock()

    def end(self, task: str, *, counts: bool = True) -> None:
        """It has ended; one that failed ``counts`` for nothing."""
        expected, begun = self._working.pop(task)
        if counts:
            self._seen += self._clock() - begun
            self._foreseen += expected

    @property
    def left(self) -> float:
        """Seconds to the end of the last one, by what was expected, corrected by what was seen."""
        now, ratio = self._clock(), self._seen / self._foreseen if self._foreseen else 1.0
        free = sorted(max(expected * ratio - (now - begun), 0.0) for expected, begun in self._working.values())
        free = [0.0] * (self._workers - len(free)) + free
        for expected in self._waiting.values():
            free = sorted([free[0] + expected * ratio, *free[1:]])
        return free[-1]

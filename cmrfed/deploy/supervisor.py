"""Processes that are started again when they end, with growing pauses, and that never outlive their supervisor."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from cmrfed.core.processes import end_with_parent
from cmrfed.core.progress import say

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
STEADY_S = 60.0
"""A process that ran this long before it ended is started again without a longer pause."""
GRACE_S = 10.0
"""Seconds between the request to end and the kill."""
LOG_BYTES = 10 << 20
"""A log that is longer when its process starts becomes ``NAME.log.old``."""
_POLL_S = 0.2


@dataclass
class Worker:
    """A process to keep running.

    Args:
        name: For people, and of its log.
        command: Program and arguments.
        explain: Says in words, given the end of the log, why it ended and what to do; None: nothing is known.
        ready: Started only when this is true.
    """

    name: str
    command: Sequence[str]
    explain: Callable[[str], str | None] = lambda _: None
    ready: Callable[[], bool] = lambda: True
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    started: float = field(default=0.0, init=False)
    pause: float = field(default=FIRST_PAUSE_S, init=False)
    due: float = field(default=0.0, init=False)
    logged: int = field(default=0, init=False)
    """Bytes of the log before this start."""


class Supervisor:
    """Keeps workers running until it is asked to end (SIGTERM, SIGINT).

    Args:
        workers: Started in order; ended in the opposite one.
        folder: Of the logs.
        environment: Of the workers.
        tick: Called about once a second.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        folder: Path,
        environment: Mapping[str, str],
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.workers, self.folder, self.environment, self.tick = list(workers), folder, dict(environment), tick
        self._ending = False
        self._said_last: dict[str, str] = {}

    def run(self) -> None:
        """Start everything and watch it; returns when asked to end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, self._end)
        ticked = 0.0
        try:
            while not self._ending:
                for worker in self.workers:
                    self._watch(worker)
                if time.monotonic() - ticked >= 1:
                    self.tick()
                    ticked = time.monotonic()
                time.sleep(_POLL_S)
        finally:
            for worker in reversed(self.workers):
                _stop(worker)

    def _end(self, signum: int, frame: FrameType | None) -> None:
        self._ending = True

    def log(self, worker: Worker) -> Path:
        """Where a worker's output goes."""
        return self.folder / f"{worker.name}.log"

    def _watch(self, worker: Worker) -> None:
        now = time.monotonic()
        if worker.process is None:
            if now >= worker.due and worker.ready():
                self._start(worker)
            return
        status = worker.process.poll()
        if status is None:
            return
        steady = now - worker.started > STEADY_S
        worker.pause = FIRST_PAUSE_S if steady else min(LONGEST_PAUSE_S, 2 * worker.pause)
        worker.process, worker.due = None, now + worker.pause
        reason = worker.explain(self._said(worker)) or f"its log says why: {self.log(worker)}"
        text = f"{worker.name} ended ({_status(status)}) and is started again: {reason}"
        if self._said_last.get(worker.name) != text or steady:
            self._said_last[worker.name] = text
            say(text)

    def _start(self, worker: Worker) -> None:
        path = self.log(worker)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.old"))
        with path.open("ab") as log:
            worker.logged = log.tell()
            worker.process = subprocess.Popen(  # noqa: S603 - our own command
                list(worker.command), env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=end_with_parent, start_new_session=True,
            )  # fmt: skip
        worker.started = time.monotonic()

    def _said(self, worker: Worker) -> str:
        with self.log(worker).open("rb") as log:
            log.seek(worker.logged)
            return log.read()[-20_000:].decode(errors="replace")


def _stop(worker: Worker) -> None:
    process = worker.process
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _status(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"

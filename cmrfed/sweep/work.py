"""Runs the points of a sweep: each a `cmrfed run` folder and a process of its own; what they share is made once.

Folder::

    DIR/points/NAME/            the run of a point; recipe.yaml, log.txt; failed.json and log.error.json where it failed
    DIR/shared/data-KEY/data/   the phantom, or pooled cohorts, of all points with the same data
    DIR/shared/{segmenters,features}/   of real slices, by digest
    DIR/research/               what the patients have paid over all points
    DIR/results.{csv,parquet}  DIR/points.csv  DIR/runs.json  DIR/report.html  DIR/figures/
"""

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from cmrfed.config.experiment import Experiment, read_recipe
from cmrfed.core.artifacts import digest_json, read_object, write_json, write_text
from cmrfed.core.errors import ERROR_FILE, CmrfedError, ConfigError, DataError
from cmrfed.core.eta import Queue, spoken
from cmrfed.core.progress import say
from cmrfed.core.settings.digests import digested
from cmrfed.data.partition import PLACEMENT, placement_of
from cmrfed.pipeline.files.record import RunRecord, read_run
from cmrfed.sweep.points import Point, Sweep, settings_of

Status = Literal["finished", "failed", "unfinished"]
RECIPE, LOG, FAILED = "recipe.yaml", "log.txt", "failed.json"
_POLL_S = 0.1

Command = Callable[[Path], list[str]]
"""Recipe in a point's folder => the command that makes it."""

Prepare = Callable[[Sequence["State"], Path, int, int], dict[str, str]]
"""Makes what points share: unfinished points, folder of the sweep, jobs, handle of its lock => name of a point that
cannot be run → why."""


Foretell = Callable[[Sequence[Point], int], Mapping[str, float]]
"""Points in the order in which they are run, threads of each => name of a point → seconds."""


@dataclass(frozen=True)
class State:
    """Where a point stands."""

    point: Point
    folder: Path
    status: Status
    reason: str = ""
    """Why it failed."""


def run_point(recipe: Path) -> list[str]:
    """The command of a point: `cmrfed run`, so that it can be repeated by hand."""
    return [sys.executable, "-m", "cmrfed", "run", str(recipe), "--run-dir", str(recipe.parent)]


def tracked_point(*options: str) -> Callable[[Path], list[str]]:
    """The same with more options, such as those of trackers."""
    return lambda recipe: [*run_point(recipe), *options]


def on_ray(command: Command, address: str) -> Command:
    """The same command on a Ray cluster, with as many cores as the recipe has threads.

    Args:
        command: As on this machine.
        address: Of the cluster, as ``ray.init`` takes it, such as "auto". Its machines find the sweep's folder, the
            cohorts and the cache (``XDG_CACHE_HOME``) where this one does.

    Raises:
        ConfigError: Ray is not installed here.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("a Ray cluster needs Ray", got="no package ray", do="pip install 'cmrfed[simulation]'")

    def submitted(recipe: Path) -> list[str]:
        cores = read_recipe(recipe)["compute"]["threads"]
        return [sys.executable, "-m", "cmrfed.sweep.on_ray", address, str(cores), *command(recipe)]

    return submitted


def pretrain_point(recipe: Path) -> list[str]:
    """The command that fills the cache of public weights."""
    return [sys.executable, "-m", "cmrfed", "pretrain", str(recipe)]


def states(sweep: Sweep, folder: Path) -> list[State]:
    """Where all points stand, as their folders say."""
    return [_state(point, folder / "points" / point.name) for point in sweep.points]


def _state(point: Point, folder: Path) -> State:
    if (folder / FAILED).exists():
        return State(point, folder, "failed", _failure(folder / FAILED))
    try:
        record = read_run(folder)
        same = settings_of(record.experiment) == settings_of(point.experiment)
        same = same and placement_of(folder) == PLACEMENT
        whole = record.finished is not None and same and (folder / "evaluation" / "evaluation.json").exists()
    except CmrfedError:  # absent or damaged: the run itself says more
        whole = False
    return State(point, folder, "finished" if whole else "unfinished")


def _failure(path: Path) -> str:
    """Why a point failed, as failed.json says."""
    try:
        return str(read_object(path)["reason"])
    except (DataError, KeyError):
        return f"{path.name} cannot be read; see {LOG}"


def run_points(
    sweep: Sweep,
    folder: Path,
    jobs: int,
    *,
    command: Command = run_point,
    prepare: Prepare,
    share_cores: bool = True,
    on_end: Callable[[], None] = lambda: None,
    foretell: Foretell | None = None,
) -> list[State]:
    """Run all points that are not finished; one that fails does not stop the others.

    Args:
        sweep: What to run.
        folder: Where it goes; a folder with the beginnings of the same sweep is carried on.
        jobs: Processes at a time.
        command: What makes a point.
        prepare: Makes what points share.
        share_cores: Points that run at a time share the cores of this machine; False: each has the recipe's threads.
        on_end: Called after every point.
        foretell: Says how long points will take; None: nothing is said of that.

    Returns:
        Where all points stand.

    Raises:
        ConfigError: Another sweep is at work in the folder.
    """
    with at_work(folder) as lock:
        waiting = [state for state in states(sweep, folder) if state.status != "finished"]
        say(f"sweep {sweep.name}: {len(sweep.points)} points, {len(sweep.points) - len(waiting)} of them finished")
        for state in waiting:
            _begin(state, jobs if share_cores else 1)
        broken = prepare(waiting, folder, jobs, lock)
        for state in waiting:
            if state.point.name in broken:
                _fail(state, broken[state.point.name])
        tasks = [
            Task(state.point.title, command(state.folder / RECIPE), state.folder / LOG)
            for state in waiting
            if state.point.name not in broken
        ]
        by_log = {state.folder / LOG: state for state in waiting}

        def ended(task: "Task", reason: str | None) -> None:
            state = by_log[task.log]
            if reason is None and _state(state.point, state.folder).status != "finished":
                reason = f"its process ended well, but the run is not finished; see {LOG}"
            if reason is not None:
                _fail(state, reason)
            on_end()

        able = [by_log[task.log].point for task in tasks]
        in_processes(tasks, jobs, lock, ended, _queue(able, tasks, jobs, foretell) if foretell and able else None)
        return states(sweep, folder)


def _queue(points: Sequence[Point], tasks: Sequence["Task"], jobs: int, foretell: Foretell) -> Queue:
    """Queue the tasks of points by the estimated seconds of each, and print how long all will take."""
    found = foretell(points, _threads(points[0].experiment, jobs))
    queue = Queue({str(task.log): found[point.name] for task, point in zip(tasks, points, strict=True)}, jobs)
    say(f"About {spoken(queue.left)} for {len(tasks)} points, {min(jobs, len(tasks))} at a time.")
    return queue


def _threads(experiment: Experiment, jobs: int) -> int:
    """The share of a point in the cores."""
    return max(1, min(experiment.compute.threads, (os.cpu_count() or 1) // jobs))


def _begin(state: State, jobs: int) -> None:
    """Write the recipe of a point, with its share of the cores."""
    experiment = state.point.experiment
    threads = _threads(experiment, jobs)
    compute = experiment.compute.model_copy(update={"threads": threads})
    tree = experiment.model_copy(update={"compute": compute}).model_dump(mode="json")
    state.folder.mkdir(parents=True, exist_ok=True)
    (state.folder / FAILED).unlink(missing_ok=True)
    write_text(state.folder / RECIPE, yaml.safe_dump(tree, sort_keys=False))


def _fail(state: State, reason: str) -> None:
    write_json(state.folder / FAILED, {"reason": reason})
    say(f"failed: {state.point.title}: {reason}")


@contextmanager
def at_work(folder: Path) -> Iterator[int]:
    """Hold the sweep's lock; processes of points hold it too, so that a sweep whose parent was killed is not doubled.

    Yields:
        The handle of the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "sweep.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"a sweep is at work in {folder}, or points of one that was killed",
                got=f"sweep.lock is held; processes that were started: {os.pread(handle, 4096, 0).decode().strip()}",
                do="wait until they have ended, or end them, and give the same command again",
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield handle
    finally:
        os.close(handle)


# --- processes ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Task:
    """One process."""

    title: str
    command: list[str]
    log: Path

    @property
    def error(self) -> Path:
        """Where it leaves the error that ended it."""
        return self.log.with_suffix(".error.json")


@dataclass(frozen=True)
class _Running:
    task: Task
    process: subprocess.Popen[bytes]
    log_from: int
    started: float


def in_processes(
    tasks: Sequence[Task],
    jobs: int,
    lock: int,
    on_end: Callable[[Task, str | None], None],
    queue: Queue | None = None,
) -> None:
    """Run tasks, ``jobs`` at a time; ``on_end`` gets each with the reason why it failed, or None.

    When this is interrupted, the processes are ended first.

    Args:
        tasks: In order.
        jobs: How many at a time.
        lock: Handle of the sweep's lock.
        on_end: Called with every task that has ended.
        queue: The same tasks by their logs, with what is expected of each: says how long the rest will take.
    """
    waiting, running, done = deque(tasks), list[_Running](), 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                if queue:
                    queue.begin(str(waiting[0].log))
                running.append(_start(waiting.popleft(), lock))
            ended = [each for each in running if each.process.poll() is not None]
            running = [each for each in running if each not in ended]
            for each in ended:
                done += 1
                reason = _reason(each)
                seconds = time.monotonic() - each.started
                if queue:
                    queue.end(str(each.task.log), counts=reason is None)
                if reason is None:
                    left = f", about {spoken(queue.left)} left" if queue and done < len(tasks) else ""
                    say(f"[{done}/{len(tasks)}] {each.task.title}: done in {seconds:.0f} s{left}")
                on_end(each.task, reason)
            if not ended:
                time.sleep(_POLL_S)
    finally:
        for each in running:
            each.process.terminate()
        for each in running:
            each.process.wait()


def _start(task: Task, lock: int) -> _Running:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    task.error.unlink(missing_ok=True)
    environment = os.environ | {ERROR_FILE: str(task.error.absolute())}
    with task.log.open("ab") as log:
        before = log.tell()
        process = subprocess.Popen(  # noqa: S603
            task.command, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,), env=environment
        )
    os.pwrite(lock, f"{process.pid}\n".encode(), os.fstat(lock).st_size)
    return _Running(task, process, before, time.monotonic())


def _reason(ended: _Running) -> str | None:
    """Why a process failed: the error that it left, else the signal that ended it or the end of its log."""
    code = ended.process.returncode
    if not code:
        return None
    if code < 0:
        advice = "; perhaps there is too little memory: give fewer --jobs" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{advice}"
    try:
        return str(read_object(ended.task.error)["error"])
    except (CmrfedError, KeyError):  # it ended without one
        return _last_words(ended) or f"its process ended with status {code} and said nothing"


def _last_words(ended: _Running) -> str:
    """The last line that a process wrote to its log."""
    with ended.task.log.open("rb") as log:
        log.seek(ended.log_from)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")


# --- what points share --------------------------------------------------------------------------
def make_shared(waiting: Sequence[State], folder: Path, jobs: int, lock: int) -> dict[str, str]:
    """Make data and public weights once, and let every point find them: name of a point → why it cannot be run."""
    broken: dict[str, str] = {}
    for state in waiting:
        try:
            _share(state, folder / "shared")
        except CmrfedError as error:
            broken[state.point.name] = str(error)
    able = [state for state in waiting if state.point.name not in broken]
    return broken | _pretrain(able, folder, jobs, lock)


def _share(state: State, shared: Path) -> None:
    from cmrfed.pipeline.data import open_data

    data = state.point.experiment.data
    for name in ("segmenters", "features"):
        (shared / name).mkdir(parents=True, exist_ok=True)
        _link(state.folder / "evaluation" / name, shared / name)
    made_from = {"cohorts": data.cohorts} if data.cohorts else {"phantom": digested(data)["phantom"]}
    place = shared / f"data-{digest_json(made_from | {'size_px': data.size_px})[:12]}"
    (place / "data").mkdir(parents=True, exist_ok=True)
    if len(data.cohorts) != 1:  # a single one is opened where it lies
        _link(state.folder / "data", place / "data")
    open_data(state.point.experiment, place)


def _link(here: Path, there: Path) -> None:
    """Make ``here`` lead to ``there``; a folder that a run made by itself stays."""
    if here.is_dir():
        return
    here.parent.mkdir(parents=True, exist_ok=True)
    here.unlink(missing_ok=True)
    here.symlink_to(os.path.relpath(there, here.parent), target_is_directory=True)


def _pretrain(able: Sequence[State], folder: Path, jobs: int, lock: int) -> dict[str, str]:
    """Pre-train each set of public weights once, before the points that share it would wait for one another."""
    from cmrfed.pipeline.pretrain import origin

    users: dict[str, list[State]] = {}
    for state in able:
        if state.point.experiment.pretrain and not (state.folder / "start").is_dir():
            users.setdefault(digest_json(origin(state.point.experiment)), []).append(state)
    broken: dict[str, str] = {}
    tasks = {folder / "shared" / f"pretrain-{key[:12]}.log": group for key, group in users.items()}

    def ended(task: Task, reason: str | None) -> None:
        if reason is not None:
            broken.update({state.point.name: f"no pre-trained weights: {reason}" for state in tasks[task.log]})

    commands = [
        Task(f"public pre-training of {len(group)} point(s)", pretrain_point(group[0].folder / RECIPE), log)
        for log, group in tasks.items()
    ]
    in_processes(commands, jobs, lock, ended)
    return broken


def record_of(folder: Path) -> RunRecord | None:
    """The record of a point, if there is a readable one."""
    try:
        return read_run(folder)
    except DataError:
        return None

"""Experiment tracking: rounds, losses, ε and the evaluation of a run, for TensorBoard or MLflow.

A tracker reads what lies in the run folder and writes what it does not have yet: after every round, at the end, and
again when a killed run is carried on. So nothing is written twice and nothing is lost. It never stops a run: a full
disk or a server that is away is said once, and the run goes on; `cmrfed track RUN` sends the rest later.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cmrfed.config.experiment import ALL_STAGES
from cmrfed.core.artifacts import digest_bytes
from cmrfed.core.errors import ConfigError, DataError
from cmrfed.core.progress import say
from cmrfed.core.settings.registry import Registry
from cmrfed.evaluation.pictures import REAL_PATIENTS
from cmrfed.evaluation.results.reading import read_evaluation
from cmrfed.federation.server.metrics import RoundMetrics, read_rounds
from cmrfed.pipeline.files.record import RunRecord, read_run

FINAL = 0
"""Step of what is measured once, at the end."""
PICTURE = ("evaluation", "pictures", "synthetic.png")
TABLE = "evaluation/metrics.csv"
"""The numbers of the evaluation; evaluation.json has series by patient too, which stay in the run folder."""
REPORT = "report.html"
OWNER = "cmrfed-run.txt"
"""Beside the event files of a run: which run's they are."""
_INSTALL = "pip install 'cmrfed[tracking]'"


@dataclass(frozen=True)
class Scalar:
    """One number of a run."""

    tag: str
    step: int
    """Round of the stage, from 1; `FINAL` for the evaluation."""
    value: float


class Tracker(Protocol):
    """A place that keeps numbers of runs."""

    name: str

    def write(self, run_dir: Path, scalars: Sequence[Scalar]) -> str:
        """Write those of a run's numbers that are not there yet, and at its end its settings and pictures.

        Returns:
            Where they are now; all of them have been found there.

        Raises:
            DataError: Some have not arrived.
        """


# --- what a run folder holds ------------------------------------------------------------------------
def scalars_of(run_dir: Path) -> list[Scalar]:
    """All numbers that a run has so far: of each round what the sites let leave, and the evaluation's.

    Args:
        run_dir: A folder made by `cmrfed run`.

    Raises:
        DataError: It is not one.
    """
    read_run(run_dir)
    found = [scalar for stage in ALL_STAGES for metrics in read_rounds(run_dir, stage) for scalar in _round(metrics)]
    evaluated = run_dir / "evaluation" / "evaluation.json"
    metrics = read_evaluation(evaluated).metrics if evaluated.exists() else ()
    values = [Scalar(m.id.replace(".", "/", 1), FINAL, m.value) for m in metrics if m.value is not None]
    return [*found, *values]


def _round(metrics: RoundMetrics) -> Iterator[Scalar]:
    stage, step, answered = metrics.stage, metrics.round, metrics.answered.values()
    yield Scalar(f"{stage}/sites that answered", step, float(len(answered)))
    losses = [site.loss for site in answered if site.loss is not None]
    if losses:
        yield Scalar(f"{stage}/loss", step, sum(losses) / len(losses))
    if metrics.seconds is not None:
        yield Scalar(f"{stage}/seconds", step, metrics.seconds)
    spent = [site.spent.at[0].prv for site in answered if site.spent]
    bounded = [epsilon for epsilon in spent if epsilon is not None]
    if bounded and len(bounded) == len(answered):
        yield Scalar(f"{stage}/epsilon, largest of the sites so far", step, max(bounded))


def artifacts(run_dir: Path) -> tuple[str, ...]:
    """Files that a tracker may keep: none that shows a real patient or has a number for a single one."""
    pictures = run_dir.joinpath(*PICTURE).parent
    shows_real = any((pictures / f"{name}.png").exists() for name in REAL_PATIENTS)
    return (TABLE, "/".join(PICTURE), *(() if shows_real else (REPORT,)))


def _identity(run_dir: Path) -> str:
    """The identity of a run: the location of its folder."""
    return digest_bytes(bytes(run_dir.resolve()))


def _same(kept: float | None, value: float) -> bool:
    """Whether a tracker keeps a value, be it in float32."""
    if kept is None:
        return False
    with np.errstate(over="ignore"):
        return math.isclose(kept, value, rel_tol=1e-6) or kept == float(np.float32(value))


def _lacking(scalars: Sequence[Scalar], known: Mapping[tuple[str, int], float]) -> list[Scalar]:
    """The finite ones that are not known, or are known with another value."""
    each = {(scalar.tag, scalar.step): scalar for scalar in _finite(scalars)}
    return [scalar for key, scalar in each.items() if not _same(known.get(key), scalar.value)]


def _check_arrived(name: str, place: str, lacking: Sequence[Scalar]) -> None:
    if lacking:
        raise DataError(
            f"{len(lacking)} numbers have not arrived in {name}",
            got=", ".join(f"{scalar.tag} of step {scalar.step}" for scalar in lacking[:3]),
            expected=f"all of them in {place}",
            do="see that the place can be written, and send them again with `cmrfed track`",
        )


def _finite(scalars: Sequence[Scalar]) -> list[Scalar]:
    return [scalar for scalar in scalars if math.isfinite(scalar.value)]


# --- TensorBoard --------------------------------------------------------------------------------
class TensorBoard:
    """Event files below ``folder``, a subfolder for each run: of its name, and of more where another has that name.

    Args:
        folder: What `tensorboard --logdir` is given.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            raise ConfigError("TensorBoard is not installed", do=_INSTALL) from None

    def write(self, run_dir: Path, scalars: Sequence[Scalar]) -> str:
        """See `Tracker`; the event files themselves say what is there already."""
        from torch.utils.tensorboard import SummaryWriter

        place = self.place(run_dir, scalars)
        known, pictures = _events(place)
        new = _lacking(scalars, known)
        picture = run_dir.joinpath(*PICTURE)
        drawn = picture.exists() and picture.stem not in pictures
        if not (new or drawn):
            return str(place)
        with SummaryWriter(str(place)) as writer:
            for scalar in new:
                writer.add_scalar(scalar.tag, scalar.value, scalar.step)
            if drawn:
                writer.add_image(picture.stem, _pixels(picture), FINAL, dataformats="HWC")
        _check_arrived(self.name, str(place), _lacking(scalars, _events(place)[0]))
        return str(place)

    def place(self, run_dir: Path, scalars: Sequence[Scalar]) -> Path:
        """The subfolder of a run; it is made, and belongs to this run from then on."""
        me = _identity(run_dir)
        name = run_dir.resolve().name or "run"
        plain = self.folder / name
        if _is_ours(plain, me, scalars) and _claim(plain, me):
            return plain
        own = self.folder / f"{name}-{me[:8]}"
        _claim(own, me)
        return own


def _is_ours(place: Path, identity: str, scalars: Sequence[Scalar]) -> bool:
    """Whether a subfolder is free, or marked as this run's, or unmarked and has nothing but this run's numbers."""
    if not place.exists():
        return True
    marker = place / OWNER
    if marker.exists():
        return marker.read_text(encoding="utf-8", errors="replace").strip() == identity
    known, mine = _events(place)[0], {(s.tag, s.step): s.value for s in _finite(scalars)}
    return all(key in mine and _same(value, mine[key]) for key, value in known.items())


def _claim(place: Path, identity: str) -> bool:
    """Mark a subfolder as a run's, unless another process has marked it as another's meanwhile."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        with (place / OWNER).open("x", encoding="utf-8") as file:
            file.write(f"{identity}\n")
    except FileExistsError:
        return (place / OWNER).read_text(encoding="utf-8", errors="replace").strip() == identity
    return True


def _events(place: Path) -> tuple[dict[tuple[str, int], float], set[str]]:
    """The numbers by tag and step, and names of the pictures, in event files; of two at one step the later counts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not place.is_dir():
        return {}, set()
    read = EventAccumulator(str(place), size_guidance={"scalars": 0})
    read.Reload()
    tags = read.Tags()
    found = sorted((event.wall_time, tag, event) for tag in tags["scalars"] for event in read.Scalars(tag))
    return {(tag, event.step): event.value for _, tag, event in found}, set(tags["images"])


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


# --- MLflow -------------------------------------------------------------------------------------
class MLflow:
    """A run of MLflow for each run folder, identified by its location, in the experiment of the recipe's name.

    Args:
        uri: Of the tracking server, or ``sqlite:///FILE``.

    Raises:
        ConfigError: MLflow is not installed.
    """

    name = "MLflow"

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            import mlflow  # noqa: F401
        except ImportError:
            raise ConfigError("MLflow is not installed", do=_INSTALL) from None

    def write(self, run_dir: Path, scalars: Sequence[Scalar]) -> str:
        """See `Tracker`; what the server has of the run says what is there already."""
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        client, record = MlflowClient(tracking_uri=self.uri), read_run(run_dir)
        run = self._run(client, run_dir, record)
        names = {scalar.tag: _mlflow_name(scalar.tag) for scalar in scalars}
        known = _history(client, run, names)
        now = int(time.time() * 1000)
        metrics = [
            Metric(names[s.tag], s.value, now if (s.tag, s.step) in known else run.info.start_time, s.step)
            for s in _lacking(scalars, known)
        ]
        settings = _flat(record.experiment.model_dump(mode="json"))
        params = [Param(name, text) for name, text in settings if name not in run.data.params]
        for start in range(0, len(params), 100):  # MLflow takes no more at a time
            client.log_batch(run.info.run_id, params=params[start : start + 100])
        for start in range(0, len(metrics), 500):
            client.log_batch(run.info.run_id, metrics=metrics[start : start + 500])
        if record.finished:
            self._finish(client, run, run_dir)
        server = re.sub(r"//[^/@]*@", "//", self.uri)  # without a password
        place = f"run {run.info.run_name} ({run.info.run_id}) of experiment {record.experiment.name} at {server}"
        if metrics:
            run = client.get_run(run.info.run_id)
            _check_arrived(self.name, place, _lacking(scalars, _history(client, run, names)))
        return place

    def _run(self, client: Any, run_dir: Path, record: RunRecord) -> Any:
        """The run of a folder, found again by its tag or made."""
        name = record.experiment.name
        experiment = client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else client.create_experiment(name)
        tag = f"{record.digest[:16]} {_identity(run_dir)[:16]}"
        found = client.search_runs([number], filter_string=f"tags.cmrfed = '{tag}'", max_results=1)
        return found[0] if found else client.create_run(number, tags={"cmrfed": tag}, run_name=run_dir.name)

    def _finish(self, client: Any, run: Any, run_dir: Path) -> None:
        wanted = artifacts(run_dir)
        places = {path.rpartition("/")[0] or None for path in wanted}
        there = {item.path for place in places for item in client.list_artifacts(run.info.run_id, place)}
        for path in wanted:
            inside = path.rpartition("/")[0] or None
            if path not in there and (run_dir / path).exists():
                client.log_artifact(run.info.run_id, str(run_dir / path), inside)
        if run.info.status != "FINISHED":
            client.set_terminated(run.info.run_id)


def _history(client: Any, run: Any, names: Mapping[str, str]) -> dict[tuple[str, int], float]:
    """Numbers of a run that the server has, by tag and step; of two at one step the later counts."""
    return {
        (tag, point.step): point.value
        for tag, name in names.items()
        if name in run.data.metrics
        for point in sorted(client.get_metric_history(run.info.run_id, name), key=lambda point: point.timestamp)
    }


def _mlflow_name(tag: str) -> str:
    """MLflow takes letters, digits and a few signs."""
    return "".join(sign if sign.isalnum() or sign in "_-. /:" else "_" for sign in tag)


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Full names of settings and their values as text."""
    if isinstance(tree, Mapping) and tree:
        for name, value in tree.items():
            yield from _flat(value, f"{prefix}{name}.")
    else:
        yield prefix.removesuffix("."), str(tree)[:500]


# --- sending -------------------------------------------------------------------------------------
TRACKERS: Registry[Callable[[str], Tracker]] = Registry(
    "cmrfed.trackers",
    "tracker",
    {"tensorboard": lambda folder: TensorBoard(Path(folder)), "mlflow": MLflow},
    fault=lambda name, part: None if callable(part) else f"{part!r}, which cannot be called with an address",
)
"""What makes a `Tracker` of an address: a folder, a URI, or whatever a plugin says that it is."""


def trackers(tensorboard: Path | None, mlflow: str | None, others: Sequence[str] = ()) -> list[Tracker]:
    """Those that were asked for; others as ``name=address``.

    Raises:
        ConfigError: One is not installed, or lacks its address.
    """
    asked = [f"tensorboard={tensorboard}"] if tensorboard else []
    asked += [f"mlflow={mlflow}"] if mlflow else []
    return [_tracker(text) for text in (*asked, *others)]


def _tracker(text: str) -> Tracker:
    name, mark, address = text.partition("=")
    if not (mark and address):
        expected = f"NAME=ADDRESS, where NAME is {' or '.join(TRACKERS.names)}"
        raise ConfigError("a tracker needs an address", got=text, expected=expected)
    return TRACKERS.get(name)(address)


def tracking_callback(run_dir: Path, asked: Sequence[Tracker]) -> Callable[[], None]:
    """What to call after every round and at the end of a run: it writes to all trackers, and never fails."""
    silent: set[str] = set()

    def send() -> None:
        for tracker in asked:
            try:
                tracker.write(run_dir, scalars_of(run_dir))
            except Exception as error:  # whatever it is: what was trained matters more than where it is shown
                if tracker.name not in silent:
                    why = f"{type(error).__name__}: {error}".splitlines()[0]
                    say(f"{tracker.name} failed: {why}. The run goes on; `cmrfed track` sends what is missing.")
                silent.add(tracker.name)

    return send if asked else lambda: None


def track_run(run_dir: Path, asked: Sequence[Tracker]) -> tuple[int, list[str]]:
    """Send what trackers do not have of a run; the number of its finite numbers, and where they are now.

    Raises:
        ConfigError: No tracker was named, or one cannot be reached.
        DataError: The folder is not a run, or numbers have not arrived.
    """
    if not asked:
        raise ConfigError("no tracker was named", do="give --tensorboard DIR, --mlflow URI or --tracker NAME=ADDRESS")
    scalars, places = scalars_of(run_dir), list[str]()
    for tracker in asked:
        try:
            places.append(f"{tracker.name}: {tracker.write(run_dir.absolute(), scalars)}")
        except DataError:
            raise
        except Exception as error:
            raise ConfigError(f"{tracker.name} failed", got=error, do="see that it can be reached") from error
    return len(_finite(scalars)), places

"""The record of a run, run.json: its model, its one reader and its one writer."""

import importlib.metadata
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema

from cmrfed.config.experiment import Experiment
from cmrfed.core.artifacts import write_json
from cmrfed.core.errors import ConfigError, DataError
from cmrfed.core.progress import step as job_step
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.registry import loaded_plugins
from cmrfed.core.settings.validation import read_versioned
from cmrfed.data.preparation.account import PreparationFacts
from cmrfed.data.synthetic import LearnedFrom
from cmrfed.pipeline.privacy.plan import PlanRow

FILE = "run.json"
SCHEMA_VERSION: Final = 2
"""Version 0.1 wrote no number, which counts as 1, and left out what was not known yet."""
PACKAGES = ("cmrfed", "torch", "flwr", "diffusers", "monai", "numpy")


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _is_moment(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Moment = Annotated[str, AfterValidator(_is_moment), Field(json_schema_extra={"format": "date-time"})]
"""Date and time in ISO 8601."""


class SiteEntry(Section):
    """A site as the record names it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    patients: int | None = Field(None, ge=0)
    """Number of its training patients; None where the patients are elsewhere."""
    groups: dict[str, int] = {}
    """Diagnosis → number of patients."""


class SplitSizes(Section):
    """Numbers of patients."""

    train: int = Field(ge=0)
    holdout: int = Field(ge=0)


class PluginEntry(Section):
    """A version of another distribution, and its parts that were loaded."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    version: str
    parts: tuple[str, ...]
    """Entry points as ``group:name``, such as ``cmrfed.samplers:quadratic``."""

    def __str__(self) -> str:
        """In words, such as ``cmrfed-example 0.1.0 (samplers: quadratic)``."""
        parts = (part.removeprefix("cmrfed.").replace("_", " ").replace(":", ": ") for part in self.parts)
        return f"{self.name} {self.version} ({', '.join(parts)})"


class RunRecord(Section):
    """The content of run.json: what was run, on what, with what, and how long each step took."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    schema_version: Literal[2] = SCHEMA_VERSION
    experiment: Annotated[Experiment, WithJsonSchema({"type": "object"})]
    """The recipe with every setting: docs/recipe-reference.md."""
    digest: str = Field(min_length=12)
    """Digest of the experiment as it was when the run began; it names the weights."""
    versions: dict[str, str] = {}
    """Package → version."""
    plugins: tuple[PluginEntry, ...] = ()
    """What the processes of the run had loaded of other distributions; two versions of one where it was carried on with
    another."""
    started: Moment | None = None
    finished: Moment | None = None
    """None: the run was stopped, or still goes on."""
    timings_s: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Step → seconds, over all starts of the run."""
    peak_memory_mb: int = Field(0, ge=0)
    steps: dict[str, str] = {}
    """Step that is finished → digest of its settings and inputs."""
    start: dict[str, str] | None = None
    """Stage → digest of the public weights that it starts from; None where there are none."""
    learned_from: tuple[LearnedFrom, ...] = ()
    """Public sources that the start was trained on."""
    privacy_plan: tuple[PlanRow, ...] = ()
    """One row for each private stage."""
    sites: tuple[SiteEntry, ...] = ()
    split: SplitSizes | None = None
    """None where the patients are elsewhere."""
    data: PreparationFacts | None = None
    """What preparation noted of the patients, as counts."""
    problem: str | None = None
    """Why a deployed run ended by itself."""

    @property
    def seconds(self) -> float | None:
        """Seconds of all steps; None where none was timed."""
        return sum(self.timings_s.values()) if self.timings_s else None

    def as_json(self) -> dict[str, Any]:
        """The content of run.json as plain data."""
        return self.model_dump(mode="json")


def is_run(folder: Path) -> bool:
    """Whether a folder has the record of a run."""
    return (folder / FILE).is_file()


def read_run(folder: Path) -> RunRecord:
    """Read the run.json of a run folder, of this version or of 0.1.

    Raises:
        DataError: There is none, it is damaged, or a later version wrote it.
    """
    if not is_run(folder):
        raise DataError(
            f"{folder} is not a run",
            got=f"no {FILE}" if folder.is_dir() else "no such folder",
            expected="a folder made by `cmrfed run`",
            do="cmrfed run RECIPE --run-dir DIR",
        )
    return read_versioned(folder / FILE, RunRecord, SCHEMA_VERSION, do="restore it from a copy, or make the run again")


class RecordWriter:
    """Keeps the record of a run that is at work, and writes it whenever it changes.

    Nothing is written before the data have been found fit: a refused run leaves no folder that only it could use.

    Args:
        run_dir: The run folder.
        experiment: What is run.

    Raises:
        ConfigError: The folder is that of another experiment.
        DataError: Its run.json cannot be used.
    """

    def __init__(self, run_dir: Path, experiment: Experiment) -> None:
        self.path = run_dir / FILE
        self.content = read_run(run_dir) if is_run(run_dir) else _fresh(experiment)
        if self.content.digest != experiment.digest:
            raise ConfigError(
                f"{run_dir} holds another run",
                got=f"experiment {experiment.digest[:12]}",
                expected=f"experiment {self.content.digest[:12]}",
                do="give another --run-dir, or the recipe and settings of that run",
            )
        self._update(experiment=experiment, finished=None)

    def done(self, step: str, key: str) -> bool:
        """Whether the step was finished with the settings and inputs of this key."""
        return self.content.steps.get(step) == key

    def mark(self, step: str, key: str) -> None:
        """Remember that the step is finished."""
        self.set(steps=self.content.steps | {step: key})

    def save(self) -> None:
        """Write it, with the largest memory seen so far and all plugins that are loaded by now."""
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        self._update(
            peak_memory_mb=max(self.content.peak_memory_mb, round(peak / 1024)),
            plugins=_with_loaded(self.content.plugins),
        )
        write_json(self.path, self.content.as_json())

    def set(self, **values: Any) -> None:
        """Record fields of `RunRecord`."""
        self._update(**values)
        self.save()

    def _update(self, **values: Any) -> None:
        fields = {name: getattr(self.content, name) for name in RunRecord.model_fields}
        self.content = RunRecord(**(fields | values))

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the seconds of the block to those of the step; what was spent before an interruption counts too."""
        start = time.monotonic()
        try:
            with job_step(step):
                yield
        finally:
            times = self.content.timings_s
            total = round(times.get(step, 0.0) + time.monotonic() - start, 1)
            self._update(timings_s=times | {step: total})
            if self.path.exists():
                self.save()


def _with_loaded(known: tuple[PluginEntry, ...]) -> tuple[PluginEntry, ...]:
    """These and what this process has loaded, in order of name and version."""
    parts = {(entry.name, entry.version): set(entry.parts) for entry in known}
    for part, plugin in loaded_plugins().items():
        parts.setdefault((plugin.package, plugin.version), set()).add(part)
    return tuple(
        PluginEntry(name=name, version=version, parts=tuple(sorted(found)))
        for (name, version), found in sorted(parts.items())
    )


def _fresh(experiment: Experiment) -> RunRecord:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return RunRecord(experiment=experiment, digest=experiment.digest, versions=versions(), started=started)

"""The record of a run: run.json."""

import importlib.metadata
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cmrfed.config.experiment import Experiment
from cmrfed.core.artifacts import read_json, write_json
from cmrfed.core.errors import ConfigError

PACKAGES = ("cmrfed", "torch", "flwr", "diffusers", "monai", "numpy")


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


class Record:
    """run.json: what was run, on what, with what, and how long each step took.

    It is written once the data have been found fit: a refused run leaves no folder that only it could use.
    """

    def __init__(self, run_dir: Path, experiment: Experiment) -> None:
        self.path = run_dir / "run.json"
        fresh: dict[str, Any] = {
            "experiment": experiment.model_dump(mode="json"),
            "digest": experiment.digest,
            "versions": versions(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "finished": None,
            "timings_s": {},
            "peak_memory_mb": 0,
            "steps": {},
        }
        self.content: dict[str, Any] = read_json(self.path) if self.path.exists() else fresh
        if self.content["digest"] != experiment.digest:
            raise ConfigError(
                f"{run_dir} holds another run",
                got=f"experiment {experiment.digest[:12]}",
                expected=f"experiment {self.content['digest'][:12]}",
                do="give another --run-dir, or the recipe and settings of that run",
            )
        self.content.update(experiment=fresh["experiment"], finished=None)

    def done(self, step: str, key: str) -> bool:
        """Whether the step was finished with the settings and inputs of this key."""
        return self.content["steps"].get(step) == key

    def mark(self, step: str, key: str) -> None:
        """Remember that the step is finished."""
        self.set(steps=self.content["steps"] | {step: key})

    def save(self) -> None:
        """Write it, with the largest memory seen so far."""
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        self.content["peak_memory_mb"] = max(self.content["peak_memory_mb"], round(peak / 1024))
        write_json(self.path, self.content)

    def set(self, **values: Any) -> None:
        """Record values."""
        self.content.update(values)
        self.save()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the seconds of the block to those of the step; what was spent before an interruption counts too."""
        start = time.monotonic()
        try:
            yield
        finally:
            times = self.content["timings_s"]
            times[step] = round(times.get(step, 0.0) + time.monotonic() - start, 1)
            if self.path.exists():
                self.save()

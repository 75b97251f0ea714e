"""What an evaluation says: metrics with interval, n, unit and direction; series for plots; the report on disk."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from cmrfed.artifacts import write_json, write_text
from cmrfed.config import Section

SCHEMA_VERSION = 1
Axis = Literal["fidelity", "anatomy", "memorisation", "leakage", "utility"]


class Metric(Section):
    """One measured number, or the reason why there is none."""

    axis: Axis
    name: str
    value: float | None = None
    low: float | None = None
    """Lower end of the 95 % interval; ``detail`` says over what it was drawn."""
    high: float | None = None
    n: int | None = None
    """Number of independent things behind the value (patients unless ``detail`` says otherwise)."""
    unit: str | None = None
    higher_is_better: bool | None = None
    """None where neither direction is better, as for a share with an expected value."""
    reference: float | None = None
    """The same number between real and real, or under no effect: what a perfect synthetic set would get."""
    detail: str | None = None
    unavailable: str | None = None
    """Why there is no value, and what to do."""

    @model_validator(mode="after")
    def _value_or_reason(self) -> "Metric":
        if (self.value is None) == (self.unavailable is None):
            raise ValueError(f"metric {self.name} needs a value or the reason why there is none, not both")
        return self


class Estimate(NamedTuple):
    """A number and its 95 % interval, which has no ends where there is nothing to resample."""

    value: float
    low: float | None
    high: float | None


class Findings(Section):
    """What one axis found: metrics, warnings, and series for plots (name => label => numbers)."""

    metrics: tuple[Metric, ...] = ()
    warnings: tuple[str, ...] = ()
    series: dict[str, dict[str, tuple[float, ...]]] = Field(default_factory=dict)

    def __add__(self, other: "Findings") -> "Findings":
        return Findings(
            metrics=self.metrics + other.metrics,
            warnings=self.warnings + other.warnings,
            series=self.series | other.series,
        )

    def find(self, name: str) -> Metric | None:
        """The metric of that name, if there is one."""
        return next((metric for metric in self.metrics if metric.name == name), None)


class EvaluationReport(Findings):
    """The content of evaluation.json."""

    schema_version: int = SCHEMA_VERSION
    inputs: dict[str, str] = Field(default_factory=dict)
    """Input => digest of its content."""
    sizes: dict[str, int] = Field(default_factory=dict)
    """Input => number of patients."""
    verdict: dict[str, str] = Field(default_factory=dict)
    """Axis => verdict in words, with the rule that gave it."""

    def write(self, folder: Path) -> None:
        """Write ``metrics.csv`` and, last, ``evaluation.json``: a folder with the latter is whole."""
        text = io.StringIO()
        table = csv.DictWriter(text, list(Metric.model_fields))
        table.writeheader()
        table.writerows(metric.model_dump() for metric in self.metrics)
        write_text(folder / "metrics.csv", text.getvalue())
        write_json(folder / "evaluation.json", self.model_dump(mode="json"))


def bootstrap(
    rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, draws: int = 2000, seed: int = 0
) -> tuple[float | None, float | None]:
    """95 % percentile interval of a statistic over resampled rows (Efron and Tibshirani 1993, chapter 13).

    Args:
        rows: (N, ...) one row for each independent thing, usually a patient.
        statistic: (draws, N, ...) => (draws,); NaN entries are its own affair.
        draws: Number of resamples.
        seed: Same seed, same interval.

    Returns:
        The 2.5th and 97.5th percentile, or (None, None) with fewer than two rows or no finite draw.
    """
    if len(rows) < 2:
        return None, None
    chosen = np.random.default_rng(seed).integers(len(rows), size=(draws, len(rows)))
    values = statistic(rows[chosen])
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean and 95 % bootstrap interval of one finite number per independent thing, (N,)."""
    values = np.asarray(values, float)
    return Estimate(float(values.mean()), *bootstrap(values, lambda drawn: drawn.mean(1), seed=seed))

"""What an evaluation says: metrics with an id, interval, n, unit and direction; series for plots; verdicts.

Nothing here is wording: names and sentences are made by `cmrfed.evaluation.results.catalogue` and kept beside the
numbers.

The grammar of an id::

    id        = axis "." measure { "." qualifier }
    axis      = "fidelity" | "anatomy" | "memorisation" | "leakage" | "utility"
    measure, qualifier = segment        segment = [a-z0-9]+ { "-" [a-z0-9]+ }

The qualifiers that a metric has stand in the order of `QUALIFIERS`; one whose name is the user's own (a test set, a
feature extractor) is written as :func:`slug` makes it. An id is stable between versions; code selects by it or by the
fields it is made of, never by a name.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from pydantic import Field, model_validator

from cmrfed.core.artifacts import digest_bytes, write_json, write_text
from cmrfed.core.settings.config import Section

SCHEMA_VERSION: Literal[2] = 2
Axis = Literal["fidelity", "anatomy", "memorisation", "leakage", "utility"]
AXES: tuple[Axis, ...] = get_args(Axis)
Level = Literal[
    "not-measured",
    "good",
    "fair",
    "poor",
    "none-found",
    "some-sign",
    "strong-sign",
    "identified",
    "claim-refuted",
]
"""Verdict of an axis: good to poor for quality; for memorisation and leakage, what was found."""
QUALIFIERS = ("arm", "test", "structure", "attack", "space", "quantity", "segmenter")
SEGMENT = r"[a-z0-9]+(?:-[a-z0-9]+)*"
ID = rf"^(?:{'|'.join(AXES)})\.{SEGMENT}(?:\.{SEGMENT})*$"
CONTROL_FAILED = "control-failed"
"""Code of a value that is withheld because its attack failed the control."""
CLAIM_REFUTED = "claim-refuted"
"""Code of the warning that a privacy claim does not hold."""


def slug(text: str) -> str:
    """Write a name as a segment of an id: lower case, and a hyphen for anything but letters and digits of ASCII.

    A name without any of these becomes ``x`` and eight digits of its digest.
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or f"x{digest_bytes(text.encode())[:8]}"


def identity(fields: Mapping[str, Any]) -> str:
    """The id that follows from axis, measure and qualifiers."""
    named = [str(fields[name]) for name in QUALIFIERS if fields.get(name) is not None]
    return ".".join([str(fields.get("axis")), str(fields.get("measure")), *map(slug, named)])


class Identified(Section):
    """Something that is measured: its id, and the fields that the id is made of."""

    id: str = Field("", pattern=ID)
    """Made from the fields below where it is not given."""
    axis: Axis
    measure: str = Field(pattern=f"^{SEGMENT}$")
    """What is measured, such as ``dice``."""
    arm: str | None = None
    """The set that the number is of (``synthetic``, or a yardstick such as ``training``); on the axis utility, what the
    segmenter was trained on."""
    test: str | None = None
    """The set that a segmenter was tested on: ``holdout``, ``reconstruction``, or the name of an external cohort."""
    structure: str | None = None
    """``lv``, ``myo`` or ``rv``."""
    attack: str | None = None
    """The membership attack."""
    space: str | None = None
    """Where distances are taken (``pixels``, or the name of the feature extractor), or how an attack has access."""
    quantity: str | None = None
    """What is compared or measured of it: a shape, a clinical quantity, a false-positive rate."""
    segmenter: str | None = None
    """None: the reference segmenter."""

    @model_validator(mode="before")
    @classmethod
    def _with_id(cls, given: Any) -> Any:
        return {"id": identity(given), **given} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _id_of_fields(self) -> "Identified":
        expected = identity({name: getattr(self, name) for name in ("axis", "measure", *QUALIFIERS)})
        if self.id != expected:
            raise ValueError(f"the id {self.id} does not fit its fields, which give {expected}")
        return self

    @property
    def key(self) -> str:
        """Axis and measure: the key of the catalogue."""
        return f"{self.axis}.{self.measure}"


class Metric(Identified):
    """One measured number, or the reason why there is none."""

    name: str
    """The name that readers see; no code selects by it."""
    value: float | None = None
    low: float | None = None
    """Lower end of the 95 % interval; ``detail`` says over what it was drawn."""
    high: float | None = None
    n: int | None = None
    """Number of independent things behind the value (patients unless ``detail`` says otherwise)."""
    unit: str | None = None
    """A key of the catalogue's units."""
    higher_is_better: bool | None = None
    """None where neither direction is better, as for a share with an expected value."""
    reference: float | None = None
    """The same number between real and real, or under no effect: what a perfect synthetic set would get."""
    detail: str | None = None
    unavailable: str | None = None
    """Why there is no value, and what to do."""
    unavailable_code: str | None = None
    """The reason as a code, where code depends on it."""

    @model_validator(mode="after")
    def _value_or_reason(self) -> "Metric":
        if (self.value is None) == (self.unavailable is None):
            raise ValueError(f"metric {self.id} needs a value or the reason why there is none, not both")
        return self


COLUMNS = (
    *("id", "axis", "name", "value", "low", "high", "n", "unit", "higher_is_better", "reference", "detail"),
    *("unavailable", "unavailable_code", "measure", *QUALIFIERS),
)
"""Fields of a metric in the order of tables."""


class Series(Identified):
    """Numbers for a plot: values of each group, or of a membership attack the scores or the ceiling of a claim."""

    kind: Literal["values", "scores", "ceiling"]
    name: str
    """The name that readers see."""
    label: str
    """What the values are, for an axis of the plot."""
    groups: dict[str, tuple[float, ...]]
    """Key of a group → its numbers."""


class Notice(Section):
    """A warning; it has a code where code depends on it."""

    text: str
    code: str | None = None


class Verdict(Section):
    """Verdict of an axis; word, text and rule are for people."""

    axis: Axis
    level: Level
    word: str
    text: str
    rule: str = ""

    @property
    def words(self) -> str:
        """All of it in one paragraph."""
        return f"{self.word}: {self.text}" + (f" Rule: {self.rule}" if self.rule else "")


class Estimate(NamedTuple):
    """A number and its 95 % interval, which has no ends where there is nothing to resample."""

    value: float
    low: float | None
    high: float | None


_Item = TypeVar("_Item", bound=Identified)


class Findings(Section):
    """What one axis found: metrics, warnings, and series for plots."""

    metrics: tuple[Metric, ...] = ()
    warnings: tuple[Notice, ...] = ()
    series: tuple[Series, ...] = ()

    def __add__(self, other: "Findings") -> "Findings":
        """Both; of series with the same id the groups are put together."""
        series = {each.id: each for each in self.series}
        for each in other.series:
            groups = {**series[each.id].groups, **each.groups} if each.id in series else each.groups
            series[each.id] = each.model_copy(update={"groups": groups})
        return Findings(
            metrics=self.metrics + other.metrics,
            warnings=self.warnings + other.warnings,
            series=tuple(series.values()),
        )

    def find(self, metric_id: str) -> Metric | None:
        """The metric of that id, if there is one."""
        return next((metric for metric in self.metrics if metric.id == metric_id), None)

    def select(self, key: str, **fields: str | None) -> list[Metric]:
        """The metrics of a measure, such as ``utility.dice``, with these fields (None: without)."""
        return _select(self.metrics, key, fields)

    def select_series(self, key: str, **fields: str | None) -> list[Series]:
        """As :meth:`select`, of series."""
        return _select(self.series, key, fields)


def _select(items: Iterable[_Item], key: str, fields: Mapping[str, str | None]) -> list[_Item]:
    return [
        item
        for item in items
        if item.key == key and all(getattr(item, name) == value for name, value in fields.items())
    ]


class EvaluationReport(Findings):
    """The content of evaluation.json; :mod:`cmrfed.evaluation.results.reading` reads it, older versions too."""

    schema_version: Literal[2] = SCHEMA_VERSION
    inputs: dict[str, str] = Field(default_factory=dict)
    """Input => digest of its content."""
    sizes: dict[str, int] = Field(default_factory=dict)
    """Input => number of patients."""
    verdicts: tuple[Verdict, ...] = ()

    @model_validator(mode="after")
    def _each_id_once(self) -> "EvaluationReport":
        counts = Counter(item.id for item in self.metrics), Counter(item.id for item in self.series)
        twice = sorted(name for count in counts for name, times in count.items() if times > 1)
        if twice:
            raise ValueError(f"an id stands for one thing, but these come twice: {', '.join(twice[:5])}")
        return self

    def verdict(self, axis: Axis) -> Verdict | None:
        """The verdict on an axis, if there is one."""
        return next((verdict for verdict in self.verdicts if verdict.axis == axis), None)

    def write(self, folder: Path) -> None:
        """Write ``metrics.csv`` and, last, ``evaluation.json``: a folder with the latter is whole."""
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS)
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

"""The table of a sweep, condensed: each question against ε, with intervals over seeds, and where the knee is.

Everything here is read from the rows of the table, so that it can be checked against the file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cmrfed.evaluation.results.catalogue import SWEEP as MEASURES
from cmrfed.report.plots import number
from cmrfed.sweep.table import AXIS, Row

Question = Literal["utility", "fidelity", "leakage"]
QUESTIONS: tuple[Question, ...] = ("utility", "fidelity", "leakage")
ASKED: dict[Question, dict[str, str | None]] = {
    "utility": {"metric_id": "utility.dice.synthetic.holdout"},
    "fidelity": {"question": "fidelity", "measure": "kid", "arm": "synthetic"},
    "leakage": {"metric_id": "leakage.auc.calibrated-neighbour.pixels"},
}
"""Question → columns of the rows that answer it; KID by whatever features. Of leakage one attack for all points, the
one that has found most of generators without privacy (docs/families.md): the best of several at each point would be
lifted by chance alone."""
BETTER_IS_MORE: dict[Question, bool] = {"utility": True, "fidelity": False, "leakage": False}
PANEL_AXIS = "family"
_NOT_LINES = {PANEL_AXIS, "epsilon", "privacy.epsilon", "seed", "name"}
ALL = "all points"
KNEE_RULE = (
    "The knee of utility or fidelity is the smallest ε from which upwards no interval lies wholly on the worse side of "
    "the interval at the largest ε, where all smaller ε do; of leakage, the largest ε up to which none lies wholly "
    "above the interval at the smallest ε, where all larger ε do. It takes values with intervals at three ε or more. "
    "That intervals overlap does not show that two values are equal."
)


@dataclass(frozen=True)
class Level:
    """One question at one ε."""

    epsilon: float
    value: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    reason: str = ""
    """Why there is no value, or why not from every seed."""
    noise_to_signal: float | None = None
    reference: float | None = None
    """The same of real slices: Dice of a segmenter of real ones, KID of training against hold-out; or chance."""

    @property
    def over(self) -> str:
        """What the interval is drawn over."""
        return f"{self.seeds} seeds" if self.seeds > 1 else "patients of 1 seed"

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, where there are any."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def words(self) -> str:
        """Value and interval."""
        if self.value is None:
            return "unavailable"
        ends = f" ({number(self.low)} to {number(self.high)})" if self.low is not None and self.high is not None else ""
        return f"{number(self.value)}{ends}"


@dataclass(frozen=True)
class Curve:
    """One question against ε, smallest first, for one family and one choice of all other axes."""

    question: Question
    panel: str
    line: str
    levels: tuple[Level, ...]
    knee: str

    @property
    def measured(self) -> list[Level]:
        """Levels with a value."""
        return [level for level in self.levels if level.value is not None]


def epsilon_text(value: float) -> str:
    """ε as it is written."""
    return "∞" if math.isinf(value) else f"{value:g}"


def curves(table: Sequence[Row]) -> list[Curve]:
    """All curves of a table, in its order."""
    axes = [name.removeprefix(AXIS) for name in table[0] if name.startswith(AXIS)]
    cells: dict[tuple[str, str], dict[float, list[list[Row]]]] = {}
    for rows in by_point(table).values():
        first = rows[0]
        panel = (first.get(AXIS + PANEL_AXIS) if PANEL_AXIS in axes else None) or ALL
        line = ", ".join(f"{a} {first[AXIS + a]}" for a in axes if a not in _NOT_LINES and first[AXIS + a] is not None)
        cells.setdefault((panel, line), {}).setdefault(first["epsilon"], []).append(rows)
    out = []
    for (panel, line), by_epsilon in cells.items():
        for question in QUESTIONS:
            levels = tuple(_level(question, eps, points) for eps, points in sorted(by_epsilon.items()))
            out.append(Curve(question, panel, line, levels, knee(question, levels)))
    return out


def by_point(table: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each point, in order of the table."""
    out: dict[str, list[Row]] = {}
    for row in table:
        out.setdefault(row["point"], []).append(row)
    return out


# --- one level ----------------------------------------------------------------------------------
def _level(question: Question, epsilon: float, points: Sequence[list[Row]]) -> Level:
    found, reasons = [], []
    for rows in points:
        value = _value(question, rows)
        if isinstance(value, str):
            reasons.append(value)
        else:
            found.append(value)
    noise = next((rows[0]["noise_to_signal"] for rows in points if rows[0]["noise_to_signal"] is not None), None)
    seeds = [rows[0]["seed"] for rows in points]
    if len(set(seeds)) < len(seeds):
        reasons, found = ["several points with the same seed lie here: give what they differ in an axis"], []
    if not found:
        return Level(epsilon, reason=reasons[0], noise_to_signal=noise)
    reference = _reference(question, points)
    return Level(epsilon, *over_seeds(found), len(found), "; ".join(reasons), noise, reference)


def _reference(question: Question, points: Sequence[list[Row]]) -> float | None:
    """Mean over points, where all have one."""
    if question == "leakage":
        return 0.5
    found = [row["reference"] for rows in points for row in rows if answers(question, row)]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


Interval = tuple[float, float | None, float | None]


def over_seeds(found: Sequence[Interval]) -> Interval:
    """Mean and 95 % interval of Student's t over seeds; of one seed its own interval, which is over patients."""
    if len(found) == 1:
        return found[0]
    values = np.array([value for value, *_ in found])
    from scipy.stats import t as student

    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    mean = float(values.mean())
    return mean, mean - half, mean + half


def _value(question: Question, rows: Sequence[Row]) -> Interval | str:
    """Value and interval of one point, or why there is none."""
    first = rows[0]
    if first["status"] != "finished":
        return f"the point {first['status']}" + (f": {first['reason']}" if first["reason"] else "")
    wanted = [row for row in rows if answers(question, row)]
    if not wanted:
        return _silent(rows) if question == "leakage" else f"{MEASURES[question]} was not measured"
    row = wanted[0]
    return row["unavailable"] if row["value"] is None else (row["value"], row["low"], row["high"])


def answers(question: Question, row: Row) -> bool:
    """Whether a row of the table is what a question is answered by."""
    return has(row, ASKED[question])


def has(row: Row, columns: Mapping[str, str | None]) -> bool:
    """Whether a row has these values."""
    return all(row[name] == value for name, value in columns.items())


def _silent(rows: Sequence[Row]) -> str:
    """Why the attack was not tried."""
    reasons = [row["unavailable"] for row in rows if row["question"] == "leakage" and row["unavailable"]]
    return reasons[0] if reasons else "membership was not attacked"


# --- the knee -----------------------------------------------------------------------------------
def knee(question: Question, levels: Sequence[Level]) -> str:
    """Where a question begins to suffer, in words, or why no such ε can be named; see `KNEE_RULE`."""
    usable = [level for level in levels if level.interval]
    if len(usable) < 3:
        return (
            f"No knee can be named: {len(usable)} of {len(levels)} ε have a value with an interval, and it takes three."
        )
    order = usable if question == "leakage" else usable[::-1]  # from the reference outwards
    reference, others = order[0], order[1:]
    worse = [_worse(question, level, reference) for level in others]
    best = f"ε = {epsilon_text(reference.epsilon)} ({reference.words})"
    if not any(worse):
        better = sorted(level.epsilon for level in others if _worse(question, reference, level))
        also = f" At ε = {', '.join(map(epsilon_text, better))} it is even shown to be better." if better else ""
        return f"No knee: at no ε is {question} shown to be worse than at {best}.{also}"
    first = worse.index(True)
    if not all(worse[first:]):
        again = others[first + worse[first:].index(False)]
        return (
            f"No knee: {question} is worse than at {best} at ε = {epsilon_text(others[first].epsilon)}, "
            f"but not at ε = {epsilon_text(again.epsilon)}."
        )
    fallen = others[first]
    fallen_text = f"at ε = {epsilon_text(fallen.epsilon)} it is worse ({fallen.words})"
    if first == 0:
        return f"No knee within these ε: {fallen_text} than at {best}, the nearest measured."
    held = epsilon_text(others[first - 1].epsilon)
    side = "up to" if question == "leakage" else "down to"
    return f"Knee at ε = {held}: {side} there {question} is not shown to be worse than at {best}; {fallen_text}."


def _worse(question: Question, level: Level, reference: Level) -> bool:
    mine, other = level.interval, reference.interval
    if mine is None or other is None:
        raise AssertionError("levels without intervals are left out before")
    return mine[1] < other[0] if BETTER_IS_MORE[question] else mine[0] > other[1]


def as_rows(found: Sequence[Curve]) -> list[dict[str, Any]]:
    """Curves as a table of their own."""
    return [
        {
            "question": curve.question,
            "measure": MEASURES[curve.question],
            "family": curve.panel,
            "line": curve.line,
            "epsilon": level.epsilon,
            "value": level.value,
            "low": level.low,
            "high": level.high,
            "seeds": level.seeds,
            "interval over": level.over if level.interval else None,
            "remarks": level.reason or None,
        }
        for curve in found
        for level in curve.levels
    ]

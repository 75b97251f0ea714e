"""The judge's numbers, laid out for readers: a card per axis, a table per axis, and the figures beside it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cmrfed.evaluation.result import EvaluationReport, Metric
from cmrfed.report.plots import Chart, number

AXES = {
    "fidelity": "Fidelity: do the images look real?",
    "anatomy": "Anatomy: are the shapes plausible?",
    "utility": "Usefulness: does a segmenter learn from them?",
    "memorisation": "Memorisation: do they repeat training patients?",
}


@dataclass(frozen=True)
class Row:
    """One metric as text; ``unavailable`` is the reason when there is no value."""

    name: str
    value: str = ""
    unit: str = ""
    arrow: str = ""
    direction: str = ""
    interval: str = ""
    n: str = ""
    reference: str = ""
    detail: str = ""
    unavailable: str = ""


@dataclass(frozen=True)
class Axis:
    """One question, its metrics and its figures."""

    key: str
    title: str
    rows: tuple[Row, ...]
    charts: tuple[Chart, ...]


def duration(seconds: float) -> str:
    """Write seconds as a person would: 8 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _reading(metric: Metric) -> tuple[str, str]:
    if metric.higher_is_better is None:
        return "", ""
    return ("↑", "higher is better") if metric.higher_is_better else ("↓", "lower is better")


def _row(metric: Metric) -> Row:
    if metric.value is None:
        return Row(metric.name, unavailable=metric.unavailable or "no reason was recorded")
    arrow, direction = _reading(metric)
    known = metric.low is not None and metric.high is not None
    return Row(
        name=metric.name,
        value=number(metric.value),
        unit=metric.unit or "",
        arrow=arrow,
        direction=direction,
        interval=f"{number(metric.low)} to {number(metric.high)}" if known else "–",
        n=str(metric.n) if metric.n is not None else "–",
        reference=number(metric.reference) if metric.reference is not None else "–",
        detail=str(metric.detail or ""),
    )


def axes(report: EvaluationReport) -> list[Axis]:
    """Tables and figures per axis, in the order of ``AXES``; an axis that is not listed there comes last."""
    keys = dict.fromkeys([*AXES, *(m.axis for m in report.metrics)])
    grouped = {key: tuple(_row(m) for m in report.metrics if m.axis == key) for key in keys}
    return [Axis(key, AXES.get(key, key.capitalize()), rows, ()) for key, rows in grouped.items() if rows]


def cards(report):
    return [{"title": AXES.get(k, k), "tone": "", "tag": "measured", "text": v} for k, v in report.verdict.items()]

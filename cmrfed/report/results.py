"""The evaluation's numbers, laid out for readers: a card per axis, a table per axis, and the figures beside it."""

from dataclasses import dataclass

from cmrfed.evaluation.privacy.membership import roc
from cmrfed.evaluation.results.catalogue import TITLES, TONES, attack_words, group_words, unit_words, word
from cmrfed.evaluation.results.result import EvaluationReport, Metric, Series
from cmrfed.report.plots import Chart, distributions, number, rocs, strips, trade_off

STRIP_MOST = 60
"""Largest group that is drawn value by value."""


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
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _reading(metric: Metric) -> tuple[str, str]:
    if metric.higher_is_better is None:
        return "", ""
    return ("↑", "higher is better") if metric.higher_is_better else ("↓", "lower is better")


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{number(low)} to {number(high)}"


def _row(metric: Metric) -> Row:
    if metric.value is None:
        return Row(metric.name, unavailable=metric.unavailable or "no reason was recorded")
    arrow, direction = _reading(metric)
    return Row(
        name=metric.name,
        value=number(metric.value),
        unit=unit_words(metric.unit),
        arrow=arrow,
        direction=direction,
        interval=_interval(metric.low, metric.high),
        n=str(metric.n) if metric.n is not None else "–",
        reference=number(metric.reference) if metric.reference is not None else "–",
        detail=str(metric.detail or ""),
    )


def _chart(series: Series) -> Chart:
    """Few numbers as a strip plot that shows each; many as histograms."""
    groups = {group_words(series.key, group): values for group, values in series.groups.items()}
    if max(map(len, groups.values())) > STRIP_MOST:
        return distributions(series.name, groups, series.label)
    numbered = {label: {f"no. {i}": v for i, v in enumerate(values, 1)} for label, values in groups.items()}
    return strips(series.name, numbered, series.label)


def _roc_charts(report: EvaluationReport) -> tuple[Chart, ...]:
    """One figure for all attacks of one space: pixels, features, the generator."""
    spaces: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for each in (series for series in report.series if series.kind == "scores"):
        fpr, tpr = roc(each.groups["members"], each.groups["others"])
        curves = spaces.setdefault(str(each.space), {})
        curves[word("attack", str(each.attack))] = fpr.tolist(), tpr.tolist()
    claim = next((series.groups for series in report.series if series.kind == "ceiling"), None)
    ceiling = (claim["fpr"], claim["tpr"]) if claim else None
    return tuple(
        rocs(f"Membership inference: {word('space', space)}", attacks, ceiling) for space, attacks in spaces.items()
    )


def trade_off_chart(report: EvaluationReport) -> Chart | None:
    """Where the set stands between utility and leakage; None where either was not measured."""
    ratio = report.find("utility.dice-ratio.synthetic.holdout")
    found = [(_folded(metric), metric) for metric in report.select("leakage.auc")]
    known = [(folded, attack_words(metric.model_dump())) for folded, metric in found if folded]
    whole = _interval_of(ratio) if ratio else None
    return trade_off(whole, *max(known)) if whole and known else None


def _interval_of(metric: Metric) -> tuple[float, float, float] | None:
    if metric.value is None or metric.low is None or metric.high is None:
        return None
    return metric.value, metric.low, metric.high


def _folded(metric: Metric) -> tuple[float, float, float] | None:
    """An AUC below 0.5 tells as much as one above."""
    found = _interval_of(metric)
    if found is None or found[0] >= 0.5:
        return found
    value, low, high = found
    return 1 - value, 1 - high, 1 - low


def axes(report: EvaluationReport) -> list[Axis]:
    """Tables and figures per axis, in the order of `TITLES`; an axis of which nothing is known is left out."""
    drawn = [series for series in report.series if series.kind == "values" and any(series.groups.values())]
    out = []
    for key, title in TITLES.items():
        rows = tuple(_row(m) for m in report.metrics if m.axis == key)
        charts = tuple(_chart(series) for series in drawn if series.axis == key)
        charts += _roc_charts(report) if key == "leakage" else ()
        out += [Axis(key, title, rows, charts)] if rows or charts else []
    return out


@dataclass(frozen=True)
class Card:
    """The verdict on one axis: its word (``tag``) and tone, the numbers behind it, and the rule that gave it."""

    title: str
    tag: str
    tone: str
    text: str
    rule: str


def cards(report: EvaluationReport) -> list[Card]:
    """One card per axis that has a verdict."""
    found = [(title, report.verdict(axis)) for axis, title in TITLES.items()]
    return [Card(title, v.word, TONES.get(v.level, ""), v.text, v.rule) for title, v in found if v]

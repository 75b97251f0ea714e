"""The judge's numbers, laid out for readers: a card per axis, a table per axis, and the figures beside it."""

from dataclasses import dataclass

from cmrfed.evaluation.membership import CEILING, SCORES, roc
from cmrfed.evaluation.result import EvaluationReport, Metric
from cmrfed.report.plots import Chart, distributions, number, rocs, strips, trade_off

AXES = {
    "fidelity": "Fidelity: do the images look real?",
    "anatomy": "Anatomy: are the shapes plausible?",
    "utility": "Usefulness: does a segmenter learn from them?",
    "memorisation": "Memorisation: do they repeat training patients?",
    "leakage": "Leakage: can training patients be told from others?",
}
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
        unit=metric.unit or "",
        arrow=arrow,
        direction=direction,
        interval=_interval(metric.low, metric.high),
        n=str(metric.n) if metric.n is not None else "–",
        reference=number(metric.reference) if metric.reference is not None else "–",
        detail=str(metric.detail or ""),
    )


def _axis_of(series: str) -> str:
    """The axis beside whose table a series is drawn."""
    name = series.lower()
    if series.startswith((SCORES, CEILING)):
        return "drawn as curves"
    if name.startswith(("dice", "ejection fraction error")):
        return "utility"
    return "memorisation" if "distance" in name or "nearest" in name else "anatomy"


def _chart(name: str, groups: dict[str, tuple[float, ...]]) -> Chart:
    """Few numbers as a strip plot that shows each; many as histograms."""
    if max(map(len, groups.values())) > STRIP_MOST:
        return distributions(name, groups, name)
    numbered = {label: {f"no. {i}": v for i, v in enumerate(values, 1)} for label, values in groups.items()}
    return strips(name, numbered, name.partition(" per patient")[0] + (" (points)" if "error" in name else ""))


def _roc_charts(series: dict[str, dict[str, tuple[float, ...]]]) -> tuple[Chart, ...]:
    """One figure for all attacks of one kind: on pixels, on features, on the generator."""
    kinds: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, scores in series.items():
        if name.startswith(SCORES):
            attack, _, kind = name.removeprefix(SCORES).rstrip(")").partition(" (")
            fpr, tpr = roc(scores["members"], scores["others"])
            kinds.setdefault(kind, {})[attack] = fpr.tolist(), tpr.tolist()
    claim = series.get(CEILING)
    ceiling = (claim["FPR"], claim["TPR"]) if claim else None
    return tuple(rocs(f"Membership attacks: {kind}", attacks, ceiling) for kind, attacks in kinds.items())


def trade_off_chart(report: EvaluationReport) -> Chart | None:
    """Where the set stands between usefulness and leakage; None where either was not measured."""
    ratio = report.find("Dice ratio synthetic / real, hold-out")
    attacks = [m for m in report.metrics if m.axis == "leakage" and m.name.startswith("AUC, ")]
    told = [(folded, m.name.removeprefix("AUC, ")) for m in attacks if (folded := _folded(m))]
    whole = _interval_of(ratio) if ratio else None
    return trade_off(whole, *max(told)) if whole and told else None


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
    """Tables and figures per axis, in the order of ``AXES``; an axis of which nothing is known is left out."""
    drawn = {name: groups for name, groups in report.series.items() if any(groups.values())}
    out = []
    for key, title in AXES.items():
        rows = tuple(_row(m) for m in report.metrics if m.axis == key)
        charts = tuple(_chart(name, groups) for name, groups in drawn.items() if _axis_of(name) == key)
        charts += _roc_charts(report.series) if key == "leakage" else ()
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


TONES = {
    "Good": "good",
    "Fair": "warn",
    "Poor": "bad",
    "Some sign of memorisation": "warn",
    "Strong sign of copying": "bad",
    "Some sign of leakage": "warn",
    "Members can be told from others": "bad",
    "The privacy claim does not hold": "bad",
}
"""Word of a verdict → CSS class. Finding no copies is no guarantee, so it is not coloured as one."""


def _card(title: str, verdict: str) -> Card:
    tag, _, rest = verdict.partition(": ")
    text, _, rule = rest.partition(" Rule: ")
    return Card(title, tag, TONES.get(tag, ""), text[:1].upper() + text[1:], rule[:1].upper() + rule[1:])


def cards(report: EvaluationReport) -> list[Card]:
    """One card per axis that has a verdict, in the judge's words."""
    return [_card(title, report.verdict[key]) for key, title in AXES.items() if key in report.verdict]

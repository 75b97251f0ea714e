"""Charts as geometry: numbers in, coordinates, ticks and tooltips out; `report.html` draws them as inline SVG.

Each chart carries the table of its own numbers, so that what is drawn can also be read, copied and heard.
Coordinates are in SVG user units, origin top left.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 46
COLOURS = 6
_LOG_FROM = 12.0
"""Values whose largest is this many times their smallest are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Tick:
    """A place on an axis and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """One number: its place, its series and the words that a reader sees when pointing at it."""

    x: float
    y: float
    series: int
    tip: str


@dataclass(frozen=True)
class Path:
    """A line or an outline: ``d`` is SVG path data, ``kind`` its CSS class."""

    d: str
    series: int
    kind: str


@dataclass(frozen=True)
class Chart:
    """All that the template needs to draw one figure."""

    title: str
    alt: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    legend: tuple[str, ...]
    paths: tuple[Path, ...]
    dots: tuple[Dot, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def number(value: float) -> str:
    """Write a number with three significant digits, as short as that allows."""
    if value == 0 or 0.001 <= abs(value) < 1e5:
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.2e}"


Scale = Callable[[float], float]


def _linear(low: float, high: float, start: float, end: float) -> Scale:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _axis(values: Sequence[float], start: float, end: float, *, log: bool) -> tuple[Scale, tuple[Tick, ...]]:
    """Choose round ticks that enclose the values, and the scale that maps values to places."""
    low, high = min(values), max(values)
    if log:
        marks = [m for m in LogLocator(subs=(1.0, 2.0, 5.0)).tick_values(low, high) if low <= m <= high]
        inner = _linear(math.log10(low), math.log10(high), start, end)
        return (lambda v: inner(math.log10(v))), tuple(Tick(inner(math.log10(m)), number(m)) for m in marks)
    marks = [float(m) for m in MaxNLocator(nbins=5).tick_values(low, high)]
    scale = _linear(marks[0], marks[-1], start, end)
    return scale, tuple(Tick(scale(m), number(m)) for m in marks)


def _rounds(low: float, high: float) -> tuple[Scale, tuple[Tick, ...]]:
    """A horizontal axis of whole numbers, from the first to the last."""
    scale = _linear(low, high, LEFT, WIDTH - RIGHT) if high > low else (lambda _: (LEFT + WIDTH - RIGHT) / 2)
    marks = [m for m in MaxNLocator(nbins=8, integer=True).tick_values(low, high) if low <= m <= high]
    return scale, tuple(Tick(scale(m), f"{m:.0f}") for m in marks)


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def curves(title: str, series: Mapping[str, Mapping[int, float]], y_label: str) -> Chart:
    """Draw one line per series over rounds; a missing round is a gap in the numbers, not a zero.

    Args:
        title: Heading of the figure.
        series: Name → round → value.
        y_label: What the values are.
    """
    values = [v for line in series.values() for v in line.values()]
    rounds = sorted({r for line in series.values() for r in line})
    log = min(values) > 0 and max(values) / min(values) > _LOG_FROM
    x_of, x_ticks = _rounds(rounds[0], rounds[-1])
    y_of, y_ticks = _axis(values, HEIGHT - BOTTOM, TOP, log=log)
    paths = [_polyline([(x_of(r), y_of(line[r])) for r in sorted(line)]) for line in series.values()]
    dots = [
        Dot(x_of(r), y_of(value), index % COLOURS, f"{name}, round {r}: {number(value)}")
        for index, (name, line) in enumerate(series.items())
        for r, value in line.items()
    ]
    return Chart(
        title=title,
        alt=f"Line chart of {y_label} over {len(rounds)} rounds for {', '.join(series)}; the numbers follow below.",
        x_label="round",
        y_label=y_label + (" (logarithmic axis)" if log else ""),
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        legend=tuple(series),
        paths=tuple(Path(d, index % COLOURS, "line") for index, d in enumerate(paths)),
        dots=tuple(dots),
        columns=("round", *series),
        rows=tuple((str(r), *(number(s[r]) if r in s else "–" for s in series.values())) for r in rounds),
    )


def rocs(
    title: str,
    attacks: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    ceiling: tuple[Sequence[float], Sequence[float]] | None,
) -> Chart:
    """Draw the receiver operating characteristic of each attack, chance, and what a claim allows.

    Args:
        title: Heading of the figure.
        attacks: Name → false- and true-positive rate at every threshold, each from (0, 0) to (1, 1).
        ceiling: The same of the claim: no attack lies above it, beyond chance, while the claim holds.
    """
    x_of, x_ticks = _axis([0.0, 1.0], LEFT, WIDTH - RIGHT, log=False)
    y_of, y_ticks = _axis([0.0, 1.0], HEIGHT - BOTTOM, TOP, log=False)
    lines = [_polyline([(x_of(x), y_of(y)) for x, y in zip(*rates, strict=True)]) for rates in attacks.values()]
    paths = [Path(_polyline([(x_of(0), y_of(0)), (x_of(1), y_of(1))]), 0, "chance")]
    paths += [Path(d, index % COLOURS, "line") for index, d in enumerate(lines)]
    if ceiling:
        paths.append(Path(_polyline([(x_of(x), y_of(y)) for x, y in zip(*ceiling, strict=True)]), 0, "ceiling"))
    dots = [
        Dot(x_of(x), y_of(y), index % COLOURS, f"{name}: {y:.0%} of members at {x:.0%} false alarms")
        for index, (name, rates) in enumerate(attacks.items())
        for x, y in zip(*rates, strict=True)
    ]
    claim = "the upper grey line is the most that the claimed ε and δ allow" if ceiling else "no ε is claimed"
    return Chart(
        title=title,
        alt=f"ROC curves of {', '.join(attacks)}; {claim}; the numbers follow below.",
        x_label="others taken for members (false positives)",
        y_label="members found (true positives)",
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        legend=tuple(attacks),
        paths=tuple(paths),
        dots=tuple(dots),
        columns=("attack", "false positives", "true positives"),
        rows=tuple((n, f"{x:.3f}", f"{y:.3f}") for n, rates in attacks.items() for x, y in zip(*rates, strict=True)),
        caption=f"The diagonal is chance; {claim}.",
    )


Interval = tuple[float, float, float]
"""Value, lower and upper end."""


def trade_off(utility: Interval, leakage: Interval, attack: str) -> Chart:
    """Draw where a data set stands between utility and leakage, with both intervals.

    Args:
        utility: Dice of a segmenter trained on synthetic over that of one trained on real slices.
        leakage: AUC of the attack that tells most, at least 0.5 in the middle.
        attack: Its name.
    """
    (y, *ys), (x, *xs) = utility, leakage
    x_of, x_ticks = _axis([min(0.4, *xs), 1.0], LEFT, WIDTH - RIGHT, log=False)
    y_of, y_ticks = _axis([min(0.5, *ys), max(1.05, *ys)], HEIGHT - BOTTOM, TOP, log=False)
    marks = (
        Path(_polyline([(x_of(0.5), TOP), (x_of(0.5), HEIGHT - BOTTOM)]), 0, "chance"),
        Path(_polyline([(LEFT, y_of(1)), (WIDTH - RIGHT, y_of(1))]), 0, "chance"),
    )
    bars = ([(x_of(v), y_of(y)) for v in xs], [(x_of(x), y_of(v)) for v in ys])
    tip = f"this set: {number(y)} of the Dice of real slices, AUC {number(x)} ({attack})"
    return Chart(
        title="Utility against leakage",
        alt=f"{tip}. Best is the upper left corner; the numbers follow below.",
        x_label=f"AUC of the attack that tells most: {attack}",
        y_label="Dice, synthetic over real",
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        legend=(),
        paths=(*marks, *(Path(_polyline(bar), 0, "mean") for bar in bars)),
        dots=(Dot(x_of(x), y_of(y), 0, tip),),
        columns=("measure", "value", "low", "high"),
        rows=(
            ("Dice, synthetic over real", *map(number, utility)),
            (f"AUC, {attack}", *map(number, leakage)),
        ),
        caption="Bars are intervals. Dotted lines: as much utility as real slices, and members no better found than by "
        "chance. The attack was chosen for telling most of all that were tried, so chance alone lifts it above 0.5.",
    )


def _sizes(groups: Mapping[str, Collection[object]]) -> str:
    return ", ".join(f"{name} {len(values)}" for name, values in groups.items())


def _spread(places: Sequence[float], half_width: float) -> list[float]:
    """Move points of about the same height apart, alternating left and right, so that each can be seen."""
    taken: dict[int, int] = {}
    shifts = []
    for place in places:
        level = round(place / 5)
        count = taken.get(level, 0)
        taken[level] = count + 1
        side = 1 if count % 2 else -1
        shifts.append(max(-half_width, min(half_width, side * ((count + 1) // 2) * 6.0)))
    return shifts


def strips(title: str, groups: Mapping[str, Mapping[str, float]], y_label: str) -> Chart:
    """Draw every value of every group as a dot, with a bar at each group's mean.

    Args:
        title: Heading of the figure.
        groups: Group → item (a patient, say) → value. A group without values keeps its place on the axis.
        y_label: What the values are.
    """
    y_of, y_ticks = _axis([v for g in groups.values() for v in g.values()], HEIGHT - BOTTOM, TOP, log=False)
    step = (WIDTH - RIGHT - LEFT) / len(groups)
    paths, dots, ticks = [], [], []
    for index, (name, items) in enumerate(groups.items()):
        centre = LEFT + (index + 0.5) * step
        places = [y_of(v) for v in items.values()]
        shifts = _spread(places, step * 0.36)
        dots += [
            Dot(centre + shift, place, index % COLOURS, f"{name}, {item}: {number(value)}")
            for shift, place, (item, value) in zip(shifts, places, items.items(), strict=True)
        ]
        ticks.append(Tick(centre, name))
        if items:
            mean, half = y_of(float(np.mean(list(items.values())))), step * 0.4
            paths.append(Path(_polyline([(centre - half, mean), (centre + half, mean)]), index % COLOURS, "mean"))
    names = dict.fromkeys(item for items in groups.values() for item in items)
    rows = tuple((n, *(number(g[n]) if n in g else "–" for g in groups.values())) for n in names)
    return Chart(
        title=title,
        alt=f"Strip plot of {y_label}, one dot per item, for {', '.join(groups)}; the numbers follow below.",
        x_label="",
        y_label=y_label,
        x_ticks=tuple(ticks),
        y_ticks=y_ticks,
        legend=(),
        paths=tuple(paths),
        dots=tuple(dots),
        columns=("item", *groups),
        rows=rows,
        caption=f"A bar is the mean of its group. Number of values: {_sizes(groups)}.",
    )


def _stairs(heights: Sequence[float], edges: Sequence[float]) -> str:
    """Path of a histogram's outline; heights and edges are places on the page."""
    floor = float(HEIGHT - BOTTOM)
    corners = [(edges[0], floor)]
    for height, (left, right) in zip(heights, pairwise(edges), strict=True):
        corners += [(left, height), (right, height)]
    return _polyline([*corners, (edges[-1], floor)])


def distributions(title: str, groups: Mapping[str, Sequence[float]], x_label: str, bins: int = 16) -> Chart:
    """Draw one histogram outline per group over shared bins; heights are the share of the group's values.

    Args:
        title: Heading of the figure.
        groups: Group → values. A group without values is named in the caption, and the others keep their colours.
        x_label: What the values are.
        bins: How many bins all groups share.
    """
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(v, float) for v in groups.values()]), bins=bins)
    shares = {name: (np.histogram(v, bins=edges)[0] / max(len(v), 1)).tolist() for name, v in groups.items()}
    x_of, x_ticks = _axis([float(edges[0]), float(edges[-1])], LEFT, WIDTH - RIGHT, log=False)
    y_of, y_ticks = _axis([0.0, max(map(max, shares.values()))], HEIGHT - BOTTOM, TOP, log=False)
    places = [x_of(float(e)) for e in edges]
    spans = [f"{number(a)} to {number(b)}" for a, b in pairwise(edges)]
    dots = [
        Dot((left + right) / 2, y_of(share), index % COLOURS, f"{name}, {span}: {share:.0%}")
        for index, (name, heights) in enumerate(shares.items())
        for share, span, (left, right) in zip(heights, spans, pairwise(places), strict=True)
        if share > 0
    ]
    outlines = [
        _stairs([y_of(share) for share in heights], places) if any(heights) else "" for heights in shares.values()
    ]
    return Chart(
        title=title,
        alt=f"Histogram outlines of {x_label} for {', '.join(groups)}; the numbers follow below.",
        x_label=x_label,
        y_label="share of values",
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        legend=tuple(groups),
        paths=tuple(Path(d, index % COLOURS, "outline") for index, d in enumerate(outlines) if d),
        dots=tuple(dots),
        columns=(x_label, *groups),
        rows=tuple((span, *(f"{s[i]:.1%}" for s in shares.values())) for i, span in enumerate(spans)),
        caption=f"Number of values: {_sizes(groups)}.",
    )

"""Figures of a sweep, each as SVG and PDF: questions against ε in small multiples, and drawn slices down the ε axis."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from cmrfed.core.errors import CmrfedError
from cmrfed.data.pictures import outlined
from cmrfed.data.synthetic import SyntheticDataset
from cmrfed.report.figure import COLOURS, STYLE, write_figure
from cmrfed.sweep.paid import NOT_FOR_RELEASE
from cmrfed.sweep.points import Point
from cmrfed.sweep.summary import ALL, MEASURES, Curve, Question, epsilon_text

MARKS = ("o", "s", "^", "D", "v", "P")
COLUMNS = 8
"""Drawn slices of each point."""
_FAR = 50


@dataclass(frozen=True)
class Drawn:
    """A figure on the disk; ``source`` is its SVG as a data URI."""

    name: str
    title: str
    alt: str
    source: str


def against_epsilon(folder: Path, question: Question, curves: Sequence[Curve]) -> Drawn | None:
    """One panel for each family, one line for each choice of the other axes; None where nothing has a value.

    ε stands at equal distances, smallest first, since ∞ has no place on any scale. Intervals much wider than values
    differ (those of few seeds) are cut at the border, with an arrow. Where a value is `_FAR` times the median, the
    vertical axis is logarithmic beyond that.
    """
    mine = [curve for curve in curves if curve.question == question]
    if not any(curve.measured for curve in mine):
        return None
    panels = list(dict.fromkeys(curve.panel for curve in mine))
    lines = list(dict.fromkeys(curve.line for curve in mine))
    places = {eps: i for i, eps in enumerate(sorted({level.epsilon for curve in mine for level in curve.levels}))}
    bounds = _bounds(mine)
    with rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 2.6 * len(panels), 3.0), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        usual = _usual(mine)
        if bounds[1] > _FAR * usual:
            axes[0].set_yscale("symlog", linthresh=usual)
        axes[0].set_ylim(*bounds)
        for panel, ax in zip(panels, axes, strict=True):
            for curve in (curve for curve in mine if curve.panel == panel):
                _line(ax, curve, lines.index(curve.line), len(lines), places, bounds)
            real = [level.reference for curve in mine for level in curve.measured if level.reference is not None]
            if real:
                ax.axhline(sum(real) / len(real), color="#52606d", linewidth=0.9, linestyle=":")
            ax.set_title("" if panel == ALL else panel, fontsize=10)
            ax.set_xticks(list(places.values()), [epsilon_text(eps) for eps in places])
            ax.set_xlim(-0.5, len(places) - 0.5)
            ax.set_xlabel("ε")
            ax.grid(axis="y", color="#e2ded6", linewidth=0.7)
        axes[0].set_ylabel("\n".join(_wrapped(MEASURES[question])))
        if any(lines):
            shown = {text: line for ax in axes for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
            figure.legend(
                shown.values(), shown.keys(), fontsize=8, loc="outside upper center", ncols=min(len(shown), 3)
            )
        figure.supxlabel(NOT_FOR_RELEASE.lower(), fontsize=7, color="#96222a", ha="right", x=0.99)
        alt = f"{MEASURES[question]} against ε for {', '.join(panels)}, with 95 % intervals; the numbers follow below."
        return _saved(folder, f"{question}-against-epsilon", f"{question.capitalize()} against ε", alt, figure)


def _bounds(curves: Sequence[Curve]) -> tuple[float, float]:
    """Ends of the vertical axis: all values and references, and intervals as far as there is room beside these."""
    levels = [level for curve in curves for level in curve.measured]
    values = [v for level in levels for v in (level.value, level.reference) if v is not None]
    ends = values + [end for level in levels if level.interval for end in level.interval]
    room = 0.75 * (max(values) - min(values)) or 1.0
    if max(values) > _FAR * _usual(curves):
        return max(min(ends), min(values) - _usual(curves)), 2 * max(values)
    low, high = max(min(ends), min(values) - room), min(max(ends), max(values) + room)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _usual(curves: Sequence[Curve]) -> float:
    """Median size of the values, more than 0."""
    return float(np.median([abs(level.value or 0) for curve in curves for level in curve.measured])) or 1.0


def _line(
    ax: Any, curve: Curve, index: int, count: int, places: Mapping[float, int], bounds: tuple[float, float]
) -> None:
    """Values joined in order of ε, each with its interval where it has one; lines stand a little apart."""
    shift = (index - (count - 1) / 2) * min(0.12, 0.5 / max(count, 1))
    levels = curve.measured
    x = [places[level.epsilon] + shift for level in levels]
    style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKS[index % len(MARKS)]}
    ax.plot(x, [level.value for level in levels], label=curve.line or None, linewidth=1.4, markersize=4, **style)
    for place, level in zip(x, levels, strict=True):
        if level.low is not None and level.high is not None:
            ax.vlines(place, level.low, level.high, color=style["color"], linewidth=1.2)
            cut = [(bounds[0], "v")] * (level.low < bounds[0]) + [(bounds[1], "^")] * (level.high > bounds[1])
            for end, arrow in cut:
                ax.plot(place, end, arrow, color=style["color"], markersize=5, clip_on=False)


def _wrapped(text: str, width: int = 30) -> list[str]:
    out = [""]
    for word in text.split():
        if out[-1] and len(out[-1]) + len(word) >= width:
            out.append("")
        out[-1] = f"{out[-1]} {word}".strip()
    return out


def sample_grid(folder: Path, title: str, points: Sequence[tuple[Point, Path]]) -> Drawn | None:
    """Slices of the synthetic sets of one family, a row for each point, smallest ε first; None where none was drawn.

    Every row has slices of as many patients, from the middle of the first ones: none is chosen by hand.

    Args:
        folder: Where the figure goes.
        title: Of what.
        points: Each with its folder.
    """
    rows: list[tuple[str, list[np.ndarray]]] = []
    for point, place in sorted(points, key=lambda each: each[0].epsilon):
        try:
            found = _slices(place / "synthetic")
        except CmrfedError:  # a failed point has no set; the table says so
            continue
        seed = f"\n{_others(point)}" if _others(point) else ""
        rows.append((f"ε = {epsilon_text(point.epsilon)}{seed}", found))
    if not rows:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(1.1 + COLUMNS * 0.9, 0.3 + 0.9 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), COLUMNS, squeeze=False)
        for (label, slices), line in zip(rows, axes, strict=True):
            for number, ax in enumerate(line):
                ax.set_axis_off()
                if number < len(slices):
                    ax.imshow(slices[number], interpolation="nearest")
            line[0].text(-0.08, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
        figure.supxlabel(NOT_FOR_RELEASE.lower(), fontsize=7, color="#96222a", ha="right", x=0.99)
        name = "".join(c if c.isalnum() else "-" for c in f"drawn-{title}".lower())
        alt = f"Synthetic slices of {title}, one row for each point: {'; '.join(label for label, _ in rows)}."
        return _saved(folder, name, f"Drawn at random: {title}", alt.replace("\n", ", "), figure)


def _others(point: Point) -> str:
    return ", ".join(f"{a} {v}" for a, v in point.labels.items() if a not in {"family", "epsilon", "privacy.epsilon"})


def _slices(synthetic: Path) -> list[np.ndarray]:
    """The middle slice of the first cases of a set, outlined: uint8 (H, W, 3) each."""
    out = []
    for case in SyntheticDataset.open_for_release(synthetic).cases():
        middle = len(case.image) // 2
        out.append(outlined(case.image[middle], case.mask[middle]))
        if len(out) == COLUMNS:
            break
    return out


def _saved(folder: Path, name: str, title: str, alt: str, figure: Figure) -> Drawn:
    """Write both files; the page embeds the SVG."""
    write_figure(folder, name, figure)
    data = base64.b64encode((folder / f"{name}.svg").read_bytes()).decode("ascii")
    return Drawn(name, title, alt, f"data:image/svg+xml;base64,{data}")

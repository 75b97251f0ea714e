"""Shapes of real and synthetic masks, patient by patient, as the evaluator measures them (`evaluation.anatomy`).

Area, eccentricity and solidity are those of skimage.measure.regionprops: pixels; distance of the foci over the major
axis of the ellipse with the same second moments (0 for a disc); area over that of the convex hull. Roundness is
4 π area / perimeter², with Crofton's perimeter, and not 4 area / (π major axis²): the figure shows the numbers of
evaluation.json. Eccentricity, roundness and solidity of the myocardium are those of its filled outer outline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import ks_2samp, wasserstein_distance

from cmrfed.core.errors import DataError
from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import STRUCTURES, Label
from cmrfed.evaluation.anatomy.shapes import SHAPES, patient_shapes
from cmrfed.evaluation.slices import slices_of_cohort, slices_of_synthetic
from cmrfed.figures.study import Run, footer
from cmrfed.report.figure import COLOURS, RULE, SOFT, STYLE, write_figure

Shapes = dict[tuple[Label, str], np.ndarray]
NAMES = {Label.LV: "LV", Label.MYO: "Myocardium", Label.RV: "RV"}
UNITS = {"area": "area (pixels)"}


@dataclass(frozen=True)
class Group:
    """Shapes of one set of masks: structure and shape number => mean of each patient (P,)."""

    label: str
    shapes: Shapes


def distance(values: np.ndarray, real: np.ndarray) -> float:
    """Wasserstein-1 distance in standard deviations of the real patients; NaN where they do not vary."""
    spread = float(real.std())
    return float(wasserstein_distance(values / spread, real / spread)) if spread else float("nan")


def ks(values: np.ndarray, real: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance: the largest gap between the two cumulative distributions, 0 to 1."""
    return float(ks_2samp(values, real).statistic)


def minimum_area(runs: Sequence[Run]) -> int:
    """Smallest structure that the evaluation of the runs measured, in pixels.

    Raises:
        DataError: They were evaluated by different rules.
    """
    found = {run.label: run.recipe.evaluation.anatomy.minimum_area_px for run in runs}
    if len(set(found.values())) > 1:
        raise DataError(
            "the runs were evaluated by different rules",
            got=f"evaluation.anatomy.minimum_area_px {found}",
            expected="one",
        )
    return int(next(iter(found.values())))


def groups(runs: Sequence[Run], real: Cohort) -> list[Group]:
    """The hold-out first, then each run; runs that drew the same masks, as one mask stage does, are one."""
    least = minimum_area(runs)
    masked = real.select([record.patient_id for record in real.patients if record.has_mask])
    out = [Group("Real", patient_shapes(slices_of_cohort(masked), least))]
    same: dict[bytes, tuple[list[str], Shapes]] = {}
    for run in runs:
        slices = slices_of_synthetic(run.synthetic, real.size_px)
        labels, _ = same.setdefault(slices.masks.tobytes(), ([], {}))
        if not labels:
            same[slices.masks.tobytes()] = (labels, patient_shapes(slices, least))
        labels.append(run.label)
    return out + [Group(", ".join(labels), shapes) for labels, shapes in same.values()]


def shapes(folder: Path, runs: Sequence[Run], real: Cohort) -> str:
    """A panel for each structure and shape number, a violin for each set, with n and the distance to the hold-out."""
    found = groups(runs, real)
    structures = [s for s in STRUCTURES if (s, "area") in found[0].shapes]
    with rc_context(STYLE):
        width = max(1.75, 0.45 + 0.55 * len(found))
        figure = Figure(figsize=(0.2 + width * len(SHAPES), 0.5 + 1.9 * len(structures)), layout="constrained")
        axes = figure.subplots(len(structures), len(SHAPES), squeeze=False)
        for structure, line in zip(structures, axes, strict=True):
            for shape, ax in zip(SHAPES, line, strict=True):
                _panel(ax, [(g.label, g.shapes.get((structure, shape), np.zeros(0))) for g in found])
                ax.set_title(f"{NAMES[structure]}: {UNITS.get(shape, shape)}", fontsize=8.5)
        shared = "; ".join(g.label for g in found[1:] if "," in g.label)
        note = f" · {shared} drew the same masks" if shared else ""
        about = (
            "mean of each patient; distance to real hold-out patients: W₁ in their standard deviations, KS from 0 to 1"
        )
        figure.supxlabel(f"{about}{note}\n{footer(runs)}", fontsize=6.5, color=SOFT, ha="left", x=0.01)
        write_figure(folder, "shapes", figure)
    return "shapes"


def _panel(ax: Any, sets: Sequence[tuple[str, np.ndarray]]) -> None:
    real, ticks = sets[0][1], []
    for place, (label, values) in enumerate(sets):
        name = label.replace(", ", "\n") if len(label) > 14 else label
        both = place and len(values) and len(real)
        apart = f"\nW₁ {distance(values, real):.2f}\nKS {ks(values, real):.2f}" if both else ""
        ticks.append(f"{name}\nn = {len(values)}{apart}")
        if not len(values):
            continue
        colour = SOFT if place == 0 else COLOURS[(place - 1) % len(COLOURS)]
        body = ax.violinplot(values, [place], widths=0.8, showextrema=False)["bodies"][0]
        body.set(facecolor=colour, alpha=0.35, edgecolor=colour, linewidth=0.8)
        low, middle, high = np.percentile(values, [25, 50, 75])
        ax.vlines(place, low, high, color=colour, linewidth=3)
        ax.plot(place, middle, "o", color="white", markeredgecolor=colour, markersize=4)
    ax.set_xticks(range(len(sets)), ticks, fontsize=7)
    ax.set_xlim(-0.6, len(sets) - 0.4)
    ax.tick_params(axis="y", labelsize=7)
    ax.grid(axis="y", color=RULE, linewidth=0.7)
    ax.set_axisbelow(True)

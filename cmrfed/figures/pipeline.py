"""The pipeline of a study, drawn from what its runs have."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from cmrfed.figures.study import Run, family_of, footer
from cmrfed.report.figure import ALARM, COLOURS, INK, SOFT, STYLE, write_figure
from cmrfed.report.methods import STRATEGIES

MOST_SITES = 4
"""Sites that are drawn one by one."""
ACCENT = "#0b6470"
QUESTIONS = {
    "fidelity": "fidelity",
    "anatomy": "anatomy",
    "utility": "utility",
    "memorisation": "memorisation",
    "leakage": "leakage",
}


@dataclass(frozen=True)
class Facts:
    """What a drawing says; runs that agree in all of it share one."""

    sites: tuple[str, ...]
    """A line for each site."""
    rounds: str
    strategy: str
    privacy: str
    private: bool
    synthetic: int
    tested: str
    questions: tuple[str, ...]


def facts_of(run: Run) -> Facts:
    """Read the facts; of a private run, the number of patients of a site is left out."""
    recipe, privacy = run.recipe, run.synthetic.manifest.privacy
    sites = []
    for site in run.record.sites:
        count = None if privacy.differentially_private else site.patients
        sites.append(site.name + (f" · {count} patients" if count is not None else ""))
    rounds = f"{recipe.mask.training.rounds} + {recipe.image.training.rounds}"
    held, others = run.evaluation.sizes.get("hold-out", 0), ("training", "train", "synthetic", "hold-out", "holdout")
    tested = [f"{held} hold-out patients"]
    tested += [f"and {count} of {name}" for name, count in run.evaluation.sizes.items() if name not in others]
    asked = {metric.axis for metric in run.evaluation.metrics}
    return Facts(
        sites=tuple(sites),
        rounds=f"{rounds} rounds (masks + images)",
        strategy=_strategy(recipe.federation.strategy.name),
        privacy=_privacy(run),
        private=privacy.differentially_private,
        synthetic=run.synthetic.manifest.patients,
        tested="\n".join(tested),
        questions=tuple(word for axis, word in QUESTIONS.items() if axis in asked),
    )


def _strategy(name: str) -> str:
    """How it is called in the report, its abbreviation on a line of its own."""
    return STRATEGIES[name][0].replace(" (", "\n(") if name in STRATEGIES else name


def _privacy(run: Run) -> str:
    """What the manifest of the synthetic set promises, and nothing else."""
    claim = run.synthetic.manifest.privacy
    if not claim.differentially_private:
        return "no differential privacy"
    ends = [
        f"ε = {claim.epsilon:.3g}" if claim.epsilon is not None else "",
        f"δ = {claim.delta:.1e}" if claim.delta else "",
    ]
    return " ".join([f"differentially private ({claim.unit}):", ", ".join(end for end in ends if end)]).rstrip(": ")


def pipelines(folder: Path, runs: Sequence[Run]) -> list[str]:
    """One drawing for the runs that differ in the family alone; a further one for each group that differs otherwise."""
    same: dict[Facts, list[Run]] = {}
    for run in runs:
        same.setdefault(facts_of(run), []).append(run)
    names = []
    for number, (facts, mine) in enumerate(same.items(), 1):
        names.append("pipeline" if number == 1 else f"pipeline-{number}")
        with rc_context(STYLE):
            write_figure(folder, names[-1], _draw(facts, mine))
    return names


def _draw(facts: Facts, runs: Sequence[Run]) -> Figure:
    """Left to right: sites, server, generators, synthesis, evaluation; units are tenths of an inch."""
    figure = Figure(figsize=(7.2, 3.1))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 72), ylim=(0, 31))
    ax.set_axis_off()
    for y in _sites(ax, facts):
        _arrow(ax, (25.2, y), (30.2, 16.5 + 0.35 * (y - 16.5)), both=True)
    ax.text(27.8, 28.2, "weights,\nno scans", ha="center", va="center", fontsize=7, color=SOFT)
    _box(
        ax,
        (30.4, 9.5, 11.6, 14),
        "Server",
        f"aggregation:\n{facts.strategy}\n\n{facts.rounds.replace(' (', chr(10) + '(')}",
    )
    _arrow(ax, (42.2, 16.5), (45.2, 16.5))
    _box(
        ax,
        (45.4, 9.5, 11.2, 14),
        "Synthesis",
        f"masks, then\nimages from masks\n\n{facts.synthetic} synthetic\npatients",
    )
    _arrow(ax, (56.8, 16.5), (59.8, 16.5))
    _box(ax, (60, 9.5, 11, 14), "Evaluation", "\n".join(facts.questions))
    ax.text(65.5, 8.4, f"on {facts.tested}", ha="center", va="top", fontsize=6.5, color=SOFT)
    _stages(ax, runs)
    ax.text(36.2, 25.6, facts.privacy, ha="center", fontsize=7.5, color=ACCENT if facts.private else ALARM)
    ax.text(0.8, 0.6, footer(runs), fontsize=6, color=SOFT)
    return figure


def _sites(ax: Any, facts: Facts) -> list[float]:
    """A box for each site with both stages in it; the heights of their middles."""
    shown = facts.sites if len(facts.sites) <= MOST_SITES else facts.sites[: MOST_SITES - 1]
    rest = len(facts.sites) - len(shown)
    rows = len(shown) + bool(rest)
    step = 25.4 / rows
    high, middles = min(step - 0.9, 8.0), []
    for row, name in enumerate([*shown, f"and {rest} more sites"] if rest else shown):
        middle = 30.0 - step * (row + 0.5)
        middles.append(middle)
        _frame(ax, (1, middle - high / 2, 24, high), ACCENT)
        top = middle + high / 2
        ax.text(2, top - 1.1, name, fontsize=8, fontweight="bold", color=INK, va="center")
        parts = (("CMR", 5.2, SOFT), ("mask stage", 7.2, COLOURS[0]), ("image stage", 7.6, COLOURS[1]))
        left, inner = 2.0, high - 3.2
        for text, width, colour in parts:
            _frame(ax, (left, middle - high / 2 + 0.8, width, inner), colour, 0.9)
            ax.text(
                left + width / 2,
                middle - high / 2 + 0.8 + inner / 2,
                text,
                ha="center",
                va="center",
                fontsize=7,
                color=colour,
            )
            left += width + 0.8
    return middles


def _stages(ax: Any, runs: Sequence[Run]) -> None:
    """Which families the image stage has."""
    families = dict.fromkeys(family_of(run.recipe) for run in runs)
    words = ", ".join(f"{name} ({label})" for label, name in families)
    ax.text(1, 2.9, f"image stage: {words}", fontsize=7, color=COLOURS[1], va="center")


def _frame(ax: Any, place: tuple[float, float, float, float], colour: str, width: float = 1.3) -> None:
    x, y, w, h = place
    style = "round,pad=0,rounding_size=0.6"
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, facecolor="white", edgecolor=colour, linewidth=width))


def _box(ax: Any, place: tuple[float, float, float, float], title: str, text: str) -> None:
    x, y, w, h = place
    _frame(ax, place, ACCENT)
    ax.text(x + w / 2, y + h - 1.6, title, ha="center", va="center", fontsize=9, fontweight="bold", color=INK)
    ax.text(x + w / 2, y + (h - 2.2) / 2, text, ha="center", va="center", fontsize=7, color=SOFT, linespacing=1.25)


def _arrow(ax: Any, start: tuple[float, float], end: tuple[float, float], *, both: bool = False) -> None:
    style = "<|-|>" if both else "-|>"
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=8, color=SOFT, linewidth=1.1, shrinkA=0, shrinkB=0)
    )

"""`cmrfed plan`: what a recipe would mean for sites of given sizes, before anyone trains; what sweeps let expect."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrfed.config.experiment import Experiment, override, put, read_recipe, resolve
from cmrfed.core.errors import ConfigError, PrivacyError
from cmrfed.federation.settings import FederationConfig
from cmrfed.pipeline.privacy.plan import PrivacyPlan, plan_privacy
from cmrfed.privacy.policy import SitePolicy
from cmrfed.sweep.summary import MEASURES, Curve, Level, curves, epsilon_text
from cmrfed.sweep.table import Row, read_table


@dataclass(frozen=True)
class SitePlan:
    """One site: its patients, and the recipe as it would be if all sites were like it."""

    patients: int
    experiment: Experiment
    sigma: Mapping[str, float]
    """Stage → the least noise multiplier that keeps the target at the site's δ; empty where none does."""
    problem: str = ""
    """Why the target cannot be met."""


@dataclass(frozen=True)
class Forecast:
    """What a recipe would mean for some sites."""

    epsilon: float
    sites: tuple[SitePlan, ...]
    expected: tuple[str, ...]
    """Lines on what a sweep lets expect."""

    @property
    def feasible(self) -> bool:
        """Whether the target can be met at every site."""
        return not any(site.problem for site in self.sites)


def forecast(
    recipe: Path,
    patients: Sequence[int],
    epsilon: float,
    delta: float | None = None,
    assignments: Sequence[str] = (),
    table: Path | None = None,
) -> Forecast:
    """Plan a recipe for sites of given sizes.

    Args:
        recipe: The recipe; how it is trained privately is taken from it.
        patients: Of each site, as they may be known publicly.
        epsilon: Target of all stages together.
        delta: Of every site; None: the recipe's, or else N^-1.1 of each site.
        assignments: ``key=value`` over the recipe's settings.
        table: results.csv or results.parquet of a sweep.

    Raises:
        ConfigError: The recipe or an argument cannot be used.
    """
    if not patients or min(patients) < 1 or not epsilon > 0:
        raise ConfigError(
            "there is nothing to plan", got=f"patients {list(patients)}, ε = {epsilon:g}", expected="positive numbers"
        )
    tree = override(read_recipe(recipe), list(assignments))
    sites = tuple(_site(tree, count, len(patients), epsilon, delta) for count in patients)
    found = Forecast(epsilon, sites, ())
    if table is None:
        return found
    return Forecast(epsilon, sites, tuple(_expected(found, read_table(table))))


def _site(tree: dict[str, Any], patients: int, sites: int, epsilon: float, delta: float | None) -> SitePlan:
    section = tree.get("privacy") or {}
    unit = section.get("unit", "none") if isinstance(section, dict) else "none"
    federation = tree.get("federation") or {}
    least = federation.get("min_sites", FederationConfig().min_sites) if isinstance(federation, dict) else sites
    settings = {
        "privacy.unit": "patient" if unit == "none" else unit,
        "privacy.epsilon": epsilon,
        "privacy.declared_patients": patients,
        "data.partition.sites": sites,
        "data.partition.only": None,
        "federation.sites": sites,
        "federation.min_sites": min(least, sites),
    }
    settings |= {"privacy.delta": delta} if delta is not None else {}
    experiment = resolve(put(tree, settings))
    try:
        plan = plan_privacy(experiment)
    except PrivacyError as error:
        return SitePlan(patients, experiment, {}, str(error))
    return SitePlan(patients, experiment, {s.stage: s.noise_multiplier for s in plan.stages} if plan else {})


def asked(found: Forecast) -> list[dict[str, Any]]:
    """Rows of the one request that all sites get: for each stage the largest noise that any of them needs.

    ``noise_to_signal`` is that of the mean over all sites; ``by_site`` that of each site's own step. The signal is at
    most q·N of a site, N being its patients.
    """
    needs = max(found.sites, key=lambda site: max(site.sigma.values()))
    mean = sum(site.patients for site in found.sites) / len(found.sites)
    out = []
    for row in PrivacyPlan(needs.experiment).rows:
        scale = row.noise_multiplier * math.sqrt(row.released_numbers) / row.sampling_rate
        by_site = [scale / site.patients for site in found.sites]
        taking_part = needs.experiment.federation.asked
        out.append(row.model_dump() | {"noise_to_signal": scale / mean / math.sqrt(taking_part), "by_site": by_site})
    return out


# --- words --------------------------------------------------------------------------------------
def forecast_text(found: Forecast) -> str:
    """The plan for the terminal."""
    experiment = found.sites[0].experiment
    unit = experiment.privacy.unit
    lines = [
        f"{experiment.name}: ε = {found.epsilon:g} for each {unit} over both stages, {len(found.sites)} site(s): "
        + ("feasible." if found.feasible else "NOT feasible.")
    ]
    lines += [
        f"  site {n} ({site.patients} patients): {site.problem}" for n, site in enumerate(found.sites) if site.problem
    ]
    if found.feasible:
        lines += _asked_lines(found)
    smallest = SitePolicy(epsilon_cap=None, delta=0.5).smallest_cohort
    lines += [
        f"  site {n} has {site.patients} patients: a policy with smallest_cohort: {smallest}, as a new one has, would "
        "refuse."
        for n, site in enumerate(found.sites)
        if site.patients < smallest
    ]
    return "\n".join([*lines, *found.expected])


def _asked_lines(found: Forecast) -> list[str]:
    rows = asked(found)
    lines = ["All sites get the same request, with the largest noise that one of them needs:"]
    lines += [
        f"  {row['stage']}: σ = {row['noise_multiplier']:.3f}, q = {row['sampling_rate']:g}, {row['steps']} steps, "
        f"C = {row['clip_norm']:g}, {row['released_numbers']} numbers with noise; noise of the mean step "
        f"{row['noise_to_signal']:.2f} × its largest signal"
        for row in rows
    ]
    head = ["site", "patients", "in a step", "δ", *(f"σ alone, {row['stage']}" for row in rows)]
    cells = [[*head, *(f"noise of its own step, {row['stage']}" for row in rows)]]
    for number, site in enumerate(found.sites):
        own = [f"{site.sigma[row['stage']]:.3f}" for row in rows]
        noise = [f"{row['by_site'][number]:.2f} × signal" for row in rows]
        step = ", ".join(f"{row['sampling_rate'] * site.patients:.3g}" for row in rows)
        cells.append(
            [str(number), str(site.patients), step, f"{site.experiment.privacy.target_delta:.3g}", *own, *noise]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return lines + ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


# --- what a sweep lets expect -------------------------------------------------------------------
def _expected(found: Forecast, table: Sequence[Row]) -> list[str]:
    """For each curve of the table, the two measured points between which the plan's noise lies."""
    name = found.sites[0].experiment.name
    start = "Forecast: unavailable: "
    if not found.feasible:
        return [f"{start}the target cannot be met."]
    recipes = sorted({str(row["recipe"]) for row in table})
    if recipes != [name]:
        return [f"{start}the table is of {', '.join(recipes)}, not of {name}. Do: give a sweep of this recipe."]
    steps, measured = sum(found.sites[0].experiment.steps().values()), {row["steps"] for row in table}
    if measured != {steps}:
        return [
            f"{start}the table's points have {_some(measured)} steps, the plan {steps}. Do: sweep with these steps."
        ]
    noise = max(row["noise_to_signal"] for row in asked(found))
    declared = _some({row["declared_patients"] for row in table if row["declared_patients"] is not None})
    head = (
        f"Forecast by noise over signal, {noise:.2f} here, between the nearest points of the table (not for release; "
        f"measured with {declared or 'no'} declared patients a site, and other patients may do better or worse):"
    )
    return [head, *(f"  {_title(curve)}: {_between(curve, noise)}" for curve in curves(table))]


def _some(values: set[Any]) -> str:
    return ", ".join(map(str, sorted(values)))


def _title(curve: Curve) -> str:
    return ", ".join(part for part in (curve.panel, curve.line, MEASURES[curve.question]) if part)


def _between(curve: Curve, noise: float) -> str:
    levels = sorted(
        (level for level in curve.measured if level.noise_to_signal is not None), key=lambda each: _noise(each)
    )
    if not levels:
        return "unavailable: the table has no private point with a value"
    if not _noise(levels[0]) <= noise <= _noise(levels[-1]):
        return (
            f"unavailable: {noise:.2f} lies outside what was measured, {_noise(levels[0]):.2f} to "
            f"{_noise(levels[-1]):.2f}. Do: sweep ε as far as that"
        )
    below = [level for level in levels if _noise(level) <= noise][-1]
    above = next(level for level in levels if _noise(level) >= noise)
    if below is above:
        return f"as at ε = {epsilon_text(below.epsilon)}, {below.words}"
    return " and ".join(f"{e.words} (ε = {epsilon_text(e.epsilon)}, noise {_noise(e):.2f})" for e in (below, above))


def _noise(level: Level) -> float:
    return math.inf if level.noise_to_signal is None else level.noise_to_signal

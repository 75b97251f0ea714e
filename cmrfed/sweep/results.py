"""The sweep from its points to its results: run them, add up what patients paid, write table, notices and report."""

import urllib.parse
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from cmrfed.core.artifacts import write_text
from cmrfed.core.progress import say
from cmrfed.data.synthetic import INTENDED_USE
from cmrfed.report.results import duration
from cmrfed.sweep.figures import Drawn, against_epsilon, sample_grid
from cmrfed.sweep.headline import HEADLINE, headline
from cmrfed.sweep.paid import NOT_FOR_RELEASE, Paid, settle, warn
from cmrfed.sweep.points import Sweep
from cmrfed.sweep.summary import (
    ALL,
    KNEE_RULE,
    MEASURES,
    PANEL_AXIS,
    QUESTIONS,
    Curve,
    Question,
    as_rows,
    curves,
    epsilon_text,
)
from cmrfed.sweep.table import PARQUET, TABLE, Row, as_csv, costs, rows, write_table
from cmrfed.sweep.work import Command, Foretell, Prepare, State, make_shared, run_point, run_points, states

REPORT, FIGURES = "report.html", "figures"


def run(
    sweep: Sweep,
    folder: Path,
    jobs: int,
    *,
    command: Command = run_point,
    prepare: Prepare = make_shared,
    share_cores: bool = True,
    foretell: Foretell | None = None,
) -> list[State]:
    """Run what is not finished; after every point the table and what was paid are brought up to date.

    Arguments are those of `run_points`.

    Returns:
        Where all points stand.
    """

    def keep() -> None:
        _keep(sweep, folder, states(sweep, folder))

    standing = run_points(
        sweep,
        folder,
        jobs,
        command=command,
        prepare=prepare,
        share_cores=share_cores,
        on_end=keep,
        foretell=foretell,
    )
    table, paid = _keep(sweep, folder, standing)
    say(f"report: {write_report(sweep, folder, standing, table, paid)}")
    for each in paid:
        say(each.words)
    return standing


def _keep(sweep: Sweep, folder: Path, standing: Sequence[State]) -> tuple[list[Row], list[Paid]]:
    """Bring the research ledgers, the notices and the table up to date."""
    paid = settle(sweep.points, folder)
    warn(paid, folder)
    table = rows(sweep, standing, paid)
    write_table(folder, table, standing)
    write_text(folder / HEADLINE, headline(sweep.name, table))
    return table, paid


# --- the report ---------------------------------------------------------------------------------
@cache
def _template() -> Template:
    """The page, compiled once in a process."""
    pages = Environment(
        loader=PackageLoader("cmrfed.sweep", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return pages.get_template("sweep.html")


def write_report(sweep: Sweep, folder: Path, standing: Sequence[State], table: Sequence[Row], paid: list[Paid]) -> Path:
    """Write report.html, one file that works without a network, and its figures as SVG and PDF."""
    found, cost = curves(table), costs(standing)
    package = files("cmrfed.report")
    summary = as_csv(as_rows(found))
    text = _template().render(
        css=Markup((package / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - a file of this package
        js=Markup((package / "report.js").read_text(encoding="utf-8")),  # noqa: S704 - a file of this package
        name=sweep.name,
        subtitle=f"{sweep.recipe}: {len(standing)} points, {sum(s.status == 'finished' for s in standing)} finished.",
        not_for_release=NOT_FOR_RELEASE,
        paid=[each.words for each in paid],
        simulated=all(each.group == "phantom" for each in paid),
        questions=[_question(folder, question, found) for question in QUESTIONS],
        knee_rule=KNEE_RULE,
        grids=_grids(folder, standing),
        points=[_point_row(state, row, table) for state, row in zip(standing, cost, strict=True)],
        failed=[(s.point.title, s.reason or "not run yet") for s in standing if s.status != "finished"],
        summary=summary,
        summary_uri=f"data:text/plain;charset=utf-8,{urllib.parse.quote(summary)}",
        table=TABLE,
        parquet=PARQUET,
        version=version("cmrfed"),
        intended_use=INTENDED_USE,
    )
    return write_text(folder / REPORT, text)


def _question(folder: Path, question: Question, found: Sequence[Curve]) -> dict[str, Any]:
    mine = [curve for curve in found if curve.question == question]
    return {
        "key": question,
        "title": question.capitalize(),
        "measure": MEASURES[question],
        "figure": against_epsilon(folder / FIGURES, question, mine),
        "curves": [
            {
                "title": ", ".join(part for part in (curve.panel if curve.panel != ALL else "", curve.line) if part),
                "knee": curve.knee,
                "levels": [
                    (epsilon_text(each.epsilon), each.words, each.over if each.interval else "–", each.reason)
                    for each in curve.levels
                ],
            }
            for curve in mine
        ],
    }


def _grids(folder: Path, standing: Sequence[State]) -> list[Drawn]:
    """Sample grids: one for each family."""
    by_family: dict[str, dict[str, State]] = {}
    for state in standing:
        by_family.setdefault(state.point.labels.get(PANEL_AXIS, ALL), {})[state.point.name] = state
    drawn = [
        sample_grid(folder / FIGURES, family, [(state.point, state.folder) for state in group.values()])
        for family, group in by_family.items()
    ]
    return [each for each in drawn if each]


def _point_row(state: State, cost: Mapping[str, Any], table: Sequence[Row]) -> dict[str, str]:
    about = next(row for row in table if row["point"] == state.point.name)
    claimed, noise = about["epsilon_claimed"], about["noise_to_signal"]
    sigma = [f"{about[name]:.3f}" for name in ("sigma_mask", "sigma_image") if about[name] is not None]
    return {
        "title": state.point.title,
        "status": state.status,
        "epsilon": epsilon_text(state.point.epsilon),
        "claimed": "–" if claimed is None else f"{claimed:g}",
        "sigma": ", ".join(sigma) or "–",
        "noise": "–" if noise is None else f"{noise:.2f} ×",
        "steps": str(cost["steps"]),
        "time": "–" if cost["seconds"] is None else duration(cost["seconds"]),
        "memory": "–" if not cost["peak_memory_mb"] else f"{cost['peak_memory_mb']:,} MB",
        "digest": about["recipe_digest"][:12],
    }

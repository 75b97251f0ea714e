"""The report: a run or evaluation folder in, one self-contained HTML page out that works without a network."""

import csv
import io
import json
import urllib.parse
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from cmrfed.core.artifacts import write_text
from cmrfed.data.synthetic import INTENDED_USE, Manifest, learned_from_words
from cmrfed.evaluation.pictures import REAL_PATIENTS
from cmrfed.federation.server.metrics import RoundMetrics
from cmrfed.generators.stages import STAGES, StageName
from cmrfed.pipeline.files.record import RunRecord
from cmrfed.pipeline.privacy.plan import PlanRow
from cmrfed.privacy.audit.rows import AuditRow
from cmrfed.report.folder import Contents, read_contents
from cmrfed.report.methods import bibliography, paragraphs
from cmrfed.report.plots import Chart, curves
from cmrfed.report.results import axes, cards, duration, trade_off_chart

REPORT = "report.html"


@dataclass(frozen=True)
class Privacy:
    """What is promised about the patients, and whether there is a formal guarantee."""

    private: bool
    heading: str
    text: str


@dataclass(frozen=True)
class Export:
    """Text that a reader can copy, or save under ``file`` through the data URI ``uri``."""

    title: str
    kind: str
    file: str
    text: str
    uri: str


def _privacy(manifest: Manifest | None) -> Privacy:
    if manifest is None:
        text = "No manifest lies beside this evaluation, so nothing is known of a guarantee. Assume that there is none."
        return Privacy(False, "Privacy: no statement found", text)
    private = manifest.privacy.differentially_private
    weaker = " (weaker: a patient has many)" if manifest.privacy.unit == "slice" else ""
    unit = f", per {manifest.privacy.unit}{weaker}" if manifest.privacy.unit else ""
    heading = f"Privacy: differentially private{unit}" if private else "Privacy: not differentially private"
    if manifest.privacy.no_patients:
        heading = "Privacy: no patient of a site was learned from"
    return Privacy(private, heading, manifest.privacy.statement)


def _mechanism(contents: Contents) -> list[list[str]]:
    """Rows of the table beside a claim: what each stage did, and what its audit measured."""
    audited = {row.stage: row for row in contents.audit}
    return [_mechanism_row(row, audited.get(row.stage)) for row in (contents.run.privacy_plan if contents.run else ())]


def _mechanism_row(plan: PlanRow, found: AuditRow | None) -> list[str]:
    measured = "not audited"
    if found:
        word = "passed" if found.passed else f"FAILED: {found.failed_checks}"
        if found.checks:
            word += f" ({len(found.checks)} properties)"
        measured = f"{found.measured_mu}, theory {found.theory:.3f}: {word}"
    return [
        plan.stage,
        f"{plan.noise_multiplier:.3f}",
        f"{plan.sampling_rate:g}",
        str(plan.steps),
        str(plan.draws),
        f"{plan.trained_parameters}{plan.directions}",
        f"{plan.epsilon_alone:.2f}",
        f"{plan.noise_to_signal:.1f} ×",
        measured,
    ]


def _simulated(run: RunRecord | None) -> bool:
    """Are the run's patients those of the built-in phantom?"""
    return run is not None and run.experiment.data.phantom is not None and not run.experiment.data.cohorts


def _training(rounds: dict[StageName, list[RoundMetrics]]) -> dict[str, Any]:
    """Loss curves per stage, and a sentence for every round that a site was not part of."""
    charts: list[Chart] = []
    notes: list[str] = []
    for stage, metrics in rounds.items():
        losses: dict[str, dict[int, float]] = {}
        for entry in metrics:
            for site, values in entry.sites.items():
                if values.loss is not None:
                    losses.setdefault(site, {})[entry.round] = values.loss
                if values.status != "ok":
                    reason = f" ({values.reason})" if values.reason else ""
                    notes.append(f"{stage}, round {entry.round}: {site} {values.status}{reason}.")
        if losses:
            charts.append(curves(f"{STAGES[stage].heading}: loss per site", dict(sorted(losses.items())), "loss"))
    why = "the sites keep their losses to themselves" if any(rounds.values()) else "no round was trained in this folder"
    return {"charts": charts, "notes": notes, "why_no_charts": why}


def _moment(text: str | None) -> str:
    return datetime.fromisoformat(text).strftime("%-d %B %Y, %H:%M %Z").strip() if text else "not finished"


def _traffic(rounds: dict[StageName, list[RoundMetrics]]) -> str | None:
    total = sum(metrics.bytes_down + metrics.bytes_up for entries in rounds.values() for metrics in entries)
    return f"{total / 1e6:,.1f} MB, all sites and rounds" if total else None


def _facts(contents: Contents) -> list[tuple[str, str]]:
    run = contents.run
    if run is None:
        return []
    split = run.split
    rounds = ", ".join(f"{len(entries)} {stage}" for stage, entries in contents.rounds.items())
    facts = [
        ("Recipe", run.experiment.name),
        ("Seed", str(run.experiment.seed)),
        ("Digest of the experiment", run.digest),
        ("Started", _moment(run.started) if run.started else None),
        ("Finished", _moment(run.finished)),
        ("Patients", f"{split.train} to train on, {split.holdout} held out" if split else None),
        ("Synthetic patients", str(contents.manifest.patients) if contents.manifest else None),
        ("Learned from in public", learned_from_words(contents.manifest.learned_from) if contents.manifest else None),
        ("Rounds finished", rounds or "none"),
        ("Weights sent", _traffic(contents.rounds)),
        ("Peak memory", f"{run.peak_memory_mb:,} MB" if run.peak_memory_mb else None),
        ("Versions", ", ".join(f"{name} {number}" for name, number in run.versions.items())),
        ("Plugins", "; ".join(map(str, run.plugins))),
    ]
    return [(name, value) for name, value in facts if value]


def _sites(run: RunRecord | None) -> list[dict[str, str]]:
    return [
        {
            "name": site.name,
            "patients": "–" if site.patients is None else str(site.patients),
            "groups": ", ".join(f"{name} {count}" for name, count in site.groups.items()) or "–",
        }
        for site in (run.sites if run else ())
    ]


def _preparation(run: RunRecord | None) -> list[str]:
    """What became of the patients who were found, and what preparation noted of those who were used."""
    return run.data.lines() if run and run.data else []


def _timings(run: RunRecord | None) -> list[tuple[str, str]]:
    if run is None or run.seconds is None:
        return []
    return [*((name, duration(seconds)) for name, seconds in run.timings_s.items()), ("all", duration(run.seconds))]


def _curves_csv(rounds: dict[StageName, list[RoundMetrics]]) -> str | None:
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(("stage", "round", "site", "loss", "items", "seconds", "status"))
    lines = [
        (stage, entry.round, site, values.loss, values.items, values.seconds, values.status)
        for stage, entries in rounds.items()
        for entry in entries
        for site, values in entry.sites.items()
    ]
    table.writerows(lines)
    return out.getvalue() if lines else None


def _exports(contents: Contents) -> list[Export]:
    evaluation, run = contents.evaluation, contents.run.as_json() if contents.run else None
    texts = [
        ("Evaluation", "CSV", "metrics.csv", contents.metrics_csv),
        ("Evaluation in full", "JSON", "evaluation.json", evaluation.model_dump_json(indent=1) if evaluation else None),
        ("Learning curves", "CSV", "curves.csv", _curves_csv(contents.rounds)),
        ("Record of the run", "JSON", "run.json", json.dumps(run, indent=1, ensure_ascii=False) if run else None),
    ]
    return [
        Export(title, kind, file, text, f"data:text/plain;charset=utf-8,{urllib.parse.quote(text)}")
        for title, kind, file, text in texts
        if text
    ]


def _heading(contents: Contents) -> tuple[str, str]:
    if contents.run is None:
        return "Evaluation", "Synthetic cardiac MRI, judged against real patients."
    sites = contents.run.sites
    counts = [site.patients for site in sites if site.patients is not None]
    patients = f", {sum(counts)} training patients" if len(counts) == len(sites) else ""
    where = f"{len(sites)} sites{patients}. " if sites else ""
    title = contents.run.experiment.name
    return title, f"Synthetic cardiac MRI from a federation. {where}{_moment(contents.run.finished)}."


def _context(contents: Contents) -> dict[str, Any]:
    """Everything that the template shows."""
    evaluation, package = contents.evaluation, files("cmrfed.report")
    title, subtitle = _heading(contents)
    measured = [m for m in evaluation.metrics if m.value is not None] if evaluation else []
    record = contents.run.as_json() if contents.run else None
    methods = paragraphs(record, measured)
    numbers, sources = bibliography(methods)
    return {
        "title": title,
        "subtitle": subtitle,
        "css": Markup((package / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - a file of this package
        "js": Markup((package / "report.js").read_text(encoding="utf-8")),  # noqa: S704 - a file of this package
        "cards": cards(evaluation) if evaluation else [],
        "trade_off": trade_off_chart(evaluation) if evaluation else None,
        "warnings": [warning.text for warning in evaluation.warnings] if evaluation else [],
        "privacy": _privacy(contents.manifest),
        "mechanism": _mechanism(contents),
        "pictures": contents.pictures,
        "shows_real": any(picture.name in REAL_PATIENTS for picture in contents.pictures),
        "simulated": _simulated(contents.run),
        "previews": contents.previews,
        "axes": axes(evaluation) if evaluation else [],
        "training": _training(contents.rounds),
        "facts": _facts(contents),
        "sites": _sites(contents.run),
        "preparation": _preparation(contents.run),
        "timings": _timings(contents.run),
        "settings": json.dumps(record["experiment"] if record else None, indent=1, ensure_ascii=False),
        "methods": [{"text": p.text, "numbers": sorted(numbers[s] for s in p.sources)} for p in methods],
        "sources": sources,
        "exports": _exports(contents),
        "version": version("cmrfed"),
        "intended_use": contents.manifest.intended_use if contents.manifest else INTENDED_USE,
    }


@cache
def _template() -> Template:
    """The page, compiled once in a process."""
    pages = Environment(
        loader=PackageLoader("cmrfed.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return pages.get_template("report.html")


def write_report(folder: Path) -> Path:
    """Write ``folder``/report.html from whatever the folder holds so far.

    Args:
        folder: A run folder or an evaluation folder. Parts that are missing become a sentence in the report.

    Returns:
        Path of the page.

    Raises:
        DataError: The folder holds neither a run nor an evaluation, or one of its files is damaged.
    """
    return write_text(folder / REPORT, _template().render(_context(read_contents(folder))))

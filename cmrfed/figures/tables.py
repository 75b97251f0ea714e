"""The numbers of a study side by side, from the runs' evaluation.json alone."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmrfed.core.artifacts import write_text
from cmrfed.evaluation.results.catalogue import unavailable, unit_words
from cmrfed.evaluation.results.result import COLUMNS as FIELDS
from cmrfed.evaluation.results.result import EvaluationReport, Metric
from cmrfed.figures.study import Run

IMAGE_MEASURES = ("psnr", "ssim", "ms-ssim", "lpips", "fid", "kid")
"""Measures of fidelity, in order; those of real against real images are the ``reference`` of others, and no row."""
IMAGE_ARMS = ("synthetic", "paired", "reconstruction")
ABSENT = "–"
AGAIN = "Do: evaluate the run again with this version and what it needs (docs/evaluation.md)"


def _fidelity(report: EvaluationReport) -> list[Metric]:
    out = []
    for key in (f"fidelity.{measure}" for measure in IMAGE_MEASURES):
        mine = [metric for metric in report.select(key) if metric.arm in IMAGE_ARMS]
        out += mine or [_missing(key)]
    return out


def _segmentation(report: EvaluationReport) -> list[Metric]:
    return report.select("utility.dice") or [_missing("utility.dice")]


def _neighbours(report: EvaluationReport) -> list[Metric]:
    found = [metric for metric in report.metrics if metric.axis == "memorisation"]
    return found or [_missing("memorisation.distance-ratio")]


def _membership(report: EvaluationReport) -> list[Metric]:
    return report.select("leakage.auc") or [_missing("leakage.auc")]


def number(value: float) -> str:
    """Three significant digits, trailing zeros included."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _missing(key: str) -> Metric:
    return unavailable(key, f"evaluation.json holds no such number. {AGAIN}")


@dataclass(frozen=True)
class Table:
    """A title and, for each run, the metrics of one question."""

    name: str
    title: str
    of: Callable[[EvaluationReport], list[Metric]]


TABLES = (
    Table("fidelity", "Fidelity", _fidelity),
    Table(
        "segmentation", "Segmentation: Dice of a segmenter trained on real or synthetic slices, or both", _segmentation
    ),
    Table("neighbours", "Nearest neighbours", _neighbours),
    Table("membership", "Membership inference by patient", _membership),
)
COLUMNS = ("table", "run", "digest", *FIELDS)


def csv_text(runs: Sequence[Run]) -> str:
    """A line for each number of each run, in full precision."""
    text = io.StringIO()
    out = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    out.writeheader()
    for table in TABLES:
        for run in runs:
            fixed = {"table": table.name, "run": run.label, "digest": run.record.digest}
            out.writerows(fixed | metric.model_dump() for metric in table.of(run.evaluation))
    return text.getvalue()


def markdown(runs: Sequence[Run]) -> str:
    """Tables for readers: a row for each number, a column for each run, three significant digits."""
    lines = [
        "# Tables",
        "",
        "Value [95 % interval], n; ↑: higher is better, ↓: lower is better. *Reference*: the same number for "
        "real images, or where there is no effect. Numbers in full, with what each is over: "
        "`tables.csv`.",
        "",
        "| run | recipe | digest | patients: training, hold-out, synthetic |",
        "| --- | --- | --- | --- |",
    ]
    for run in runs:
        sizes = ", ".join(str(run.evaluation.sizes.get(k, ABSENT)) for k in ("training", "hold-out", "synthetic"))
        lines.append(f"| {run.label} | {run.recipe.name} | `{run.digest}` | {sizes} |")
    for table in TABLES:
        lines += ["", f"## {table.title}", "", *_body(table, runs)]
    return "\n".join(lines) + "\n"


def _body(table: Table, runs: Sequence[Run]) -> list[str]:
    """Rows in the order of the first run that has them, and below them why numbers are missing."""
    found = [{metric.id: metric for metric in table.of(run.evaluation)} for run in runs]
    ids = list(dict.fromkeys(each for metrics in found for each in metrics))
    notes: list[str] = []
    columns = ["", *(run.label for run in runs), "reference"]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join(['---'] * len(columns))} |"]
    for each_id in ids:
        metrics = [each.get(each_id) for each in found]
        cells = [_cell(metric, notes) for metric in metrics]
        lines.append(f"| {' | '.join([_title([m for m in metrics if m]), *cells, _reference(metrics)])} |")
    return lines + ([""] + [f"{i}. {note}" for i, note in enumerate(notes, 1)] if notes else [])


def _title(metrics: Sequence[Metric]) -> str:
    """Name, unit and direction; a unit that the name has already is left out."""
    direction = next((m.higher_is_better for m in metrics if m.higher_is_better is not None), None)
    unit = next((unit_words(m.unit) for m in metrics if m.unit and m.unit not in ("dice", "auc")), "")
    arrow = "" if direction is None else " ↑" if direction else " ↓"
    return metrics[0].name + (f", {unit}" if unit else "") + arrow


def _cell(metric: Metric | None, notes: list[str]) -> str:
    """A number as text; "unavailable" refers to a note with the reason."""
    reason = metric.unavailable if metric else "evaluation.json of this run holds no such number"
    if metric is None or metric.value is None:
        reason = str(reason).rstrip(".") + "."
        if reason not in notes:
            notes.append(reason)
        return f"unavailable ({notes.index(reason) + 1})" if metric else f"{ABSENT} ({notes.index(reason) + 1})"
    ends = "" if metric.low is None or metric.high is None else f" [{number(metric.low)}, {number(metric.high)}]"
    return f"{number(metric.value)}{ends}" + ("" if metric.n is None else f", n = {metric.n}")


def _reference(metrics: Sequence[Metric | None]) -> str:
    """The reference, once where it is the same for all runs that have it, otherwise in order of the runs."""
    values = [number(m.reference) if m and m.reference is not None else ABSENT for m in metrics]
    known = {value for value in values if value != ABSENT}
    return next(iter(known), ABSENT) if len(known) < 2 else ", ".join(values)


def tables(folder: Path, runs: Sequence[Run]) -> list[str]:
    """Write ``tables.csv`` and ``tables.md``."""
    write_text(folder / "tables.csv", csv_text(runs))
    write_text(folder / "tables.md", markdown(runs))
    return ["tables.csv", "tables.md"]

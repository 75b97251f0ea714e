"""The numbers of a sweep as one tidy table (CSV and Parquet): a row for each measure of each point; costs, records."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cmrfed.config.experiment import Experiment
from cmrfed.core.artifacts import digest_bytes, digest_json, write_bytes, write_json, write_text
from cmrfed.core.errors import ConfigError, DataError
from cmrfed.core.text import read_text
from cmrfed.data.synthetic import MANIFEST, read_manifest
from cmrfed.evaluation.results.catalogue import unit_words
from cmrfed.evaluation.results.reading import read_evaluation
from cmrfed.evaluation.results.result import QUALIFIERS, Metric
from cmrfed.evaluation.results.version1 import fields_of
from cmrfed.pipeline.files.record import PACKAGES, RunRecord, read_run
from cmrfed.sweep.paid import NOT_FOR_RELEASE, Paid, group_of
from cmrfed.sweep.points import Sweep, settings_of
from cmrfed.sweep.work import State, record_of

Row = dict[str, Any]

TABLE, PARQUET, COSTS, RECORDS = "results.csv", "results.parquet", "points.csv", "runs.json"
AXIS = "axis."
"""Before the name of an axis of the sweep."""
TEXT = (
    *("sweep", "release", "patients", "point", "status", "reason", "recipe", "recipe_digest", "settings_digest"),
    *("question", "metric", "unit", "detail", "unavailable"),
)
IDENTITY = ("metric_id", "measure", *QUALIFIERS)
"""What a metric is known by; ``metric`` is its name, for people."""
FLOATS = (
    *("epsilon", "delta", "epsilon_claimed", "epsilon_of_all_points"),
    *("sigma_mask", "sigma_image", "noise_to_signal", "value", "low", "high", "reference"),
)
WHOLE = (*("seed", "synthesis_seed", "evaluation_seed", "segmenter_seeds", "sites", "declared_patients", "steps", "n"),)
TRUTH = ("higher_is_better",)


def columns(axes: Sequence[str]) -> list[str]:
    """All columns in order: what was run, how private, what was measured, with which versions."""
    first = [*TEXT[:6], *(f"{AXIS}{axis}" for axis in axes), *TEXT[6:9], *WHOLE[:7], *FLOATS[:7]]
    measured = ["question", *IDENTITY, "metric", "value", "low", "high", "n", "reference", *TRUTH, *TEXT[11:]]
    return [*first, *measured, *_version_columns()]


def _version_columns() -> list[str]:
    return [f"version.{name}" for name in PACKAGES]


def rows(sweep: Sweep, states: Sequence[State], paid: Sequence[Paid]) -> list[Row]:
    """One row for each measure of each finished point; one without a measure for any other point.

    A value that could not be computed is None, and ``unavailable`` says why.
    """
    out = []
    for state in states:
        about = _about(sweep, state, paid)
        if state.status != "finished":
            out.append(about)
            continue
        report = read_evaluation(state.folder / "evaluation" / "evaluation.json")
        out += [about | _measured(metric) for metric in report.metrics]
    return [{name: row.get(name) for name in columns(sweep.axes)} for row in out]


def _measured(metric: Metric) -> Row:
    named = {"question": metric.axis, "metric_id": metric.id, "metric": metric.name}
    return metric.model_dump() | named | {"unit": unit_words(metric.unit) or None}


def _about(sweep: Sweep, state: State, paid: Sequence[Paid]) -> Row:
    """What is the same for all measures of a point."""
    point, record = state.point, record_of(state.folder)
    experiment = point.experiment
    group = group_of(experiment)
    total = next((each.epsilon for each in paid if each.group == group), None)
    return {
        "sweep": sweep.name,
        "release": NOT_FOR_RELEASE.lower(),
        "patients": group,
        "point": point.name,
        "status": state.status,
        "reason": state.reason or None,
        **{f"{AXIS}{axis}": label for axis, label in point.labels.items()},
        "recipe": sweep.recipe,
        "recipe_digest": experiment.digest,
        "settings_digest": digest_json(settings_of(experiment)),
        "seed": experiment.seed,
        "synthesis_seed": experiment.synthesis.seed,
        "evaluation_seed": experiment.evaluation.seed,
        "segmenter_seeds": experiment.evaluation.segmenter.seeds,
        "sites": experiment.sites,
        "steps": sum(experiment.steps().values()),
        "epsilon": point.epsilon,
        "epsilon_of_all_points": total,
        **_private(experiment, state, record),
        **{f"version.{name}": number for name, number in (record.versions if record else {}).items()},
    }


def _private(experiment: Experiment, state: State, record: RunRecord | None) -> Row:
    if not experiment.privacy.private:
        return {}
    plan = {row.stage: row for row in (record.privacy_plan if record else ())}
    made = state.folder / "synthetic"
    drawn = state.status == "finished" and (made / MANIFEST).exists()
    claimed = read_manifest(made).privacy.epsilon if drawn else None
    noise = [row.noise_to_signal for row in plan.values()]
    return {
        "delta": experiment.privacy.target_delta,
        "declared_patients": experiment.privacy.declared_patients,
        "epsilon_claimed": claimed,
        **{f"sigma_{stage}": row.noise_multiplier for stage, row in plan.items()},
        "noise_to_signal": max(noise) if noise else None,
    }


def costs(states: Sequence[State]) -> list[Row]:
    """What each point took: seconds of each step, and the largest memory; they differ from one run to the next."""
    out = []
    for state in states:
        record = record_of(state.folder)
        times = record.timings_s if record else {}
        out.append(
            {
                "point": state.point.name,
                "status": state.status,
                "reason": state.reason or None,
                "steps": sum(state.point.experiment.steps().values()) * state.point.experiment.sites,
                "seconds": round(sum(times.values()), 1) if times else None,
                "peak_memory_mb": record.peak_memory_mb if record else None,
                **{f"seconds.{step}": seconds for step, seconds in times.items()},
            }
        )
    return out


def records(states: Sequence[State]) -> list[dict[str, Any]]:
    """run.json of each finished point, with the digest of its evaluation: what a number of the table is traced to.

    Where cohorts lie on this machine decides nothing, and is left out.
    """
    out = []
    for state in states:
        if state.status == "finished":
            record = read_run(state.folder).as_json()
            for place in ("cohorts", "external"):
                del record["experiment"]["data"][place]
            evaluated = (state.folder / "evaluation" / "evaluation.json").read_bytes()
            out.append({"point": state.point.name, "evaluation": digest_bytes(evaluated), **record})
    return out


# --- files --------------------------------------------------------------------------------------
def write_table(folder: Path, table: Sequence[Row], states: Sequence[State]) -> None:
    """Write results.csv, results.parquet, points.csv and runs.json."""
    write_text(folder / TABLE, as_csv(table))
    write_bytes(folder / PARQUET, _as_parquet(table))
    write_text(folder / COSTS, as_csv(costs(states)))
    write_json(folder / RECORDS, records(states))


def as_csv(table: Iterable[Row]) -> str:
    """Rows as CSV; None is empty."""
    found = list(table)
    names = list(dict.fromkeys(name for row in found for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue()


def _as_parquet(table: Sequence[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(table[0])
    schema = pa.schema([(name, _arrow_type(name)) for name in names])
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([_typed(row) for row in table], schema), out)
    return out.getvalue()


def _arrow_type(name: str) -> Any:
    import pyarrow as pa

    if name in FLOATS:
        return pa.float64()
    return pa.int64() if name in WHOLE else pa.bool_() if name in TRUTH else pa.string()


def _typed(row: Row) -> Row:
    return {name: float(v) if name in FLOATS and v is not None else v for name, v in row.items()}


def read_table(path: Path) -> list[Row]:
    """Read results.csv or results.parquet.

    Raises:
        ConfigError: There is no such file.
        DataError: It is not the table of a sweep.
    """
    if not path.is_file():
        raise ConfigError(f"there is no table {path}", do="give results.csv or results.parquet of a sweep")
    try:
        found = _from_parquet(path) if path.suffix == ".parquet" else _from_csv(path)
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path} is not the table of a sweep", got=error, do="make it again with `cmrfed sweep`"
        ) from None
    lacking = [name for name in (*TEXT, *FLOATS, *WHOLE) if found and name not in found[0]]
    if not found or lacking:
        raise DataError(
            f"{path} is not the table of a sweep",
            got=f"no column {lacking[0]}" if lacking else "no row",
            do="make it again with `cmrfed sweep`",
        )
    return found if "metric_id" in found[0] else [_identified(row) for row in found]


def _identified(row: Row) -> Row:
    """A row of a table of version 0.1, which had no ids."""
    if row["metric"] is None:
        return row | dict.fromkeys(IDENTITY)
    fields = fields_of(row["question"], row["metric"])
    return row | {name: fields.get(name) for name in IDENTITY} | {"metric_id": fields["id"]}


def _from_parquet(path: Path) -> list[Row]:
    import pyarrow.parquet as pq

    found: list[Row] = pq.read_table(path).to_pylist()
    return found


def _from_csv(path: Path) -> list[Row]:
    file = io.StringIO(read_text(path), newline="")
    return [{name: _parsed(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def _parsed(name: str, text: str) -> Any:
    if text == "":
        return None
    if name in FLOATS:
        value = float(text)
        if math.isnan(value):
            raise ValueError(f"{name} is not a number")
        return value
    return int(text) if name in WHOLE else text == "True" if name in TRUTH else text

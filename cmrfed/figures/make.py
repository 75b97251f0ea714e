"""All figures and tables of a study, from its run folders."""

from collections.abc import Sequence
from pathlib import Path

from cmrfed.core.errors import ConfigError, DataError
from cmrfed.core.progress import say
from cmrfed.data.cohort import Cohort
from cmrfed.figures.frames import denoising, grid
from cmrfed.figures.pipeline import pipelines
from cmrfed.figures.shapes import shapes
from cmrfed.figures.study import Run, read_runs
from cmrfed.figures.tables import tables


def make_figures(folders: Sequence[Path], out: Path, cohort: Path | None, *, show_real: bool = False) -> list[str]:
    """Make what the runs allow, say what is left out and why, and return the names of what was made.

    Args:
        folders: Finished runs.
        out: Where figures and tables go.
        cohort: The patients of the runs; needed for the shapes of real masks.
        show_real: Draw a real patient in the grid.

    Raises:
        CmrfedError: A folder is no finished run, or the cohort is not that of the runs.
    """
    runs = read_runs(folders)
    unsplit = next((run.folder for run in runs if not (run.folder / "split.json").is_file()), None)
    real = _holdout(runs, cohort) if cohort and unsplit is None else None
    if show_real and real is None:
        raise ConfigError(
            "there is no real patient to show", got=_why(unsplit), do="give --cohort DIR, the cohort of the runs"
        )
    made = tables(out, runs) + pipelines(out, runs)
    made += [denoising(out, runs), grid(out, runs, real if show_real else None)]
    if real is None:
        say(f"shapes: left out. They need the real masks of a hold-out. Got: {_why(unsplit)}.")
    else:
        made.append(shapes(out, runs, real))
    return made


def _why(unsplit: Path | None) -> str:
    return f"no split.json in {unsplit}" if unsplit else "no --cohort DIR, the cohort of the runs"


def _holdout(runs: Sequence[Run], folder: Path) -> Cohort:
    """The hold-out that all runs share."""
    whole = Cohort.open(folder)
    parts = {run.label: run.holdout(whole) for run in runs}
    first = next(iter(parts.values()))
    if any(sorted(part.patient_ids) != sorted(first.patient_ids) for part in parts.values()):
        raise DataError(
            "the runs hold out different patients",
            got=", ".join(f"{label}: {len(part)} patients" for label, part in parts.items()),
            expected="one hold-out",
            do="compare runs of the same cohort, data.holdout and seed, or leave out --cohort",
        )
    return first

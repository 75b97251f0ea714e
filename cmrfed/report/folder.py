"""What a run or evaluation folder holds, read for the report; what is not there is None, not an error."""

import base64
from dataclasses import dataclass
from pathlib import Path

from cmrfed.config.experiment import ALL_STAGES
from cmrfed.core.errors import DataError
from cmrfed.core.text import read_text
from cmrfed.data.synthetic import MANIFEST, Manifest, read_manifest
from cmrfed.evaluation.results.reading import read_evaluation
from cmrfed.evaluation.results.result import EvaluationReport
from cmrfed.federation.server.metrics import RoundMetrics, read_rounds
from cmrfed.generators.stages import StageName
from cmrfed.pipeline.files.record import RunRecord, is_run, read_run
from cmrfed.pipeline.privacy.guarantee import read_audit
from cmrfed.privacy.audit.rows import AuditRow

PREVIEWS_SHOWN = 4


@dataclass(frozen=True)
class Picture:
    """A PNG, embedded: ``source`` is a data URI, ``alt`` says in words what it shows."""

    name: str
    caption: str
    source: str
    alt: str


@dataclass(frozen=True)
class Contents:
    """The parts of a folder that a report is made from."""

    folder: Path
    run: RunRecord | None
    rounds: dict[StageName, list[RoundMetrics]]
    manifest: Manifest | None
    audit: list[AuditRow]
    """Rows of audit.json, one for each private stage."""
    evaluation: EvaluationReport | None
    metrics_csv: str | None
    pictures: tuple[Picture, ...]
    previews: tuple[Picture, ...]


def _rounds(folder: Path) -> dict[StageName, list[RoundMetrics]]:
    """Stage → metrics of its rounds, in order of round."""
    found = {stage: read_rounds(folder, stage) for stage in ALL_STAGES}
    return {stage: metrics for stage, metrics in found.items() if metrics}


def _picture(path: Path, caption: str, alt: str) -> Picture:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return Picture(path.stem, caption, f"data:image/png;base64,{data}", alt)


CAPTIONS = {
    "synthetic": "Synthetic slices, drawn at random: the image, and below it the same with the outlines of its mask.",
    "holdout": "Real slices of patients whom no stage has seen, drawn and shown in the same way.",
    "nearest": "Above, the synthetic slices that lie nearest to a training slice; below, that training slice.",
}
"""Name of a picture of the evaluation → caption, in the order of the page."""


def _pictures(folder: Path) -> tuple[Picture, ...]:
    paths = [folder / f"{name}.png" for name in CAPTIONS]
    return tuple(_picture(path, CAPTIONS[path.stem], CAPTIONS[path.stem]) for path in paths if path.is_file())


def _previews(folder: Path) -> tuple[Picture, ...]:
    return tuple(
        _picture(
            path,
            f"Synthetic patient {path.stem}",
            f"Slices of synthetic patient {path.stem} from base to apex, images and the same with outlines: "
            "right ventricle blue, myocardium yellow, left ventricle orange.",
        )
        for path in sorted(folder.glob("previews/*.png"))[:PREVIEWS_SHOWN]
    )


def read_contents(folder: Path) -> Contents:
    """Read a run folder (run.json, evaluation/, synthetic/, …) or an evaluation folder (evaluation.json, …).

    Raises:
        DataError: The folder holds neither a run nor an evaluation.
    """
    evaluated = folder if (folder / "evaluation.json").is_file() else folder / "evaluation"
    run, results = read_run(folder) if is_run(folder) else None, evaluated / "evaluation.json"
    evaluation = read_evaluation(results) if results.is_file() else None
    if run is None and evaluation is None:
        raise DataError(
            f"{folder} holds nothing to report",
            got="neither run.json nor evaluation.json",
            expected="a folder made by `cmrfed run` or `cmrfed evaluate`",
            do="name that folder",
        )
    drawn, table = folder / "synthetic", evaluated / "metrics.csv"
    return Contents(
        folder=folder,
        run=run,
        rounds=_rounds(folder),
        manifest=read_manifest(drawn) if (drawn / MANIFEST).is_file() else None,
        audit=read_audit(folder),
        evaluation=evaluation,
        metrics_csv=read_text(table) if table.is_file() else None,
        pictures=_pictures(evaluated / "pictures"),
        previews=_previews(drawn),
    )

"""The runs of a study, read from their folders: what each is called, and what it left."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cmrfed.config.experiment import Experiment
from cmrfed.core.device import resolve_anywhere
from cmrfed.core.errors import DataError
from cmrfed.data.cohort import Cohort
from cmrfed.data.partition import read_split
from cmrfed.data.synthetic import Case, SyntheticDataset
from cmrfed.evaluation.results.reading import read_evaluation
from cmrfed.evaluation.results.result import EvaluationReport
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import PROCESSES
from cmrfed.pipeline.files.record import RunRecord
from cmrfed.pipeline.files.record import read_run as read_record


@dataclass(frozen=True)
class Run:
    """A finished run with an evaluation; the rest is read when it is asked for."""

    folder: Path
    record: RunRecord
    label: str
    evaluation: EvaluationReport

    @property
    def digest(self) -> str:
        """Short name of the experiment, as in run.json."""
        return self.record.digest[:12]

    @property
    def recipe(self) -> Experiment:
        """What was run."""
        return self.record.experiment

    @cached_property
    def synthetic(self) -> SyntheticDataset:
        """The data set that the run drew."""
        return SyntheticDataset.open_for_release(self.folder / "synthetic")

    @cached_property
    def generator(self) -> Generator:
        """The image generator, on the recipe's device."""
        return Generator.load(self.folder / "generators" / "image").to(resolve_anywhere(self.recipe.compute.device))

    def first_patient(self) -> list[Case]:
        """ED and ES of the first patient of the data set: none is chosen by hand."""
        name = self.synthetic.rows[0]["patient"]
        rows = [row for row in self.synthetic.rows if row["patient"] == name]
        return list(SyntheticDataset(self.synthetic.root, self.synthetic.manifest, rows).cases())

    def holdout(self, whole: Cohort) -> Cohort:
        """The patients of a cohort that no stage of the run has seen, as its split.json has them.

        Raises:
            DataError: The run was made on other patients.
        """
        split = read_split(self.folder)
        if split.cohort != whole.digest:
            raise DataError(
                f"{self.folder} was made on other patients than those of {whole.root}",
                got=f"cohort {whole.digest[:12]}",
                expected=f"cohort {split.cohort[:12]}",
                do="give the cohort of the run with --cohort, or leave it out",
            )
        return whole.select(split.holdout)


def family_of(recipe: Experiment) -> tuple[str, str]:
    """The family of the image stage: its label, such as LDM, and its name, such as latent diffusion."""
    generator = recipe.image.generator
    family = PROCESSES.get(generator.process.kind).family
    return (family.latent_label, family.latent_name) if generator.autoencoder else (family.label, family.name)


def read_run(folder: Path) -> Run:
    """Read one run, labelled with its family.

    Raises:
        DataError: The folder is no run, is not finished, or has no evaluation.
    """
    record = read_record(folder)
    path = folder / "evaluation" / "evaluation.json"
    if not path.is_file():
        raise DataError(
            f"{folder} has no evaluation",
            got="no evaluation/evaluation.json",
            expected="a finished run",
            do="finish it: the same `cmrfed run` command resumes it",
        )
    if record.finished is None:
        raise DataError(
            f"{folder} is not finished",
            got="a run that was stopped, or still goes on",
            expected="a finished run",
            do="finish it: the same `cmrfed run` command resumes it",
        )
    return Run(folder, record, family_of(record.experiment)[0], read_evaluation(path))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs in the order given; a family that comes twice is labelled with the name of the recipe as well.

    Raises:
        DataError: A folder cannot be used, or one is given twice.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise DataError("a run is given twice", got=", ".join(map(str, folders)), do="name each run once")
    runs = [read_run(folder) for folder in folders]
    for way in (lambda run: run.recipe.name, lambda run: f"{run.recipe.name} {run.folder.name}"):
        seen = Counter(run.label for run in runs)
        runs = [run if seen[run.label] == 1 else replace(run, label=way(run)) for run in runs]
    return runs


def footer(runs: Sequence[Run]) -> str:
    """Which runs a figure is of."""
    return "runs: " + ", ".join(f"{run.label} {run.digest}" for run in runs)

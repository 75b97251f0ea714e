"""A run folder after training: its record, its generators and what may be claimed of them, each read once."""

from functools import cached_property
from pathlib import Path

from cmrfed.config.experiment import STAGES, Experiment
from cmrfed.core.artifacts import digest_folder
from cmrfed.core.device import resolve_anywhere
from cmrfed.core.errors import DataError
from cmrfed.data.synthetic import Manifest, PrivacyStatement
from cmrfed.generators.generator import Generator
from cmrfed.generators.stages import StageName
from cmrfed.pipeline.files.record import RunRecord, read_run, versions
from cmrfed.pipeline.privacy.guarantee import claim
from cmrfed.pipeline.privacy.plan import PrivacyPlan


class TrainedRun:
    """What synthesis and evaluation need of a run. Made by `TrainedRun.open`, or from the context of a run at work.

    Args:
        run_dir: The run folder.
        record: Its run.json.
        plan: Of the same experiment.
    """

    def __init__(self, run_dir: Path, record: RunRecord, plan: PrivacyPlan) -> None:
        self.run_dir, self.record, self.plan = run_dir, record, plan
        self._generators: dict[str, Generator] = {}

    @classmethod
    def open(cls, run_dir: Path) -> "TrainedRun":
        """Read the record of a run folder.

        Raises:
            DataError: It is not one, or its record is damaged.
        """
        record = read_run(run_dir)
        return cls(run_dir, record, PrivacyPlan(record.experiment))

    @property
    def experiment(self) -> Experiment:
        """The recipe that was run."""
        return self.plan.experiment

    @property
    def styles(self) -> tuple[str, ...]:
        """Names of the sites, in order of their styles."""
        return tuple(site.name for site in self.record.sites)

    @cached_property
    def claim(self) -> PrivacyStatement:
        """What may be said of the generators and of all that is drawn from them."""
        return claim(self.plan, self.run_dir)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Stage → digest of its saved generator."""
        return {stage: digest_folder(self.folder(stage)) for stage in STAGES}

    def folder(self, stage: StageName) -> Path:
        """Where the generator of a stage is saved.

        Raises:
            DataError: There is none yet.
        """
        folder = self.run_dir / "generators" / stage
        if not folder.exists():
            raise DataError(
                f"{self.run_dir} has no {stage} generator yet",
                do="finish the run: the same `cmrfed run` command resumes it",
            )
        return folder

    def generator(self, stage: StageName) -> Generator:
        """The generator of a stage on the recipe's device, loaded when it is first asked for.

        Raises:
            DataError: There is none yet, or it is damaged.
        """
        if stage not in self._generators:
            device = resolve_anywhere(self.experiment.compute.device)
            self._generators[stage] = Generator.load(self.folder(stage)).to(device)
        return self._generators[stage]

    def manifest(
        self, name: str, *, patients: int, seed: int, spacing_mm: tuple[float, float, float] | None = None
    ) -> Manifest:
        """The manifest of a data set that is drawn from this run, named after its recipe."""
        return Manifest(
            name=f"{self.experiment.name}-{name}",
            patients=patients,
            seed=seed,
            generators=self.digests,
            experiment_digest=self.record.digest,
            size_px=self.experiment.data.size_px,
            spacing_mm=spacing_mm,
            styles=self.styles,
            learned_from=self.record.learned_from,
            privacy=self.claim,
            versions=versions(),
        )

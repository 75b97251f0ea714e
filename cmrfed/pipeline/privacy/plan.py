"""The privacy of a run before anything is trained: how much noise each stage needs, and what its requests say."""

from dataclasses import dataclass
from functools import cached_property

from pydantic import ConfigDict, Field

from cmrfed.config.experiment import ALL_STAGES, STAGES, Experiment
from cmrfed.core.settings.config import Section
from cmrfed.generators.stages import StageName
from cmrfed.privacy.budget import Plan, PlannedStage, calibrate_privacy, noise_to_signal
from cmrfed.privacy.event import ADJACENCY
from cmrfed.privacy.settings import PrivateTraining


class PlanRow(Section):
    """One private stage: what is trained, with how much noise, and what it would cost alone."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    stage: str
    noise_multiplier: float = Field(ge=0)
    """σ: standard deviation of the noise over the clipping bound."""
    sampling_rate: float = Field(gt=0, le=1)
    """q: probability of each patient to be in a step."""
    steps: int = Field(ge=1)
    """Of one site, over all rounds."""
    draws: int = Field(ge=1)
    """K: noise multiplicity."""
    clip_norm: float = Field(gt=0)
    """C: the largest norm of one patient's gradient."""
    trained_parameters: int = Field(ge=0)
    released_numbers: int = Field(ge=0)
    """Fewer than the trained parameters where they move along public directions."""
    epsilon_alone: float = Field(ge=0)
    """ε of this stage by itself (PRV)."""
    noise_to_signal: float = Field(ge=0)
    """Noise of a step over its largest signal."""

    @property
    def directions(self) -> str:
        """Along how many public directions the parameters move, in words; empty where they move freely."""
        free = self.released_numbers == self.trained_parameters
        return "" if free else f" in {self.released_numbers} public directions"

    @property
    def text(self) -> str:
        """One line for the terminal."""
        moved = f"{self.trained_parameters} parameters{self.directions}"
        return (
            f"  {self.stage}: σ = {self.noise_multiplier:.3f}, q = {self.sampling_rate:g}, {self.steps} steps, "
            f"K = {self.draws}, {moved}; alone ε = {self.epsilon_alone:.2f}; "
            f"noise of a step is {self.noise_to_signal:.1f} × its largest signal"
        )


@dataclass(frozen=True)
class PrivacyPlan:
    """What an experiment promises and asks for; each part is computed once, when it is first asked for.

    Finding the noise takes seconds: make one plan for a run, and hand it on.
    """

    experiment: Experiment

    @cached_property
    def noise(self) -> Plan | None:
        """Noise of all private stages together; None where nothing is promised.

        Raises:
            PrivacyError: The target cannot be met; the message names the nearest settings that can.
        """
        return plan_privacy(self.experiment)

    @cached_property
    def requests(self) -> dict[StageName, PrivateTraining | None]:
        """What the requests of each stage say of privacy."""
        privacy = self.experiment.privacy
        private = {stage.stage: privacy.request(stage.stage, stage.noise_multiplier) for stage in self._stages}
        return {stage: private.get(stage) for stage in self.experiment.stages}

    @cached_property
    def rows(self) -> tuple[PlanRow, ...]:
        """One row for each private stage."""
        return tuple(_row(self.experiment, stage) for stage in self._stages)

    @property
    def _stages(self) -> tuple[PlannedStage, ...]:
        return self.noise.stages if self.noise else ()

    @property
    def text(self) -> str:
        """The plan in words, for the terminal."""
        experiment, plan = self.experiment, self.noise
        start = [public_words(experiment)] if experiment.pretrain else []
        idle = [
            f"  {s}: keeps its pre-trained weights; no site trains it." for s in STAGES if s not in experiment.steps()
        ]
        if plan is None:
            return "\n".join(["Privacy: none. Nothing is promised to the patients.", *idle, *start])
        config = experiment.privacy
        weaker = " (weaker: it hides a slice, and a patient has many)" if config.unit == "slice" else ""
        first = (
            f"Privacy: unit {config.unit}{weaker}, {ADJACENCY[config.unit]}; ε = {plan.total.prv:.3f} (PRV; RDP "
            f"{plan.total.rdp:.3f}) at δ = {plan.total.delta:.2g} for the whole data set, target {config.epsilon:g}"
        )
        return "\n".join([first, *(row.text for row in self.rows), *idle, *start])


def plan_privacy(experiment: Experiment) -> Plan | None:
    """Noise of all private stages together; None where nothing is promised.

    Raises:
        PrivacyError: The target cannot be met; the message names the nearest settings that can.
    """
    return calibrate_privacy(experiment.privacy, experiment.steps()) if experiment.privacy.private else None


def plan_text(experiment: Experiment) -> str:
    """The plan of an experiment in words, for the terminal.

    Raises:
        PrivacyError: The target cannot be met.
    """
    return PrivacyPlan(experiment).text


def _row(experiment: Experiment, stage: PlannedStage) -> PlanRow:
    from cmrfed.generators.trainable import make_trainable  # here with torch: who reads a plan does not wait for it
    from cmrfed.training.private import train_only

    settings = experiment.privacy.stage(stage.stage)
    name: StageName = next(each for each in ALL_STAGES if each == stage.stage)
    network = make_trainable(name, experiment.generator(name)).network
    trained = sum(p.numel() for p in train_only(network, settings.trained))
    patients = experiment.privacy.declared_patients or 1
    released = settings.dimensions(trained)
    ratio = noise_to_signal(
        stage.noise_multiplier, released, stage.sampling_rate, patients, sites=experiment.federation.asked
    )
    return PlanRow(
        stage=stage.stage,
        noise_multiplier=round(stage.noise_multiplier, 4),
        sampling_rate=stage.sampling_rate,
        steps=stage.steps,
        draws=settings.noise_multiplicity,
        clip_norm=settings.clip_norm,
        trained_parameters=trained,
        released_numbers=released,
        epsilon_alone=round(stage.alone.prv, 3),
        noise_to_signal=round(ratio, 2),
    )


def public_words(experiment: Experiment) -> str:
    """What starts from public weights, in words; empty where nothing does."""
    if experiment.pretrain is None:
        return ""
    finetuned = experiment.autoencoder is not None
    if experiment.segmenter:
        return experiment.pretrain.in_words_relabelled(finetuned=finetuned)
    return experiment.pretrain.in_words(finetuned=finetuned)

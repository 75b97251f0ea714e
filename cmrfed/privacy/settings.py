"""What a recipe asks for in privacy, and what of it a request to a site says."""

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from cmrfed.core.settings.config import Section, Seed
from cmrfed.privacy.event import Unit

STRICT_DELTA = 1e-3
"""Beside the configured δ, every ε is also given at this one: N^-1.1 is large where N is small."""


def strict_delta(delta: float) -> float:
    """The δ at which every ε is given beside the configured one: `STRICT_DELTA`, or the configured one if smaller."""
    return min(STRICT_DELTA, delta)


SMALLEST_CLIP_NORM, LARGEST_CLIP_NORM = 1e-6, 1e6
"""Range of C in which clipping and noise keep the relative precision of float32; `noise.noise_std` checks it."""
SMALLEST_NOISE_MULTIPLIER, LARGEST_NOISE_MULTIPLIER = 0.01, 1e4
SMALLEST_SAMPLING_RATE = 1e-9
MOST_PATIENTS = 10_000_000
MOST_DRAWS = 4096
"""Draws, slices or simulated patients whose arrays are in memory together; a site's policy usually allows fewer."""

ParameterPattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Subspace(Section):
    """A few directions of the weights, found on public data alone, in which the patients move them (arXiv 2007.03813).

    Noise grows with the root of the number of directions; millions of weights would drown in it. The directions are
    those in which the gradients of simulated patients differ most: how scanners and hearts vary is public, and the
    patients say only how much of each. They are found anew in every round.
    """

    rank: int = Field(32, ge=1, le=1024)
    """Dimension of the subspace."""
    patients: int = Field(48, ge=2, le=MOST_DRAWS)
    """Simulated patients, each contributing one gradient; disjoint from those of ``pretrain`` and ``data.phantom``."""
    scanners: int = Field(24, ge=1, le=MOST_DRAWS)
    """Simulated scanners; these patients are distributed evenly over them."""
    draws: int = Field(16, ge=1, le=MOST_DRAWS)
    """Slices sampled per simulated patient."""
    seed: Seed = 0
    """Seed of the simulated patients and of their gradients."""

    @model_validator(mode="after")
    def _spans(self) -> "Subspace":
        if not self.rank < self.patients or self.patients < self.scanners:
            raise ValueError(
                f"expected rank < patients and scanners <= patients, got {self.rank}, {self.patients}, {self.scanners}"
            )
        return self


class StagePrivacy(Section):
    """DP-SGD settings of one stage."""

    renamed = {"draws": "noise_multiplicity"}

    sampling_rate: float = Field(0.25, ge=SMALLEST_SAMPLING_RATE, le=1)
    """q: Poisson sampling rate, the probability with which each patient is included in a step. Public, never derived
    from the data."""
    clip_norm: float = Field(1.0, ge=SMALLEST_CLIP_NORM, le=LARGEST_CLIP_NORM)
    """C: clipping norm of the gradient per patient."""
    noise_multiplicity: int = Field(8, ge=1, le=MOST_DRAWS)
    """K: noise multiplicity (arXiv 2210.09929), the number of (slice, timestep, noise) samples per patient whose
    gradients are averaged before clipping; it does not affect ε."""
    trained: tuple[ParameterPattern, ...] = Field(("*",), max_length=100)
    """Name patterns (* and ?) of the trainable parameters; all others are frozen."""
    subspace: Subspace | None = None
    """Projection of the updates onto a public gradient subspace; None trains in the full parameter space."""

    def dimensions(self, parameters: int) -> int:
        """Numbers that are released with noise in a step, of so many trained parameters."""
        return parameters if self.subspace is None else min(self.subspace.rank, parameters)


class StagePlan(StagePrivacy):
    """A stage of a recipe: its share of the budget beside the mechanism."""

    noise_ratio: float = Field(1.0, ge=0.1, le=100)
    """Ratio of this stage's noise multiplier to the common one; above 1 the stage spends less of the budget."""


class SegmenterPlan(StagePlan):
    """The segmenter's: few of its parameters, so that noise does not drown them."""

    sampling_rate: float = Field(0.5, ge=SMALLEST_SAMPLING_RATE, le=1)
    clip_norm: float = Field(0.5, ge=SMALLEST_CLIP_NORM, le=LARGEST_CLIP_NORM)
    trained: tuple[ParameterPattern, ...] = Field(("model.0.*", "model.2.*"), max_length=100)
    """Name patterns (* and ?) of the trainable parameters; all others are frozen. By default the first and the last
    block: 3,947 of 456,000 with the default channels."""


class PrivateTraining(StagePrivacy):
    """What a request says of privacy. A site checks it against its own policy and ledger."""

    unit: Unit
    noise_multiplier: float = Field(ge=SMALLEST_NOISE_MULTIPLIER, le=LARGEST_NOISE_MULTIPLIER)
    """σ: standard deviation of the noise over C."""
    declared_patients: int = Field(ge=1, le=MOST_PATIENTS)

    @model_validator(mode="after")
    def _is_private(self) -> "PrivateTraining":
        if self.unit == "none":
            raise ValueError("unit none is a request without this section")
        return self


class PrivacyConfig(Section):
    """Differential privacy: one target ε for all stages together."""

    unit: Unit = "none"
    """Unit of privacy: patient; slice, which is weaker since a patient has many; or none."""
    epsilon: float | None = Field(None, gt=0, le=1e6)
    """Target ε for the patients (or slices) of each site, composed over all stages, under PRV accounting."""
    delta: float | None = Field(None, gt=0, lt=1)
    """Target δ, at most 1/N with N = ``declared_patients``: a larger δ would permit publishing one patient in full.
    None takes N^-1.1."""
    declared_patients: int | None = Field(None, ge=1, le=MOST_PATIENTS)
    """N: publicly declared number of patients (or slices, if they are the unit) of each site, the denominator of the
    update. It need not be exact, and must not be derived from the data."""
    segmenter: SegmenterPlan = SegmenterPlan()
    """Private training of the segmenter stage, where a recipe has one."""
    autoencoder: StagePlan = StagePlan()
    """Private training of the autoencoder stage, where a recipe has one."""
    mask: StagePlan = StagePlan()
    """Private training of the mask stage."""
    image: StagePlan = StagePlan()
    """Private training of the image stage."""

    @model_validator(mode="after")
    def _is_whole(self) -> "PrivacyConfig":
        if self.unit != "none" and (self.epsilon is None or self.declared_patients is None):
            raise ValueError(f"unit {self.unit} needs epsilon and declared_patients")
        if self.unit == "none" and self.epsilon is not None:
            raise ValueError("epsilon is set, but unit is none: set unit to patient, or leave epsilon out")
        return self

    @model_validator(mode="after")
    def _promises_something(self) -> "PrivacyConfig":
        if self.unit == "none" or self.declared_patients is None:
            return self
        if self.declared_patients == 1 and self.delta is None:
            raise ValueError("declared_patients is 1: nobody hides among one, and N^-1.1 is no δ; set delta")
        most = 1 / self.declared_patients
        if self.target_delta > most:
            raise ValueError(
                f"delta {self.target_delta:g} is above 1 / declared_patients = {most:.3g}: it would promise nothing"
            )
        return self

    @property
    def private(self) -> bool:
        """Whether anything is promised."""
        return self.unit != "none"

    @property
    def target_delta(self) -> float:
        """δ in force; `STRICT_DELTA` where nothing is promised to a declared number of patients."""
        if self.delta is not None or self.declared_patients is None:
            return self.delta or STRICT_DELTA
        return min(0.5, float(self.declared_patients**-1.1))

    def stage(self, name: str) -> StagePlan:
        """Settings of a stage, by name."""
        found: StagePlan = getattr(self, name)
        return found

    def request(self, name: str, noise_multiplier: float) -> PrivateTraining:
        """What a request for this stage says."""
        settings = self.stage(name).model_dump(exclude={"noise_ratio"})
        return PrivateTraining(
            **settings,
            unit=self.unit,
            noise_multiplier=noise_multiplier,
            declared_patients=self.declared_patients or 1,
        )

"""How stages are trained: at the sites, and on public data before. Loads no torch."""

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from cmrfed.core.settings.config import Precision, Section
from cmrfed.data.settings import PublicCohort, PublicPatients
from cmrfed.generators.stages import DRAWING, STAGES, StageName
from cmrfed.segmentation.settings import SegmenterConfig


class AugmentConfig(Section):
    """Data augmentation: ranges of uniform distributions; 0 disables a transform."""

    rotate_deg: float = Field(15.0, ge=0, le=180)
    """Largest rotation in either direction, in degrees."""
    scale: float = Field(0.1, ge=0, lt=0.5)
    """Relative range of scaling: 0.1 is from 0.9 to 1.1."""
    shift_px: float = Field(2.0, ge=0, le=256)
    """Largest translation in either direction along each axis, in pixels."""
    context_scale: float = Field(0.15, ge=0, lt=0.5)
    """Independent scale jitter of each conditioning mask (conditioning augmentation, arXiv 2106.15282, section 3):
    generated neighbours differ slightly in size from real ones, and without jitter the error accumulates towards the
    apex."""
    context_shift_px: float = Field(1.5, ge=0, le=256)
    """Independent translation jitter of each conditioning mask, in pixels."""


def warmup_cosine(largest: float, step: int, steps: int, warmup_steps: int) -> float:
    """Learning rate at a step: linear warm-up, then a half cosine to 1 % at the last step, and that from there on.

    Args:
        largest: The rate that the cosine begins with.
        step: From 0.
        steps: Steps in all.
        warmup_steps: Steps over which the rate rises.
    """
    warm = min(1.0, (step + 1) / (warmup_steps + 1))
    return largest * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))


class TrainingConfig(Section):
    """Optimisation of one stage."""

    renamed = {"ema_others": "extra_ema_decays"}

    rounds: int = Field(10, ge=0, le=100_000)
    """Federated rounds; 0 skips federated training and keeps the pre-trained weights."""
    local_steps: int = Field(20, ge=1, le=100_000)
    """Local optimizer steps per site and round."""
    batch_size: int = Field(32, ge=1, le=4096)
    """Slices per step; ignored in private training, where patients are Poisson-sampled at ``sampling_rate``."""
    learning_rate: float = Field(5e-4, gt=0, le=1000)
    """Peak learning rate; after the warm-up it decays along a half cosine to 1 % at the last step of the last round."""
    warmup_steps: int = Field(20, ge=0, le=10_000_000)
    """Steps of linear learning-rate warm-up at the start of the stage."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Local optimizer. Plain sgd suits one local step per round with an adaptive server strategy, which then receives
    gradients."""
    weight_decay: float = Field(0.0, ge=0, le=100)
    """Weight decay: decoupled in adamw (arXiv 1711.05101), L2 regularisation in sgd."""
    max_grad_norm: float = Field(1.0, ge=1e-6, le=1e6)
    """Gradient clipping: largest norm of a batch's gradient; ignored in private training, which has clip_norm."""
    ema_decay: float = Field(0.9, ge=0, lt=1)
    """Decay per round of the exponential moving average of the global weights, which the saved generator has."""
    extra_ema_decays: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field((), max_length=20)
    """Further EMA decays to compare: each gives a generator of its own; 0 is the last weights."""
    precision: Precision = "bf16"
    """Arithmetic of the network: bf16 where the device supports it in hardware, otherwise fp32."""
    augment: AugmentConfig | None = AugmentConfig()

    def rate_at(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then a half cosine to 1 % at the last step of the last round."""
        return warmup_cosine(self.learning_rate, step, self.rounds * self.local_steps, self.warmup_steps)

    @property
    def as_sent(self) -> "TrainingConfig":
        """The same settings as a request has them, whose digest does not depend on whose defaults they were."""
        return TrainingConfig(**{name: getattr(self, name) for name in TrainingConfig.model_fields})

    @staticmethod
    def decay_at(decay: float, number: int) -> float:
        """A decay as it is after round ``number``, from 1: small at first, to forget the beginning."""
        return min(decay, (1 + number) / (10 + number))


class SegmenterTraining(TrainingConfig):
    """Federated training of the segmenter at the sites: few steps from public weights, averaged over the last ones."""

    rounds: int = Field(40, ge=0, le=100_000)
    """Communication rounds."""
    local_steps: int = Field(1, ge=1, le=100_000)
    """Optimizer steps per round at each site; with one, all sites take a step together from the same weights."""
    learning_rate: float = Field(2e-3, gt=0, le=1000)
    warmup_steps: int = Field(0, ge=0, le=10_000_000)
    ema_decay: float = Field(0.95, ge=0, lt=1)


class AutoencoderTraining(Section):
    """Training of the autoencoder on the phantom."""

    steps: int = Field(3000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(16, ge=1)
    """Slices per step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate; after the warm-up it decays along a half cosine to 1 %."""
    warmup_steps: int = Field(50, ge=0)
    """Steps of linear learning-rate warm-up."""
    kl_weight: float = Field(1e-4, ge=0)
    """Weight of the KL divergence per latent element, relative to the reconstruction error per pixel."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping: largest norm of a batch's gradient."""
    precision: Precision = "bf16"
    """Arithmetic of the network: bf16 where the device supports it in hardware, otherwise fp32."""
    augment: AugmentConfig | None = AugmentConfig()

    def rate_at(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then a half cosine to 1 %."""
        return warmup_cosine(self.learning_rate, step, self.steps, self.warmup_steps)


class PublicTraining(TrainingConfig):
    """How one stage is pre-trained: as at a site, but at one place, with a round after which nothing travels."""

    rounds: int = Field(60, ge=1)
    """Rounds; the exponential moving average is updated after each."""
    local_steps: int = Field(50, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(8e-4, gt=0)
    extra_ema_decays: tuple[float, ...] = Field((), max_length=0, exclude=True)
    """None: public pre-training yields one generator."""


class CompletionConfig(Section):
    """How the structures are filled in that the annotators of a public cohort did not draw."""

    rounds: int = Field(1, ge=1, le=5)
    """Rounds of self-training: in the first the segmenter has learned from the phantom alone, in each later one from
    the phantom and the masks of the round before."""
    segmenter: SegmenterConfig = SegmenterConfig(steps=400, precision="fp32")
    """The segmenter that fills them in."""


class PretrainConfig(PublicPatients):
    """Public pre-training on the phantom, and on public cohorts where some are named."""

    mask: PublicTraining | None = PublicTraining()
    """Pre-training of the mask stage; None starts it from random weights."""
    image: PublicTraining | None = PublicTraining(rounds=80)
    autoencoder: AutoencoderTraining | None = None
    """Training of the image generator's autoencoder; required for a latent generator."""
    cohorts: tuple[PublicCohort, ...] = Field((), max_length=8)
    """Public cohorts of real patients to learn from beside the phantom; structures that their annotators did not draw
    are filled in."""
    mixed_share: float = Field(0.5, gt=0, lt=1)
    """Fraction of the patients drawn in training who are of ``cohorts``; the others are of the phantom."""
    completion: CompletionConfig = CompletionConfig()

    @field_validator("cohorts")
    @classmethod
    def _names_differ(cls, cohorts: tuple[PublicCohort, ...]) -> tuple[PublicCohort, ...]:
        names = ["phantom", *(cohort.name.lower() for cohort in cohorts)]
        if len(set(names)) < len(names):
            raise ValueError("public cohorts need names of their own, other than phantom")
        return cohorts

    def of(self, stage: StageName) -> PublicTraining | None:
        """How a stage is pre-trained, if it is."""
        found: PublicTraining | None = getattr(self, STAGES[stage].section)
        return found

    def in_words_relabelled(self, *, finetuned: bool) -> str:
        """`in_words` where a segmenter learns at the sites and then labels the public patients."""
        learns = "; the autoencoder of the images, which then learns at the sites, does too" if finetuned else ""
        stays = "; the autoencoder of the images was trained there too, and stays as it is" if self.autoencoder else ""
        return (
            f"The segmenter starts from public weights, trained on {self.learned_from}, which costs no ε"
            f"{learns or stays}. When the sites have trained it, it labels the same public images again, and the "
            "generators start from what they learn of these: this costs no further ε."
        )

    def in_words(self, *, finetuned: bool) -> str:
        """What may be said of what is public, for plans and manifests; ``finetuned``: sites train the autoencoder."""
        started = [stage for stage in DRAWING if self.of(stage)]
        first = "The generators start" if len(started) == 2 else f"The {''.join(started)} generator starts"
        parts = [f"{first} from public weights"] if started else []
        stays = "the autoencoder of the images is public and stays as it is"
        learns = "the autoencoder of the images, which then learns at the sites, starts from public weights"
        parts += [learns if finetuned else stays] if self.autoencoder else []
        text = "; ".join(parts)
        return f"{text[:1].upper()}{text[1:]}, trained on {self.learned_from}, which costs no ε."

    @property
    def learned_from(self) -> str:
        """What public weights are trained on, in words."""
        if not self.cohorts:
            return f"a phantom alone ({self.patients} simulated patients, no real one)"
        cohorts = "; ".join(cohort.in_words for cohort in self.cohorts)
        return (
            f"a phantom ({self.patients} simulated patients) and real patients of public data sets ({cohorts}), to "
            "whom nothing is promised"
        )

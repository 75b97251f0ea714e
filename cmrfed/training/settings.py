"""How stages are trained: at the sites, and on public data before. Loads no torch."""

import math
from typing import Annotated, Literal

from pydantic import Field

from cmrfed.core.config import Precision, Section
from cmrfed.data.settings import PublicPatients

Stage = Literal["autoencoder", "mask", "image"]
"""In the order in which they are trained; the first only where a recipe asks for it."""


class AugmentConfig(Section):
    """Ranges of uniform draws; 0 turns one off."""

    rotate_deg: float = Field(15.0, ge=0, le=180)
    """Largest turn either way, degrees."""
    scale: float = Field(0.1, ge=0, lt=0.5)
    """Relative: 0.1 is from 0.9 × to 1.1 ×."""
    shift_px: float = Field(2.0, ge=0, le=256)
    """Largest shift either way and along each axis, pixels."""
    context_scale: float = Field(0.15, ge=0, lt=0.5)
    """Of each mask that the mask stage is told, by itself: a drawn neighbour is never quite as large as a real one, and
    a stage that believes it to the pixel passes the error on to the apex (arXiv 2106.15282, section 3)."""
    context_shift_px: float = Field(1.5, ge=0, le=256)
    """As shift_px, of each mask that the mask stage is told, by itself."""


class TrainingConfig(Section):
    """How one stage is trained."""

    rounds: int = Field(10, ge=0, le=100_000)
    """0: no site is asked, and the stage stays as it was pre-trained."""
    local_steps: int = Field(20, ge=1, le=100_000)
    """Optimizer steps of each site in each round."""
    batch_size: int = Field(32, ge=1, le=4096)
    """Slices of a step; without effect in private training, where patients are drawn by a coin each."""
    learning_rate: float = Field(5e-4, gt=0, le=1000)
    """The largest, after the warm-up; a half cosine takes it to 1 % at the last step of the last round."""
    warmup_steps: int = Field(20, ge=0, le=10_000_000)
    """Steps, from the first one of the stage, over which the learning rate rises."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd, plain, is for one local step a round under an adaptive server strategy: the server then sees gradients."""
    weight_decay: float = Field(0.0, ge=0, le=100)
    """Of the optimizer: apart from the gradient in adamw (arXiv 1711.05101), as a part of it in sgd."""
    max_grad_norm: float = Field(1.0, ge=1e-6, le=1e6)
    """Norm to which the gradient of a batch is cut; without effect in private training, which has clip_norm."""
    ema_decay: float = Field(0.9, ge=0, lt=1)
    """Of the global weights, per round; the generator that is saved has the averaged weights."""
    ema_others: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field((), max_length=20)
    """Further decays: a generator each beside the one above, to be compared; 0 is the last weights themselves."""
    precision: Precision = "bf16"
    """Of the network's arithmetic: bf16 where the device computes in it, fp32 everywhere else."""
    augment: AugmentConfig | None = AugmentConfig()

    def rate_at(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then a half cosine to 1 % at the last step of the last round."""
        total = self.rounds * self.local_steps
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        return self.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0))))

    @staticmethod
    def decay_at(decay: float, number: int) -> float:
        """A decay as it is after round ``number``, from 1: small at first, to forget the beginning."""
        return min(decay, (1 + number) / (10 + number))


class AutoencoderTraining(Section):
    """How an autoencoder is trained."""

    steps: int = Field(3000, ge=1)
    """Optimizer steps in all."""
    batch_size: int = Field(16, ge=1)
    """Slices of a step."""
    learning_rate: float = Field(1e-3, gt=0)
    """The largest, after the warm-up; a half cosine takes it to 1 %."""
    warmup_steps: int = Field(50, ge=0)
    """Steps over which the learning rate rises."""
    kl_weight: float = Field(1e-4, ge=0)
    """Of the divergence from N(0, 1) per latent number, beside errors per pixel."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Norm to which the gradient of a batch is cut."""
    precision: Precision = "bf16"
    """Of the network's arithmetic: bf16 where the device computes in it, fp32 everywhere else."""
    augment: AugmentConfig | None = AugmentConfig()

    def rate_at(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then a half cosine to 1 %."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        return self.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


class PublicTraining(TrainingConfig):
    """How one stage is pre-trained: as at a site, but at one place, with a round after which nothing travels."""

    rounds: int = Field(60, ge=1)
    """After each the running average takes in the weights."""
    local_steps: int = Field(50, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(8e-4, gt=0)
    ema_others: tuple[float, ...] = Field((), max_length=0, exclude=True)
    """None: public pre-training yields one generator."""


class PretrainConfig(PublicPatients):
    """Weights that are learned from the phantom alone."""

    mask: PublicTraining | None = PublicTraining()
    """None: the first round begins with random weights."""
    image: PublicTraining | None = PublicTraining(rounds=80)
    autoencoder: AutoencoderTraining | None = None
    """Of the image generator, where that has one."""

    def of(self, stage: Stage) -> PublicTraining | None:
        """How a stage is pre-trained, if it is."""
        return self.mask if stage == "mask" else self.image

    def in_words(self, *, finetuned: bool) -> str:
        """What may be said of what is public, for plans and manifests; ``finetuned``: sites train the autoencoder."""
        started = [stage for stage, training in (("mask", self.mask), ("image", self.image)) if training]
        first = "The generators start" if len(started) == 2 else f"The {''.join(started)} generator starts"
        parts = [f"{first} from public weights"] if started else []
        stays = "the autoencoder of the images is public and stays as it is"
        learns = "the autoencoder of the images, which then learns at the sites, starts from public weights"
        parts += [learns if finetuned else stays] if self.autoencoder else []
        text = "; ".join(parts)
        return (
            f"{text[:1].upper()}{text[1:]}, trained on a phantom alone ({self.patients} simulated patients, no real "
            "one), which costs no ε."
        )

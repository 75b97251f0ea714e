"""Training on public data before a federation starts: no patient is behind the phantom, so this costs no privacy."""

from pydantic import Field

from cmrfed.core.progress import track
from cmrfed.data.cohort import Cohort
from cmrfed.data.public import PublicPatients
from cmrfed.generators.condition import UNKNOWN
from cmrfed.generators.generator import Generator
from cmrfed.training.autoencoder import AutoencoderTraining
from cmrfed.training.loop import LocalTrainer, Stage, TrainingConfig


class PublicTraining(TrainingConfig):
    """How one stage is pre-trained: as at a site, but at one place, with a round after which nothing travels."""

    rounds: int = Field(60, ge=1)
    """After each the running average takes in the weights."""
    local_steps: int = Field(50, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(8e-4, gt=0)
    ema_others: tuple[float, ...] = Field((), max_length=0, exclude=True)
    """None: the public start is one generator."""


class PretrainConfig(PublicPatients):
    """Weights that are learned from the phantom alone."""

    mask: PublicTraining | None = PublicTraining()
    """None: the first round begins with random weights."""
    image: PublicTraining | None = PublicTraining(rounds=80)
    autoencoder: AutoencoderTraining | None = Field(None, exclude_if=lambda value: value is None)
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


def train_publicly(generator: Generator, cohort: Cohort, stage: Stage, config: PublicTraining, seed: int) -> None:
    """Train a generator in place on a public cohort; it ends with the running average of its weights.

    The style is unknown throughout: scanners of a phantom are no sites of a federation. The weights of the styles are
    put to zero, so that the generator draws alike for every site until a site has taught it otherwise.

    Args:
        generator: Trained in place.
        cohort: Public patients with masks.
        stage: "mask" or "image".
        config: How to train.
        seed: Of all draws.
    """
    network = generator.network
    network.silence_styles()
    trainer = LocalTrainer(generator, cohort, stage, UNKNOWN, config, seed)
    average = {name: weights.clone() for name, weights in network.state_dict().items()}
    with track(f"Pre-training the {stage} generator", config.rounds * config.local_steps) as progress:
        for number in range(1, config.rounds + 1):
            result = trainer.run((number - 1) * config.local_steps, config.local_steps)
            decay = config.decay_at(config.ema_decay, number)
            average = {n: decay * average[n] + (1 - decay) * new for n, new in network.state_dict().items()}
            progress.advance(config.local_steps, f"loss {sum(result.losses) / len(result.losses):.4f}")
    network.load_state_dict(average)

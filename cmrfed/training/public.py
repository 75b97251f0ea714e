"""Training on public data before a federation starts: no patient is behind the phantom, so this costs no privacy."""

from cmrfed.core.progress import track
from cmrfed.data.cohort import Cohort
from cmrfed.generators.condition import UNKNOWN
from cmrfed.generators.generator import Generator
from cmrfed.generators.stages import StageName
from cmrfed.training.average import moved_average
from cmrfed.training.loop import LocalTrainer
from cmrfed.training.settings import PublicTraining


def train_publicly(generator: Generator, cohort: Cohort, stage: StageName, config: PublicTraining, seed: int) -> None:
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
    network.zero_site_conditioning()
    trainer = LocalTrainer(generator, cohort, stage, UNKNOWN, config, seed)
    average = {name: weights.clone() for name, weights in network.state_dict().items()}
    with track(f"Pre-training the {stage} generator", config.rounds * config.local_steps) as progress:
        for number in range(1, config.rounds + 1):
            result = trainer.run((number - 1) * config.local_steps, config.local_steps)
            decay = config.decay_at(config.ema_decay, number)
            average = moved_average(average, network.state_dict(), decay)
            progress.advance(config.local_steps, f"loss {sum(result.losses) / len(result.losses):.4f}")
    network.load_state_dict(average)

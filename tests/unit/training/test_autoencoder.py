"""Public training of the autoencoder: it learns to reconstruct, the same each time, and leaves unit latents."""

import torch

from cmrfed.data.draws import gather
from cmrfed.generators.autoencoder import LatentCodec
from cmrfed.training.autoencoder import train_autoencoder
from cmrfed.training.settings import AutoencoderTraining
from tests.generator_world import TINY_AUTOENCODER, blob_cohort, same_weights, tiny_autoencoder

SHORT = AutoencoderTraining(steps=60, batch_size=4, learning_rate=5e-3, warmup_steps=5, precision="fp32")


def test_it_learns_to_reconstruct_slices_that_it_was_not_trained_on(tmp_path):
    codec = train_autoencoder(TINY_AUTOENCODER, SHORT, blob_cohort(tmp_path / "train", 4), seed=1)
    others = blob_cohort(tmp_path / "others", 2, first=10)
    images = gather(others, others.rows).image
    untrained = LatentCodec(TINY_AUTOENCODER, tiny_autoencoder())
    errors = [(c.decode(c.encode(images)) - images).abs().mean() for c in (codec, untrained)]
    assert errors[0] < 0.5 * errors[1]
    latents = codec.encode(images)
    assert latents.mean((0, 2, 3)).abs().max() < 0.3
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.3


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    cohort = blob_cohort(tmp_path / "c", 2)
    few = SHORT.model_copy(update={"steps": 2})
    first, same, other = (train_autoencoder(TINY_AUTOENCODER, few, cohort, seed).weights for seed in (1, 1, 2))
    assert same_weights(first, same)
    assert not same_weights(first, other)


def test_it_leaves_the_global_stream_alone(tmp_path):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    train_autoencoder(TINY_AUTOENCODER, SHORT.model_copy(update={"steps": 1}), blob_cohort(tmp_path / "c", 2), seed=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_rate_warms_up_and_falls_to_nearly_nothing():
    config = AutoencoderTraining(steps=100, warmup_steps=9, learning_rate=1.0)
    assert config.rate_at(0) < 0.11
    assert 0.9 < config.rate_at(10) < 1
    assert config.rate_at(99) < 0.02

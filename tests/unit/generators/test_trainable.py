import torch

from cmrfed.generators.autoencoder import autoencoder_loss, autoencoder_losses, build_autoencoder, load_autoencoder
from cmrfed.generators.generator import Generator
from cmrfed.generators.trainable import KL_WEIGHT, TrainableAutoencoder, make_trainable
from cmrfed.training.settings import AutoencoderTraining
from tests.generator_world import TINY_AUTOENCODER, random_condition, same_weights, tiny_autoencoder, tiny_config


def images(count):
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_loss_of_an_item_is_its_own_and_their_mean_that_of_the_batch():
    network, x = build_autoencoder(TINY_AUTOENCODER), images(3)
    together = autoencoder_losses(network, x, torch.Generator().manual_seed(5), 0.1)
    assert together.shape == (3,)
    whole = autoencoder_loss(network, x, torch.Generator().manual_seed(5), 0.1)
    assert torch.allclose(together.mean(), whole, rtol=1e-5)
    rng = torch.Generator().manual_seed(5)
    alone = torch.cat([autoencoder_losses(network, item[None], rng, 0.1) for item in x])
    assert torch.allclose(together, alone, rtol=1e-4), "the noise of one item after the other"


def test_the_autoencoder_stage_trains_all_weights_of_the_autoencoder():
    config = tiny_config("latent")
    model = make_trainable("autoencoder", config)
    assert isinstance(model, TrainableAutoencoder)
    assert isinstance(make_trainable("image", config), Generator)
    model.loss(images(2), random_condition(2), torch.Generator()).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.network.parameters())
    assert AutoencoderTraining().kl_weight == KL_WEIGHT


def test_what_is_saved_is_an_autoencoder(tmp_path):
    model = make_trainable("autoencoder", tiny_config("latent"))
    model.network.load_state_dict(tiny_autoencoder())
    model.save(tmp_path / "autoencoder")
    assert same_weights(load_autoencoder(tmp_path / "autoencoder"), tiny_autoencoder())

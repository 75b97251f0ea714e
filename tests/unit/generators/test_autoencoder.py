"""The autoencoder of latent generators: what it gives, that it stays as it is, and that it is nothing by chance."""

import pytest
import torch
from pydantic import ValidationError

from cmrfed.core.errors import ConfigError, DataError
from cmrfed.generators.autoencoder import (
    LatentCodec,
    autoencoder_loss,
    build_autoencoder,
    load_autoencoder,
    standardise,
)
from cmrfed.generators.settings import AutoencoderConfig
from tests.generator_world import TINY_AUTOENCODER, same_weights, tiny_autoencoder


def images(count: int = 4, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def codec() -> LatentCodec:
    return LatentCodec(TINY_AUTOENCODER, tiny_autoencoder())


@pytest.mark.parametrize(("channels", "shrink"), [((8, 8), 2), ((8, 16, 8), 4)])
def test_each_level_but_the_last_halves_the_image(channels, shrink):
    config = AutoencoderConfig(channels=channels, latent_channels=3, norm_groups=4)
    codec = LatentCodec(config, tiny_autoencoder(config=config))
    latents = codec.encode(images())
    assert (codec.shrink, codec.channels) == (shrink, 3)
    assert latents.shape == (4, 3, 16 // shrink, 16 // shrink)
    made = codec.decode(latents)
    assert made.shape == (4, 1, 16, 16)
    assert made.abs().max() <= 1


def test_sizes_that_make_no_autoencoder_are_refused():
    with pytest.raises(ValidationError, match="needs two levels at least"):
        AutoencoderConfig(channels=(8,))
    with pytest.raises(ValidationError, match="must be multiples of norm_groups 8"):
        AutoencoderConfig(channels=(8, 12))


def test_no_part_of_it_mixes_images():
    """Batch statistics would let one patient move another's latent."""
    network = build_autoencoder(TINY_AUTOENCODER)
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in network.modules())
    assert not list(network.buffers())


def test_an_image_has_one_latent_in_every_batch_and_arithmetic(codec):
    together = codec.encode(images())
    alone = torch.cat([codec.encode(image) for image in images().split(1)])
    assert torch.allclose(together, alone, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = codec.encode(images())
    assert half.dtype == torch.float32
    assert torch.equal(half, together)


def test_it_is_frozen_whatever_is_done_around_it(codec):
    outer = torch.nn.Sequential(codec).train()
    assert not any(module.training for module in outer[0].modules())
    assert not any(p.requires_grad for p in codec.parameters())
    assert not codec.encode(images().requires_grad_()).requires_grad


def test_standardised_latents_have_unit_size_and_reconstructions_stay():
    network = build_autoencoder(TINY_AUTOENCODER).eval()
    x = images(32)
    with torch.no_grad():
        before = network.encode(x).latent_dist
        made = network.decode(before.mean).sample
        standardise(network, x.split(8))
        after = network.encode(x).latent_dist
        assert torch.allclose(network.decode(after.mean).sample, made, atol=1e-4)
    assert after.mean.mean((0, 2, 3)).abs().max() < 1e-4
    assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(2), atol=1e-3)
    scale = before.mean.transpose(0, 1).flatten(1).std(1).view(1, -1, 1, 1)
    assert torch.allclose(after.std, before.std / scale, rtol=1e-3), "the posterior is scaled alike"


def test_the_loss_is_errors_of_pixels_and_of_their_differences_and_the_divergence():
    network, x = build_autoencoder(TINY_AUTOENCODER), images(2)
    loss = autoencoder_loss(network, x, torch.Generator().manual_seed(5), 0.1)
    posterior = network.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(5))
    made = network.decode(posterior.mean + posterior.std * noise).sample
    error = made - x
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    numbers = posterior.mean[0].numel()
    expected = error.abs().mean() + edges + 0.1 * posterior.kl().mean() / numbers
    assert torch.allclose(loss, expected, rtol=1e-4)


# --- weights --------------------------------------------------------------------------------------
def test_without_weights_it_refuses_to_make_something_up(tmp_path):
    codec = LatentCodec(TINY_AUTOENCODER)
    for call in (
        lambda: codec.encode(images()),
        lambda: codec.decode(torch.zeros(1, 2, 8, 8)),
        lambda: codec.weights,
        lambda: codec.save(tmp_path / "vae"),
    ):
        with pytest.raises(ConfigError, match=r"the autoencoder has no weights.*cmrfed pretrain"):
            call()
    assert not (tmp_path / "vae").exists()


def test_weights_of_another_autoencoder_are_refused():
    wider = AutoencoderConfig(channels=(8, 16), latent_channels=2, norm_groups=4)
    with pytest.raises(ConfigError, match=r"(?s)the autoencoder does not fit the recipe.*cmrfed pretrain"):
        LatentCodec(wider, tiny_autoencoder())


def test_what_is_saved_is_loaded(codec, tmp_path):
    codec.save(tmp_path / "vae")
    assert same_weights(load_autoencoder(tmp_path / "vae"), codec.weights)


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_damaged_one_is_an_error_that_names_the_folder(codec, tmp_path, name):
    codec.save(tmp_path / "vae")
    (tmp_path / "vae" / name).write_bytes(b"\x00" * 50)
    with pytest.raises(DataError, match=f"the autoencoder in {tmp_path / 'vae'} cannot be used"):
        load_autoencoder(tmp_path / "vae")

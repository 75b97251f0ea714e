"""Public training of an autoencoder, on a phantom alone: a codec that has seen no patient."""

import torch

from cmrfed.core.device import HOST
from cmrfed.core.precision import arithmetic, autocast
from cmrfed.core.progress import track
from cmrfed.core.rng import fold, numpy_generator, torch_generator
from cmrfed.data.cohort import Cohort
from cmrfed.data.draws import draw_rows
from cmrfed.generators.autoencoder import LatentCodec, autoencoder_loss, build_autoencoder, standardise
from cmrfed.generators.settings import AutoencoderConfig
from cmrfed.training.augment import augment
from cmrfed.training.reader import SliceReader
from cmrfed.training.settings import AutoencoderTraining

STANDARD_IMAGES = 512
"""Slices over which latents get mean 0 and standard deviation 1."""
_TOLD = 50


def train_autoencoder(
    config: AutoencoderConfig, training: AutoencoderTraining, cohort: Cohort, seed: int, device: torch.device = HOST
) -> LatentCodec:
    """Train an autoencoder on public images; its latents end with mean 0 and standard deviation 1 over them.

    Args:
        config: Its size.
        training: How.
        cohort: Public patients.
        seed: Of all draws.
        device: Where to compute.

    Returns:
        The codec, on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(seed, "init", "autoencoder"))
        network = build_autoencoder(config).to(device).train()
    reader, parameters = SliceReader(cohort, device), list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=0.0, fused=True)
    dtype = arithmetic(training.precision, device.type)
    with track("Training the autoencoder on the phantom", training.steps) as progress:
        for step in range(training.steps):
            images = _images(reader, training, seed, step)
            with autocast(images.device.type, dtype):
                rng = torch_generator(seed, "autoencoder noise", step)
                loss = autoencoder_loss(network, images, rng, training.kl_weight)
            optimizer.param_groups[0]["lr"] = training.rate_at(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
            optimizer.step()
            if (step + 1) % _TOLD == 0:
                progress.advance(_TOLD, f"loss {float(loss.detach()):.4f}")
    network.eval()
    plain = training.model_copy(update={"augment": None, "batch_size": 64})
    standardise(network, (_images(reader, plain, seed, training.steps + i) for i in range(STANDARD_IMAGES // 64)))
    return LatentCodec(config, network.to(HOST).state_dict())


def _images(reader: SliceReader, training: AutoencoderTraining, seed: int, step: int) -> torch.Tensor:
    """A batch of images on the reader's device, (B, 1, H, W)."""
    rows = draw_rows(reader.cohort, training.batch_size, 1, numpy_generator(seed, "autoencoder rows", step))
    batch = reader.read(rows)
    if training.augment:
        batch = augment(batch, training.augment, torch_generator(seed, "autoencoder moves", step))
    return batch.image

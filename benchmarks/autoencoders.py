"""How large the autoencoder of a latent generator should be: what each loses on real images, beside what it costs.

Each is trained for the same number of steps on the same phantom patients, as `cmrfed pretrain` does, and then takes
real images that it has never seen through its latents and back. PSNR and SSIM are means over slices; agreement is the
Dice between the masks of the images and what a segmenter, trained on other real patients' images, finds in their
reconstructions: what it finds in the images themselves is in the last line.

    python -m benchmarks.autoencoders --cohort cohorts/acdc --steps 1500
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import run_benchmark
from benchmarks.choices import agreement
from cmrfed.core.progress import say, track
from cmrfed.core.rng import fold
from cmrfed.data.cohort import Cohort
from cmrfed.data.draws import gather
from cmrfed.data.public import public_patients
from cmrfed.data.settings import PublicPatients
from cmrfed.evaluation.fidelity.distances import paired_values
from cmrfed.evaluation.utility.segmenter import labelled_slices, train_segmenter
from cmrfed.generators.settings import AutoencoderConfig
from cmrfed.segmentation.settings import SegmenterConfig
from cmrfed.training.autoencoder import train_autoencoder
from cmrfed.training.settings import AutoencoderTraining

SIZES = {
    "halved, 2 channels": AutoencoderConfig(channels=(16, 32), latent_channels=2),
    "halved, 4 channels": AutoencoderConfig(channels=(16, 32), latent_channels=4),
    "halved, 4 channels, twice as wide": AutoencoderConfig(channels=(32, 64), latent_channels=4),
    "halved, 8 channels": AutoencoderConfig(channels=(16, 32), latent_channels=8),
    "quartered, 4 channels": AutoencoderConfig(channels=(16, 32, 64), latent_channels=4),
    "quartered, 8 channels": AutoencoderConfig(channels=(16, 32, 64), latent_channels=8),
}


def measure(size: AutoencoderConfig, steps: int, public: Cohort, holdout: Cohort, model: torch.nn.Module) -> str:
    """Train one and return its row."""
    start = time.monotonic()
    codec = train_autoencoder(size, AutoencoderTraining(steps=steps), public, 0)
    minutes = (time.monotonic() - start) / 60
    batch = gather(holdout, holdout.rows)
    made = torch.cat([codec.decode(codec.encode(part)) for part in batch.image.split(64)])
    values = paired_values(batch.image[:, 0].numpy(), made[:, 0].numpy())
    weights = sum(tensor.numel() for tensor in codec.weights.values())
    numbers = size.latent_channels * (holdout.size_px // size.shrink) ** 2
    return (
        f"{weights:>10,}{numbers:>9}{minutes:>9.1f}{np.mean(values['psnr']):>8.1f}{np.mean(values['ssim']):>8.3f}"
        f"{agreement(model, made[:, 0].numpy(), batch.mask.numpy()):>11.3f}"
    )


def main() -> None:
    """Parse, train each, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohort", type=Path, required=True, help="real patients with masks")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--segmenter-steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = Cohort.open(args.cohort).split({"train": 2 / 3, "holdout": 1 / 3}, 0)
    config = PublicPatients()
    public = public_patients(config, parts["train"].size_px, fold(config.seed, "public phantom"))
    real, segmenter = labelled_slices(parts["train"]), SegmenterConfig(steps=args.segmenter_steps)
    with track("segmenter", segmenter.steps) as bar:
        model = train_segmenter(real.images, real.masks, segmenter, 0, on_step=lambda: bar.advance(1))
    print(f"{'':<36}{'weights':>10}{'numbers':>9}{'minutes':>9}{'PSNR':>8}{'SSIM':>8}{'agreement':>11}")
    for name, size in SIZES.items():
        say(f"{name:<36}{measure(size, args.steps, public, parts['holdout'], model)}")
    batch = gather(parts["holdout"], parts["holdout"].rows)
    print(f"{'the images themselves':<36}{agreement(model, batch.image[:, 0].numpy(), batch.mask.numpy()):>55.3f}")


if __name__ == "__main__":
    run_benchmark(main)

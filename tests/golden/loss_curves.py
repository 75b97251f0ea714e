"""Twenty steps of each kind of training that a recipe can ask for; `python -m tests.golden.loss_curves` stores them."""

import json
import tempfile
from pathlib import Path

import torch

from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import FlowConfig
from cmrfed.training.loop import LocalTrainer
from cmrfed.training.settings import TrainingConfig
from tests.generator_world import blob_cohort, ddpm, tiny_autoencoder, tiny_config

STORED = Path(__file__).with_name("loss_curves.json")
STEPS = 20
KINDS = {
    "image, ddpm v": ("image", "pixel", ddpm("v_prediction")),
    "image, flow": ("image", "pixel", FlowConfig()),
    "mask, ddpm sample": ("mask", "mask", ddpm("sample")),
    "image, latent ddpm v": ("image", "latent", ddpm("v_prediction")),
    "image, latent flow": ("image", "latent", FlowConfig()),
}


def curve(kind: str, folder: Path) -> list[float]:
    """Losses of the steps, in float32 on one thread."""
    stage, codec, process = KINDS[kind]
    config = TrainingConfig(rounds=2, local_steps=STEPS // 2, batch_size=4, precision="fp32", learning_rate=2e-3)
    settings = tiny_config(codec, process, mask_dropout=0.1, condition_dropout=0.1)
    generator = Generator(settings, 1, tiny_autoencoder() if codec == "latent" else None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return LocalTrainer(generator, blob_cohort(folder), stage, 1, config, seed=7).run(0, STEPS).losses
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    """Store the curves of this version."""
    with tempfile.TemporaryDirectory() as folder:
        curves = {kind: curve(kind, Path(folder) / str(i)) for i, kind in enumerate(KINDS)}
    STORED.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()

r"""What is chosen after training, measured: how long weights are averaged, and how strongly the condition guides.

Every image generator of a finished run (`generators/image` and, with ``image.training.extra_ema_decays``, also
`generators/image-ema-*`) draws the masks of the hold-out patients, with each guidance scale that it can, from the same
noise. KID is to the real images of these patients, with the offline features; agreement is the Dice between the mask
that an image was drawn for and what a segmenter, trained on the real training patients, finds in it: what the same
segmenter reaches on the real images is in the last line. Guidance (arXiv 2207.12598) needs a generator that was
trained with condition_dropout, and asks the network twice for each step.

    cmrfed run configs/recipes/acdc-families/ddpm.yaml --run-dir runs/choices --data cohorts/acdc \
        --set image.generator.condition_dropout=0.1 --set 'image.training.extra_ema_decays=[0.0, 0.5, 0.8, 0.95, 0.98]'
    python -m benchmarks.choices runs/choices
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import run_benchmark
from benchmarks.sampling import SUBSETS, Material, from_run
from cmrfed.core.precision import arithmetic
from cmrfed.core.progress import say, track
from cmrfed.data.draws import gather
from cmrfed.data.labels import STRUCTURES
from cmrfed.evaluation.features.extractors import Extractor, open_extractor
from cmrfed.evaluation.fidelity.distances import kid
from cmrfed.evaluation.settings import FeatureConfig
from cmrfed.evaluation.utility.segmenter import labelled_slices, segment, train_segmenter, volume_dice
from cmrfed.generators.condition import Condition
from cmrfed.generators.generator import Generator
from cmrfed.segmentation.settings import SegmenterConfig
from cmrfed.training.batches import stage_inputs

SCALES = (0.5, 1.0, 1.25, 1.5, 2.0, 3.0)


def agreement(model: torch.nn.Module, images: np.ndarray, masks: np.ndarray) -> float:
    """Mean Dice over structures between masks (N, H, W) and what a segmenter finds in images (N, H, W)."""
    found = segment(model, images)
    values = [volume_dice(found, masks, label) for label in STRUCTURES]
    return float(np.mean([value for value in values if value is not None]))


def generators(run_dir: Path, settled: float) -> list[tuple[str, Path]]:
    """Every average of the image generator: its decay and its folder, by decay."""
    others = {float(p.name.rpartition("-")[2]): p for p in (run_dir / "generators").glob("image-ema-*")}
    chosen = others | {settled: run_dir / "generators" / "image"}
    return [(f"{decay:g}", chosen[decay]) for decay in sorted(chosen)]


def draw(folder: Path, scale: float, cond: Condition, precision: torch.dtype) -> np.ndarray:
    """Images (N, H, W) for conditions, image i from seed i."""
    made = Generator.load(folder)
    sampler = made.config.sampler.model_copy(update={"guidance_scale": scale})
    drawn = made.sample(cond, range(len(cond)), sampler=sampler, batch_size=32, precision=precision)
    return drawn[:, 0].numpy()


def trained_on_real(material: Material, steps: int) -> torch.nn.Module:
    """A segmenter of the training patients."""
    config, real = SegmenterConfig(steps=steps), labelled_slices(material.train)
    with track("segmenter", steps) as bar:
        return train_segmenter(real.images, real.masks, config, 0, on_step=lambda: bar.advance(1))


def measure(run_dir: Path, images: int, steps: int, extractor: Extractor) -> None:
    """Print the table."""
    material = from_run(run_dir, None)
    decay, config = material.experiment.image.training.ema_decay, material.experiment.generator("image")
    rows = np.resize(np.random.default_rng(0).permutation(material.holdout.rows), images)
    batch = gather(material.holdout, rows)
    masks, cond = batch.mask.numpy(), stage_inputs(batch, "image", style=0)[1]
    cond = replace(cond, style=torch.arange(images) % config.styles)
    seen, real = (extractor(np.asarray(c.images[c.rows], np.float32)) for c in (material.train, material.holdout))
    model, precision = trained_on_real(material, steps), arithmetic(material.experiment.synthesis.precision, "cpu")
    scales = SCALES if config.condition_dropout else (1.0,)
    print(f"{'decay':>8}{'guidance':>10}{'KID':>10}{'agreement':>12}")
    for name, folder in generators(run_dir, decay):
        for scale in scales if float(name) == decay else (1.0,):
            drawn = draw(folder, scale, cond, precision)
            value = kid(extractor(drawn), real, SUBSETS, np.random.default_rng(0))
            mark = "  <- the run's" if float(name) == decay and scale == config.sampler.guidance_scale else ""
            say(f"{name:>8}{scale:>10g}{value:>10.4f}{agreement(model, drawn, masks):>12.3f}{mark}")
    floor = kid(seen, real, SUBSETS, np.random.default_rng(0))
    print(f"{'real':>18}{floor:>10.4f}{agreement(model, batch.image[:, 0].numpy(), masks):>12.3f}")
    print(f"{images} images, features {extractor.name}; guidance 0.5 is a weaker condition, 1 is none")


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="a finished run")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--segmenter-steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    measure(args.run_dir, args.images, args.segmenter_steps, open_extractor(FeatureConfig()))


if __name__ == "__main__":
    run_benchmark(main)

"""KID of every sampler against what it costs: the number of times that the network is asked for one image.

The image generator of each run draws the masks of its hold-out patients with each sampler of its family and
several numbers of steps, from the same noise, in the styles of all sites in turn. KID is to the real images of these
patients, with the offline features. The recipe's own choice is marked; "real" is KID of the training patients' images,
what a perfect generator would get.

    python -m benchmarks.samplers runs/ddpm runs/fm runs/ldm --picture docs/img/samplers.svg
"""

import argparse
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks import run_benchmark
from benchmarks.sampling import SUBSETS, from_run
from cmrfed.core.precision import arithmetic
from cmrfed.core.progress import say
from cmrfed.data.draws import gather
from cmrfed.evaluation.features.extractors import Extractor, open_extractor
from cmrfed.evaluation.fidelity.distances import kid
from cmrfed.evaluation.settings import FeatureConfig
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import FlowConfig, SamplerConfig
from cmrfed.training.batches import stage_inputs

Curves = dict[str, list[tuple[int, float]]]
"""Recipe and sampler => number of evaluations and KID."""
EVALUATIONS = (3, 5, 10, 20, 40, 80)
LEVELS = (0.1, 0.2, 0.5, 1, 2, 5)
"""Marks of the axis of KID."""


def choices(generator: Generator) -> list[tuple[SamplerConfig, int]]:
    """Samplers of the generator's family with how often each asks the network."""
    if isinstance(generator.config.process, FlowConfig):
        euler = [(SamplerConfig(name="euler", steps=n), n) for n in EVALUATIONS]
        return euler + [(SamplerConfig(name="heun", steps=(n + 1) // 2), 2 * ((n + 1) // 2) - 1) for n in EVALUATIONS]
    return [(SamplerConfig(name=name, steps=n), n) for name in ("ddim", "dpm++", "dpm++-karras") for n in EVALUATIONS]


def measure(run_dir: Path, images: int, extractor: Extractor) -> tuple[Curves, float]:
    """KID by sampler and number of evaluations, and KID of real training patients; printed as it is found."""
    material = from_run(run_dir, None)
    made, name = material.fast, material.experiment.name
    assert made is not None  # noqa: S101 - from_run has loaded it
    seen, real = (extractor(np.asarray(c.images[c.rows], np.float32)) for c in (material.train, material.holdout))
    rows = np.resize(np.random.default_rng(0).permutation(material.holdout.rows), images)
    cond = stage_inputs(gather(material.holdout, rows), "image", style=0)[1]
    cond = replace(cond, style=torch.arange(images) % made.config.styles)
    precision, curves = arithmetic(material.experiment.synthesis.precision, "cpu"), Curves()
    for sampler, asked in choices(made):
        drawer = Generator(made.config.model_copy(update={"sampler": sampler}))
        drawer.codec = made.codec
        drawer.network.load_state_dict(made.network.state_dict())
        drawn = drawer.eval().sample(cond, range(images), batch_size=32, precision=precision)
        value = kid(extractor(drawn[:, 0].numpy()), real, SUBSETS, np.random.default_rng(0))
        curves.setdefault(f"{name}, {sampler.name}", []).append((asked, value))
        mark = "  <- the recipe's" if sampler == made.config.sampler else ""
        say(f"{name:<12}{sampler.name:<14}{asked:>12}{value:>10.4f}{mark}")
    return curves, kid(seen, real, SUBSETS, np.random.default_rng(0))


def main() -> None:
    """Draw, measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs on the same patients")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--picture", type=Path, help="SVG file of the curves")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    extractor, curves, floor = open_extractor(FeatureConfig()), Curves(), 0.0
    print(f"{'recipe':<12}{'sampler':<14}{'evaluations':>12}{'KID':>10}")
    for run_dir in args.runs:
        found, floor = measure(run_dir, args.images, extractor)
        curves |= found
    print(f"{'real':<32}{floor:>10.4f}  {args.images} images, features {extractor.name}")
    if args.picture:
        plot(curves, floor, args.picture)


def plot(curves: Curves, floor: float, path: Path) -> None:
    """Draw KID over network evaluations."""
    plt.rcParams["svg.hashsalt"] = "cmrfed"
    figure, axis = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
    for (name, points), marker in zip(curves.items(), cycle("os^vDP"), strict=False):
        axis.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=name)
    axis.axhline(floor, color="grey", linestyle=":", label="real training patients")
    axis.set(xscale="log", yscale="log", xlabel="network evaluations for an image", ylabel="KID to hold-out patients")
    axis.set_xticks(EVALUATIONS, labels=[str(n) for n in EVALUATIONS])
    axis.set_yticks(LEVELS, labels=[str(n) for n in LEVELS])
    axis.minorticks_off()
    axis.set_ylim(LEVELS[0], 2 * LEVELS[-1])  # Heun with few steps lies far above
    axis.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    run_benchmark(main)

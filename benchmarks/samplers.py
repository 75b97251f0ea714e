"""KID of every sampler against what it costs: the number of times that the network is asked for one image.

The image generator of a finished run draws the masks of its hold-out patients with each sampler of its family and
several numbers of steps, from the same noise, in the styles of all sites in turn. KID is to the real images of these
patients, with the offline features. The recipe's own choice is marked; "real" is KID of the training patients' images,
what a perfect generator would get.

    python -m benchmarks.samplers runs/acdc --picture docs/img/samplers.svg
"""

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.sampling import SUBSETS, from_run
from cmrfed.data.draws import gather
from cmrfed.evaluation.features import FeatureConfig, open_extractor
from cmrfed.evaluation.fidelity import kid
from cmrfed.generators.generator import Generator
from cmrfed.generators.process import FlowConfig
from cmrfed.generators.samplers import SamplerConfig
from cmrfed.precision import arithmetic
from cmrfed.progress import say
from cmrfed.training.loop import stage_inputs

EVALUATIONS = (3, 5, 10, 20, 40, 80)
LEVELS = (0.1, 0.2, 0.5, 1, 2, 5)
"""Marks of the axis of KID."""


def choices(generator: Generator) -> list[tuple[SamplerConfig, int]]:
    """Samplers of the generator's family with how often each asks the network."""
    if isinstance(generator.config.process, FlowConfig):
        euler = [(SamplerConfig(name="euler", steps=n), n) for n in EVALUATIONS]
        return euler + [(SamplerConfig(name="heun", steps=(n + 1) // 2), 2 * ((n + 1) // 2) - 1) for n in EVALUATIONS]
    return [(SamplerConfig(name=name, steps=n), n) for name in ("ddim", "dpm++") for n in EVALUATIONS]


def main() -> None:
    """Draw, measure, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--picture", type=Path, help="SVG file of the curves")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    material, extractor = from_run(args.run_dir, None), open_extractor(FeatureConfig())
    made, random = material.fast, np.random.default_rng(0)
    assert made is not None  # noqa: S101 - from_run has loaded it
    rows = np.resize(random.permutation(material.holdout.rows), args.images)
    cond = stage_inputs(gather(material.holdout, rows), "image", style=0)[1]
    cond = replace(cond, style=torch.arange(args.images) % made.config.styles)
    features = [extractor(np.asarray(c.images[c.rows], np.float32)) for c in (material.train, material.holdout)]
    seen, real = features
    precision = arithmetic(material.experiment.synthesis.precision, "cpu")
    curves: dict[str, list[tuple[int, float]]] = {}
    print(f"{'sampler':<10}{'evaluations':>12}{'KID':>10}")
    for sampler, asked in choices(made):
        drawer = Generator(made.config.model_copy(update={"sampler": sampler}))
        drawer.codec = made.codec
        drawer.network.load_state_dict(made.network.state_dict())
        drawn = drawer.eval().sample(cond, range(args.images), batch_size=32, precision=precision)
        value = kid(extractor(drawn[:, 0].numpy()), real, SUBSETS, np.random.default_rng(0))
        curves.setdefault(sampler.name, []).append((asked, value))
        mark = "  <- the recipe's" if sampler == made.config.sampler else ""
        say(f"{sampler.name:<10}{asked:>12}{value:>10.4f}{mark}")
    floor = kid(seen, real, SUBSETS, np.random.default_rng(0))
    print(f"{'real':<10}{'':>12}{floor:>10.4f}  {args.images} images, features {extractor.name}")
    if args.picture:
        plot(curves, floor, args.picture)


def plot(curves: dict[str, list[tuple[int, float]]], floor: float, path: Path) -> None:
    """Draw KID over network evaluations."""
    plt.rcParams["svg.hashsalt"] = "cmrfed"
    figure, axis = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
    for (name, points), marker in zip(curves.items(), "os^", strict=False):
        axis.plot(*zip(*points, strict=True), marker=marker, label=name)
    axis.axhline(floor, color="grey", linestyle=":", label="real training patients")
    axis.set(xscale="log", yscale="log", xlabel="network evaluations for an image", ylabel="KID to hold-out patients")
    axis.set_xticks(EVALUATIONS, labels=[str(n) for n in EVALUATIONS])
    axis.set_yticks(LEVELS, labels=[str(n) for n in LEVELS])
    axis.minorticks_off()
    axis.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()

"""Training and sampling speed at 128 px, beside the loop of MONAI's tutorials on diffusion models.

Aim: at least 5 times as many images a second, in training and in sampling, with as many parameters.

How it is measured: the tutorial's loop is `DiffusionModelUNet` with `DiffusionInferer`, Adam and 1000 noise steps, one
residual block a level, as in MONAI's "2d_ddpm"; attention at the lowest level alone (the tutorial, at 64 px, has it at
the two lower ones; at 128 px that would be 4096 tokens and slower still); the one-hot mask is concatenated to the
noisy image. Its widths (in the ratio 1 : 2 : 2) are those that come nearest to the parameters of the image network
of the recipe (configs/recipes/acdc.yaml). It runs as it stands in the tutorial, in float32 on a CPU, and once more
under the same bf16 autocast as ours; the ratios are to the faster of the two. Its batches are tensors in memory
without augmentation; ours come from a cohort, and augmentation is off. Sampling takes the same number of network passes
everywhere: the recipe's sampler, and DDIM in the tutorial's inferer. All take turns within one process; medians over
the turns.

    python -m benchmarks.monai_loop
    python -m benchmarks.monai_loop --recipe configs/recipes/acdc-64.yaml
    python -m benchmarks.monai_loop --quick        # tiny networks: shows that it runs

It needs einops, which MONAI's network asks for: pip install -e '.[dev]'.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monai.inferers import DiffusionInferer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import run_benchmark
from benchmarks.training import QUICK, RECIPE, endless, phantom_cohort
from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.precision import arithmetic, autocast
from cmrfed.data.cohort import Cohort
from cmrfed.data.draws import gather
from cmrfed.generators.condition import Condition
from cmrfed.generators.generator import Generator
from cmrfed.training.batches import stage_inputs
from cmrfed.training.loop import LocalTrainer

LABELS = 4


def count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


def tutorial_network(width: int) -> DiffusionModelUNet:
    """The network of the tutorial, scaled to a width."""
    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=1 + LABELS,
        out_channels=1,
        channels=(width, 2 * width, 2 * width),
        attention_levels=(False, False, True),
        num_res_blocks=1,
        num_head_channels=2 * width,
        norm_num_groups=4,
    )


def as_large_as(parameters: int) -> DiffusionModelUNet:
    """The tutorial's network whose size comes nearest."""
    return min((tutorial_network(w) for w in range(4, 129, 4)), key=lambda net: abs(count(net) - parameters))


class Tutorial:
    """MONAI's loop, with a given arithmetic."""

    def __init__(
        self, network: DiffusionModelUNet, cohort: Cohort, batch: int, rate: float, dtype: torch.dtype
    ) -> None:
        self.network, self.batch, self.dtype = network, batch, dtype
        raw, cond = stage_inputs(gather(cohort, cohort.rows), "image", style=0)
        self.masks = functional.one_hot(cond.masks[:, 0].long(), LABELS).movedim(-1, 1).float()
        self.batches = endless(DataLoader(TensorDataset(raw, self.masks), batch, shuffle=True, drop_last=True))
        self.scheduler = DDPMScheduler(num_train_timesteps=1000)
        self.inferer = DiffusionInferer(self.scheduler)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=rate)

    def _arithmetic(self) -> contextlib.AbstractContextManager[object]:
        return autocast("cpu", self.dtype)

    def train(self, steps: int) -> None:
        """Take steps."""
        self.network.train()
        for _ in range(steps):
            images, masks = next(self.batches)
            self.optimizer.zero_grad(set_to_none=True)
            with self._arithmetic():
                noise = torch.randn_like(images)
                times = torch.randint(0, 1000, (len(images),)).long()
                out = self.inferer(images, self.network, noise, times, condition=masks, mode="concat")
                loss = functional.mse_loss(out.float(), noise)
            loss.backward()
            self.optimizer.step()
            loss.item()  # the tutorial logs it

    @torch.no_grad()
    def sample(self, passes: int) -> Tensor:
        """Draw one batch."""
        self.network.eval()
        scheduler = DDIMScheduler(num_train_timesteps=1000)
        scheduler.set_timesteps(passes)
        masks = self.masks[: self.batch]
        noise = torch.randn(len(masks), 1, *masks.shape[2:])
        with self._arithmetic():
            drawn: Tensor = self.inferer.sample(
                noise, self.network, scheduler, conditioning=masks, mode="concat", verbose=False
            )
        return drawn


class Ours:
    """The recipe's image stage at one site."""

    def __init__(self, experiment: Experiment, cohort: Cohort, batch: int) -> None:
        self.training = experiment.image.training.model_copy(update={"augment": None, "batch_size": batch})
        self.generator = Generator(experiment.generator("image"))
        self.trainer = LocalTrainer(self.generator, cohort, "image", 0, self.training, seed=0)
        self.cond: Condition = stage_inputs(gather(cohort, cohort.rows[:batch]), "image", style=0)[1]
        self.done = 0

    def train(self, steps: int) -> None:
        """Take steps."""
        self.trainer.run(self.done, steps)
        self.done += steps

    def sample(self) -> Tensor:
        """Draw one batch."""
        self.generator.eval()
        dtype = arithmetic(self.training.precision, "cpu")
        return self.generator.sample(self.cond, range(len(self.cond)), batch_size=len(self.cond), precision=dtype)


def race(ways: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Median seconds of each; the first turn only warms up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            start = time.monotonic()
            way()
            if turn:
                taken[name].append(time.monotonic() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def report(what: str, seconds: dict[str, float], images: int) -> None:
    """Print images a second and the ratio to the faster tutorial."""
    print(f"\n{what}")
    for name, taken in seconds.items():
        print(f"  {name:<24}{images / taken:>8.2f} images/s")
    best = min(taken for name, taken in seconds.items() if name != "ours")
    print(f"images/s in {what}, ours : MONAI's tutorial loop = {best / seconds['ours']:.2f} (aim: >= 5)")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--size", type=int, help="in pixels; by default the recipe's")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="of training in a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; its numbers mean nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.quick:
        args.size, args.batch, args.steps, args.turns = 32, 2, 1, 1
    sized = [f"data.size_px={args.size}"] if args.size else []
    experiment = resolve(args.recipe, [*(QUICK if args.quick else []), *sized])
    args.size = experiment.data.size_px
    with tempfile.TemporaryDirectory() as folder:
        cohort = phantom_cohort(Path(folder), 4, args.size)
        ours = Ours(experiment, cohort, args.batch)
        parameters, dtype = count(ours.generator.network), arithmetic(experiment.image.training.precision, "cpu")
        network, rate = as_large_as(parameters), experiment.image.training.learning_rate
        passes = experiment.image.generator.sampler.steps
        tutorials = {"MONAI": torch.float32, f"MONAI, {str(dtype).removeprefix('torch.')}": dtype}
        theirs = {n: Tutorial(network, cohort, args.batch, rate, d) for n, d in tutorials.items()}
        print(f"{args.size} px, batch {args.batch}, {args.threads} thread(s); parameters: ours {parameters:,}, "
              f"MONAI {count(network):,}")  # fmt: skip
        training = {"ours": lambda: ours.train(args.steps)}
        training |= {name: lambda way=way: way.train(args.steps) for name, way in theirs.items()}
        report("training", race(training, args.turns), args.batch * args.steps)
        sampling = {"ours": ours.sample}
        sampling |= {name: lambda way=way: way.sample(passes) for name, way in theirs.items()}
        report("sampling", race(sampling, max(1, args.turns // 2)), args.batch)
    if args.quick:
        print("--quick: the network is tiny, and the numbers mean nothing")


if __name__ == "__main__":
    run_benchmark(main, "einops")

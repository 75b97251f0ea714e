"""Cost of a private step: time and peak memory beside the non-private step and beside Opacus' ways.

Claimed: a private step with K = 8 draws of each patient takes at most 1.1 × the time of a non-private step on as many
items, and at most 0.6 × the time of Opacus' fastest way whose gradients are right for networks with attention.

How it is measured: the same diffusers network, the same items and AdamW in every way, in turns within one process;
medians over the turns, the first of which only warms up. Memory: each way in a process of its own, peak resident set
less that of a process that only built the network.

- plain: mean loss of all items, one backward.
- patient loop: `PrivateSGD`, one backward for each patient's K draws.
- hooks, functorch, ghost: Opacus' `GradSampleModule` or fast gradient clipping over the same items, slice by slice (K
  does not exist there). Hooks and ghost are wrong behind attention (strides), and are shown for their speed alone.

    python -m benchmarks.private_step
    python -m benchmarks.private_step --quick       # a tiny network: shows that it runs
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from benchmarks import run_benchmark
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig, PrivateSGD
from cmrfed.privacy.event import PrivacyEvent

WAYS = ("plain", "patient loop", "hooks", "functorch", "ghost")
CORRECT = ("functorch",)
"""Opacus' ways whose gradients are right for this network."""


class Network(nn.Module):
    """A small U-Net with attention at its coarsest level; gives (B, 1, H, W)."""

    def __init__(self, size: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        plain = len(channels) - 1
        self.unet = UNet2DModel(
            sample_size=size,
            in_channels=1,
            out_channels=1,
            block_out_channels=channels,
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=8,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Predict from noisy images (B, 1, H, W) at times (B,)."""
        return self.unet(x, time).sample


class World:
    """Items of some patients, K draws each, the same for every way."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.args = args
        shape = (args.patients, args.draws, 1, args.size, args.size)
        self.x, self.target = torch.randn(shape), torch.randn(shape)
        self.time = torch.randint(0, 1000, shape[:2])

    def network(self) -> Network:
        """A new network."""
        return Network(self.args.size, tuple(self.args.channels))

    def items(self) -> tuple[Tensor, Tensor, Tensor]:
        """All draws of all patients as one batch."""
        return self.x.flatten(0, 1), self.time.flatten(), self.target.flatten(0, 1)


def losses(network: nn.Module, x: Tensor, time: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each item."""
    return (network(x, time) - target).square().flatten(1).mean(1)


def plain(world: World) -> Callable[[], None]:
    """The step without privacy."""
    network = world.network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses(network, *world.items()).mean().backward()
        optimizer.step()

    return step


def patient_loop(world: World) -> Callable[[], None]:
    """Our step."""
    network, patients = world.network(), world.args.patients
    event = PrivacyEvent(
        noise_multiplier=1.0, sampling_rate=1.0, steps=10**6, run="benchmark", stage="image", round=0, digest=""
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    private = PrivateSGD(network, optimizer, event, patients, MechanismConfig(declared_patients=patients))
    return lambda: _discard(private.step(lambda i: losses(network, world.x[i], world.time[i], world.target[i])))


def _discard(_: object) -> None:
    return None


def grad_sample(world: World, mode: str) -> Callable[[], None]:
    """Opacus with a gradient for every item in memory."""
    network = GradSampleModule(world.network(), force_functorch=mode == "functorch")
    optimizer = DPOptimizer(
        torch.optim.AdamW(network.parameters(), lr=1e-4), noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=1
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses(network, *world.items()).mean().backward()
        optimizer.step()

    return step


def ghost(world: World) -> Callable[[], None]:
    """Opacus' fast gradient clipping: two backward passes, no gradient for each item."""
    network = GradSampleModuleFastGradientClipping(world.network(), max_grad_norm=1.0, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.AdamW(network.parameters(), lr=1e-4), noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=1
    )

    def per_item(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().flatten(1).mean(1)

    per_item.reduction = "mean"  # type: ignore[attr-defined]
    criterion = DPLossFastGradientClipping(network, optimizer, per_item, loss_reduction="mean")

    def step() -> None:
        x, times, target = world.items()
        optimizer.zero_grad(set_to_none=True)
        criterion(network(x, times), target).backward()
        optimizer.step()

    return step


def make(way: str, world: World) -> Callable[[], None]:
    """The step of one way."""
    if way in ("hooks", "functorch"):
        return grad_sample(world, way)
    return {"plain": plain, "patient loop": patient_loop, "ghost": ghost}[way](world)


def seconds(steps: dict[str, Callable[[], None]], turns: int) -> dict[str, float]:
    """Median processor time of each way's step; the ways take turns."""
    taken: dict[str, list[float]] = {way: [] for way in steps}
    for turn in range(turns + 1):
        for way, step in steps.items():
            start = time.process_time()
            step()
            if turn:
                taken[way].append(time.process_time() - start)
    return {way: statistics.median(values) for way, values in taken.items()}


def peak_mb(way: str, args: argparse.Namespace) -> float:
    """Peak resident memory of a process that takes two steps in this way; "nothing" only builds the network."""
    command = [sys.executable, "-m", "benchmarks.private_step", "--memory-of", way]
    command += ["--patients", str(args.patients), "--draws", str(args.draws), "--size", str(args.size)]
    command += ["--channels", *map(str, args.channels)]
    return float(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)


def own_peak_mb() -> float:
    """Peak resident memory of this process; ru_maxrss would start from that of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time and memory of a private step; prints ratios.")
    parser.add_argument("--patients", type=int, default=4)
    parser.add_argument("--draws", type=int, default=8, help="K")
    parser.add_argument("--size", type=int, default=64, help="in pixels")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 96])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny network, one turn, no memory")
    parser.add_argument("--memory-of", choices=("nothing", *WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.patients, args.draws, args.size, args.channels, args.turns = 2, 2, 8, [8, 8], 1
    return args


def main() -> None:
    """Measure and print."""
    args = parse()
    world = World(args)
    if args.memory_of:
        step = world.network if args.memory_of == "nothing" else make(args.memory_of, world)
        step()
        step()
        print(own_peak_mb())
        return
    taken = seconds({way: make(way, world) for way in WAYS}, args.turns)
    empty = 0.0 if args.quick else peak_mb("nothing", args)
    print(f"{args.patients} patients, K = {args.draws}, {args.size} px, {torch.get_num_threads()} thread(s)")
    for way in WAYS:
        memory = "" if args.quick else f"  {peak_mb(way, args) - empty:6.0f} MB"
        print(f"{way:14} {taken[way] * 1000:8.1f} ms  {taken[way] / taken['plain']:5.2f} x plain{memory}")
    best = min(taken[way] for way in CORRECT)
    print(f"patient loop / non-private:        {taken['patient loop'] / taken['plain']:.2f} (claimed: at most 1.1)")
    print(f"patient loop / best correct Opacus: {taken['patient loop'] / best:.2f} (claimed: at most 0.6)")


if __name__ == "__main__":
    run_benchmark(main)

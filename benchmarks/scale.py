"""How a round grows with the number of sites: memory and time of one process, and the traffic of its coordinator.

Aim: the memory of a round does not grow with the number of sites (the largest federation takes at most 1.2 times the
memory of the smallest).

How it is measured: for each number of sites and each way of sending, one process of its own runs one round of
`FederatedRun` over simulated sites on a `LocalGrid`: a network of about 4.8 million weights, one local step of one
slice at each site, so that the federation weighs more than the training. Memory is the largest resident set of that
process, as the kernel counts it (imports and data included). Time is the processor time of the process over the round
(so that other work on the machine counts little), with the time on the clock beside it. Traffic is what metrics.json
says of the round: bytes of the messages as they are handed to Flower.

    python -m benchmarks.scale                       # about half an hour on two cores; needs 12 GB of disk
    python -m benchmarks.scale --sites 4 16          # fewer
    python -m benchmarks.scale --quick               # 2 and 3 sites, a tiny network: shows that it runs
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import run_benchmark
from benchmarks.training import phantom_cohort
from cmrfed.data.cohort import Cohort
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.federation.server.metrics import read_round_metrics
from cmrfed.federation.server.run import FederatedRun, StageSpec
from cmrfed.federation.settings import FederationConfig
from cmrfed.federation.site.folder import SiteRecord
from cmrfed.federation.site.site import Site
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import BackboneConfig, GeneratorConfig
from cmrfed.privacy.policy import SitePolicy
from cmrfed.training.settings import TrainingConfig

SIZE_PX, STYLES = 32, 8
CHANNELS, TINY = (48, 80, 112, 144), (8, 16)
SITES, TRAFFIC_SITES = [4, 16, 64, 256], [4, 16, 64]
WAYS = ["none", "fp16", "int8", "secure"]


def specification(channels: tuple[int, ...]) -> StageSpec:
    """One round of one step of one slice; SGD, which keeps no state at the sites' disks."""
    backbone = BackboneConfig(channels=channels, patch_px=2, norm_groups=4)
    generator = GeneratorConfig(codec="pixel", size_px=SIZE_PX, condition_masks=1, styles=STYLES, backbone=backbone)
    training = TrainingConfig(rounds=1, local_steps=1, batch_size=1, optimizer="sgd", precision="fp32", augment=None)
    return StageSpec("image", generator, training)


def federation(sites: int, way: str) -> FederationConfig:
    """Settings of a federation that sends in this way."""
    if way == "secure":
        threshold = sites // 2 + 1
        return FederationConfig(sites=sites, min_sites=threshold, secure_aggregation={"threshold": threshold})
    return FederationConfig(sites=sites, compression=way)


def point(sites: int, way: str, channels: tuple[int, ...], cohort: Cohort, folder: Path) -> dict[str, Any]:
    """Run one round in this process and say what it took."""
    roots = [folder / "sites" / f"{i:03d}" for i in range(sites)]
    for i, root in enumerate(roots):
        patients = (cohort.patient_ids[i % len(cohort)],)
        record = SiteRecord(name=f"site-{i:03d}", style=i % STYLES, cohort=str(cohort.root), patients=patients)
        Site.register(root, record, SitePolicy.of_simulation("none", None, 1e-3))
    spec = specification(channels)
    run = FederatedRun(
        LocalGrid(roots), folder, run_id="scale", seed=0, digest="0" * 64, federation=federation(sites, way),
        stages=[spec],
    )  # fmt: skip
    before, start = _cpu_s(), time.monotonic()
    run.start_or_resume()
    seconds, cpu = time.monotonic() - start, _cpu_s() - before
    told = read_round_metrics(folder / "image" / "round-0001" / "metrics.json")
    return {
        "sites": sites, "way": way, "seconds": seconds, "cpu_s": cpu,
        "weights": sum(w.numel() for w in Generator(spec.generator).network.state_dict().values()),
        "answered": len(told.answered),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "down_mib": told.bytes_down / 2**20, "up_mib": told.bytes_up / 2**20,
    }  # fmt: skip


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measured(sites: int, way: str, *, quick: bool, cohort: Path) -> dict[str, Any]:
    """`point` in a process of its own, whose folder is gone afterwards."""
    command = [sys.executable, "-m", "benchmarks.scale", "--point", str(sites), way, str(cohort)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, folder, *(["--quick"] if quick else [])],
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=environment,
        )
    if done.returncode:
        raise SystemExit(f"the round of {sites} sites, {way}, failed: see above")
    return json.loads(done.stdout.splitlines()[-1])


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    print(f"{row['way']:<8}{row['sites']:>6}{row['answered']:>10}{row['peak_mib']:>12.0f}{row['cpu_s']:>10.1f}"
          f"{row['cpu_s'] / row['sites']:>12.2f}{row['seconds']:>10.1f}{row['down_mib']:>12.1f}{row['up_mib']:>12.1f}",
          flush=True)  # fmt: skip


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, nargs="+", default=SITES, help="sites whose replies travel whole")
    parser.add_argument("--traffic-sites", type=int, nargs="*", default=TRAFFIC_SITES, help="sites of the other ways")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=WAYS)
    parser.add_argument("--threads", type=int, default=1, help="a round uses one thread whatever is said here")
    parser.add_argument("--point", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; its numbers mean nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.point:
        sites, way, cohort, folder = args.point
        channels = TINY if args.quick else CHANNELS
        print(json.dumps(point(int(sites), way, channels, Cohort.open(Path(cohort)), Path(folder))))
        return
    if args.quick:
        args.sites, args.traffic_sites = [2, 3], [3]
    with tempfile.TemporaryDirectory() as data:
        cohort = phantom_cohort(Path(data), 4, SIZE_PX).root
        table(args, cohort)


def table(args: argparse.Namespace, cohort: Path) -> None:
    """Measure every point and print a line as soon as it is known, then the ratio."""
    print(f"{'way':<8}{'sites':>6}{'answered':>10}{'peak MiB':>12}{'CPU s':>10}{'CPU s/site':>12}{'clock s':>10}"
          f"{'down MiB':>12}{'up MiB':>12}")  # fmt: skip
    rows = []
    for way in args.ways:
        for sites in args.sites if way == "none" else args.traffic_sites:
            rows.append(measured(sites, way, quick=args.quick, cohort=cohort))
            show(rows[-1])
    print(f"\n{rows[0]['weights']:,} weights, one step of one slice at each site, one thread")
    whole = [row for row in rows if row["way"] == "none"]
    if len(whole) > 1:
        ratio = whole[-1]["peak_mib"] / whole[0]["peak_mib"]
        print(f"peak memory, {whole[-1]['sites']} : {whole[0]['sites']} sites = {ratio:.2f} (aim: <= 1.2)")
    if args.quick:
        print("--quick: the network is tiny, and the numbers mean nothing")


if __name__ == "__main__":
    run_benchmark(main)

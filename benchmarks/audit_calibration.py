"""How often the audit of the private step fails a correct one, and which planted faults it catches.

    python -m benchmarks.audit_calibration --simulated 1000 --whole 100
    python -m benchmarks.audit_calibration --faults 5

Simulated: numbers of a perfect mechanism go through every line that chance has a part in; of whole audits, the step is
the project's own. A run fails where any line has a p-value below its share of `FALSE_ALARM`; the share of runs that
would fail at 5 % shows whether the p-values are what they should be (below .05 where they are conservative).
"""

import argparse

import numpy as np
import torch

from benchmarks import run_benchmark
from cmrfed.privacy.audit.canaries import Tensors, make_canaries
from cmrfed.privacy.audit.checks import FALSE_ALARM, Check
from cmrfed.privacy.audit.clipping import check_clipping, shares
from cmrfed.privacy.audit.mu import measure
from cmrfed.privacy.audit.noise import check_noise, finely_spaced, scale
from cmrfed.privacy.audit.run import BATCH, EXACT_NOISE, EXACT_STEPS, STEPS, audit
from cmrfed.privacy.audit.sampling import check_sampling
from cmrfed.privacy.audit.tape import Tape, make_event
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig

CONFIG = MechanismConfig(clip_norm=0.5, declared_patients=40)
RATES = (0.5, 0.25, 0.05, 0.01)
NOMINAL = 0.05


def perfect(rng: np.random.Generator, sigma: float, rate: float, steps: int) -> Tape:
    """What steps of a perfect mechanism leave."""
    canaries, count = make_canaries(), round(BATCH / rate)
    seen = (rng.random((steps, count)) < rate).astype(int)
    size = sum(len(places) for places in Tensors.places().values())
    tape = Tape(make_event(sigma, rate, steps), CONFIG, canaries, seen, np.zeros((steps, size)))
    tape.noise = rng.normal(size=(steps, size)).astype(np.float32).astype(float)
    return tape


def simulated(rng: np.random.Generator, rate: float) -> list[Check]:
    """All lines that chance has a part in, but those that repeat others."""
    tape, exact = perfect(rng, 2.0, rate, STEPS), perfect(rng, EXACT_NOISE, rate, EXACT_STEPS)
    empty = rng.normal(size=tape.noise.shape[1]).astype(np.float32).astype(float)
    lines = [measure(tape).check(), *check_noise(tape.noise), *check_sampling(tape), shares(tape)]
    return [*lines, *check_clipping(exact), finely_spaced(empty), scale(rng.normal(size=(4, len(empty))))]


def report(name: str, runs: list[list[Check]]) -> None:
    """Print how many runs fail, at the level of an audit and at a nominal one."""
    worst = [min(checks, key=lambda check: check.p_value) for checks in runs]
    least = np.array([check.p_value * len(checks) for check, checks in zip(worst, runs, strict=True)])
    false, nominal = int((least < FALSE_ALARM).sum()), float((least < NOMINAL).mean())
    print(
        f"{name}: {false} of {len(runs)} fail; {nominal:.3f} would at {NOMINAL}; least {least.min():.2g} "
        f"({worst[int(least.argmin())].name})",
        flush=True,
    )


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulated", type=int, default=0, help="runs of a perfect mechanism at each sampling rate")
    parser.add_argument("--whole", type=int, default=0, help="whole audits of the project's own step")
    parser.add_argument("--faults", type=int, default=0, help="audits of each planted fault")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for rate in RATES if asked.simulated else ():
        rng = np.random.default_rng([asked.seed, round(1000 * rate)])
        report(f"perfect, q = {rate:g}", [simulated(rng, rate) for _ in range(asked.simulated)])
    if asked.whole:
        report("whole audits", [list(audit(2.0, CONFIG).checks) for _ in range(asked.whole)])
    if asked.faults:
        from tests.planted_faults import FAULTS

        for name, step in FAULTS.items():
            caught = sum(not audit(2.0, CONFIG, make_step=step).passed for _ in range(asked.faults))
            print(f"{caught} of {asked.faults}: {name}", flush=True)


if __name__ == "__main__":
    run_benchmark(main)

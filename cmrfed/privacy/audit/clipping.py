"""Does each record reach the sum clipped to C, and unchanged below it?"""

import numpy as np
import torch

from cmrfed.privacy.audit.canaries import Canary, Tensors
from cmrfed.privacy.audit.checks import Check, Finding, normal_p, squares_p, worst_of, yes_or_no
from cmrfed.privacy.audit.tape import MakeStep, Recorder, Tape, make_event
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig

HUGE = 1e30
"""A norm over C whose square overflows in float32."""


def check_clipping(tape: Tape) -> list[Check]:
    """Lines on what each kind of record adds, and on anything that is neither a record's share nor noise."""
    return [shares(tape), remainder(tape)]


def shares(tape: Tape) -> Check:
    """What each kind added, over its clipped gradient; for those that may add nothing, anything in their direction."""
    counts, found = tape.by_kind(), []
    for kind, canary in enumerate(tape.canaries):
        times, contribution = counts[:, kind], canary.contribution(tape.config.clip_norm)
        size = float(np.linalg.norm(contribution)) or 1.0
        direction = contribution if contribution.any() else canary.gradient
        length = float(np.linalg.norm(direction))
        if not times.any() or not length:
            continue
        along = tape.noise @ (direction / length)
        score = float(times @ along) / float(np.linalg.norm(times))
        excess = score * tape.event.noise_multiplier / float(np.linalg.norm(times)) / size
        measured = f"{excess + bool(contribution.any()):.3f}"
        found.append(Finding(canary.name, measured, float(normal_p(score))))
    return worst_of("clipping: what a record adds / its clipped gradient", "1.000, or 0.000 where not finite", found)


def along_sums(tapes: list[Tape]) -> Check:
    """Noise along each step's own sum: were it chosen by what it does to the loss, it would lean there."""
    along = []
    for tape in tapes:
        sums = tape.sums()
        lengths = np.linalg.norm(sums, axis=1)
        there = lengths > 0
        along.append((tape.noise[there] * sums[there]).sum(1) / lengths[there])
    scores = np.concatenate(along)
    if not len(scores):
        return worst_of("noise: along the sum of its step / (σ·C)", "0.000", [])
    lean = Finding("mean", f"{scores.mean():+.3f}", float(normal_p(scores.sum() / np.sqrt(len(scores)))))
    size = float((scores**2).sum())
    wide = Finding(
        "standard deviation - 1", f"{np.sqrt(size / len(scores)) - 1:+.3f}", float(squares_p(size, len(scores)))
    )
    return worst_of("noise: along the sum of its step / (σ·C)", "0.000", [lean, wide])


def remainder(tape: Tape) -> Check:
    """With hardly any noise, all that is left of a step is that noise."""
    noise = tape.noise
    found = [
        Finding(f"step {number + 1}", f"{np.sqrt((row**2).mean()):.3f}", float(squares_p((row**2).sum(), row.size)))
        for number, row in enumerate(noise)
    ]
    return worst_of("clipping: what is left beside records / noise", "1.000", found)


def overflow(make_step: MakeStep, noise_multiplier: float, config: MechanismConfig, device: torch.device) -> Check:
    """A gradient whose norm is infinite in float32 adds no more than C."""
    total = sum(len(indices) for indices in Tensors.places().values())
    direction = np.random.default_rng(1).normal(size=total)
    canary = Canary("1e30 C", direction * (HUGE / np.linalg.norm(direction)))
    tape = Recorder(make_step, make_event(noise_multiplier, 1.0, 4), config, [canary], 1, device).run()
    added = tape.released @ (canary.gradient / HUGE)
    most = 1 + 6 * noise_multiplier / np.sqrt(len(added))
    bounded = bool(np.isfinite(tape.released).all()) and -(most - 1) <= float(added.mean()) <= most
    faults = [] if bounded and not tape.faults else [*tape.faults, f"{added.mean():.3g} C"]
    return yes_or_no("clipping: a gradient of norm 1e30 C adds no more than C", "at most 1.000 C", faults)

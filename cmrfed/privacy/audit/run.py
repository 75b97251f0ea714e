"""The audit of a step: canaries whose gradients are known go through the very step that trains on patients.

What a step releases is the sum of the clipped gradients of the records that it read, and noise. Both are known here but
for the noise; so what is left must be independent normal values, in every tensor and in every step.
"""

import math

import torch

from cmrfed.core.device import HOST
from cmrfed.privacy.audit import clipping, conduct, noise, sampling
from cmrfed.privacy.audit.canaries import make_canaries
from cmrfed.privacy.audit.checks import Check, yes_or_no
from cmrfed.privacy.audit.mu import measure
from cmrfed.privacy.audit.optimizer import MakeOptimizer, check_optimizer
from cmrfed.privacy.audit.result import AuditResult
from cmrfed.privacy.audit.tape import MakeStep, Recorder, Tape, make_event
from cmrfed.privacy.dpsgd import mechanism
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig

STEPS = 50
"""Steps for the checks of noise and sampling: with some 40 records each, enough to tell 97 % of the noise from all."""
EXACT_STEPS, EXACT_NOISE = 20, 0.01
"""Noise for the checks of clipping: so little that each record's share shows."""
OPTIMIZER_STEPS, SMALL_STEPS = 6, 80
BATCH, MOST_RECORDS = 40, 5000
"""Records in a step on average, where that takes no more records than this."""


def audit(
    noise_multiplier: float,
    config: MechanismConfig,
    *,
    sampling_rate: float = 0.5,
    make_step: MakeStep | None = None,
    make_optimizer: MakeOptimizer = torch.optim.AdamW,
    device: torch.device = HOST,
) -> AuditResult:
    """Run a private step on canaries and compare what it does with what it promises. Takes seconds; needs no patients.

    Args:
        noise_multiplier: σ of the configured step.
        config: Of the configured step.
        sampling_rate: q. Near 1, where hardly a record stays out, sampling is looked at with 0.5 too.
        make_step: What makes the step object; None is `PrivateSGD`.
        make_optimizer: What makes the configured optimizer of given parameters.
        device: Where the step is taken.

    Raises:
        PrivacyError: The step cannot be made with these settings.
    """
    make = make_step or mechanism.PrivateSGD
    canaries = make_canaries()
    count = _records(sampling_rate, config.declared_patients)
    with torch.random.fork_rng(devices=[]):
        event = make_event(noise_multiplier, sampling_rate, STEPS)
        tape = Recorder(make, event, config, canaries, count, device).run()
        quiet = make_event(EXACT_NOISE, sampling_rate, EXACT_STEPS, 2)
        exact = Recorder(make, quiet, config, canaries, count, device).run()
        small = [] if sampling_rate == 1 else [_small_site(make, noise_multiplier, sampling_rate, config, device)]
        few = make_event(noise_multiplier, sampling_rate, OPTIMIZER_STEPS, 3)
        checks = [
            _conduct([tape, exact, *small]),
            *noise.check_noise(tape.noise),
            *sampling.check_sampling(tape),
            *_sampled_at_half(make, noise_multiplier, sampling_rate, config, device),
            clipping.shares(tape),
            *clipping.check_clipping(exact),
            clipping.overflow(make, noise_multiplier, config, device),
            clipping.along_sums([tape, exact, *small]),
            *(line for site in small for line in _check_small_site(site)),
            *_empty_site(make, noise_multiplier, sampling_rate, config, device),
            conduct.fresh_randomness(make, noise_multiplier, sampling_rate, config, canaries, device),
            conduct.spent_steps(make, noise_multiplier, config, canaries, device),
            conduct.noticed_writes(make, noise_multiplier, config, canaries, device),
            *check_optimizer(make, make_optimizer, few, config, canaries, count, device),
        ]
    mu = measure(tape)
    return AuditResult((mu.check(), *checks), mu, noise_multiplier, STEPS)


def _records(rate: float, declared: int) -> int:
    """R: not near N, so that a denominator that knows R shows."""
    count = min(MOST_RECORDS, math.ceil(BATCH / rate))
    return round(0.6 * count) if 0.75 < count / declared < 1.33 else count


def _conduct(tapes: list[Tape]) -> Check:
    faults = [fault for tape in tapes for fault in tape.faults]
    return yes_or_no("state: nothing but the trained weights moves, and they in the end alone", "no other", faults)


def _sampled_at_half(
    make: MakeStep, noise_multiplier: float, rate: float, config: MechanismConfig, device: torch.device
) -> list[Check]:
    """Where q is near 1, sampling shows only at another rate."""
    if rate <= 0.9:
        return []
    canaries = make_canaries()
    tape = Recorder(make, make_event(noise_multiplier, 0.5, STEPS, 4), config, canaries, 2 * BATCH, device).run()
    return [*sampling.check_sampling(tape), noise.scale(tape.noise), _conduct([tape])]


def _small_site(
    make: MakeStep, noise_multiplier: float, rate: float, config: MechanismConfig, device: torch.device
) -> Tape:
    """Steps on so few records that nobody is drawn in about a third of them."""
    count = min(MOST_RECORDS, max(1, round(math.log(1 / 3) / math.log1p(-rate))))
    event = make_event(noise_multiplier, rate, SMALL_STEPS, 6)
    return Recorder(make, event, config, make_canaries(), count, device).run()


def _check_small_site(tape: Tape) -> list[Check]:
    line = noise.scale(tape.noise)
    return [
        sampling.empty_steps(tape),
        Check("a site of few records: standard deviation / (σ·C)", line.measured, line.expected, line.p_value),
    ]


def _empty_site(
    make: MakeStep, noise_multiplier: float, rate: float, config: MechanismConfig, device: torch.device
) -> list[Check]:
    """Without a record, a step is a step of noise like any other."""
    tape = Recorder(make, make_event(noise_multiplier, rate, 4, 5), config, make_canaries(), 0, device).run()
    line = noise.scale(tape.noise)
    expected = yes_or_no("a site without records: steps are taken", "all of them", tape.faults)
    return [
        expected,
        Check("a site without records: standard deviation / (σ·C)", line.measured, line.expected, line.p_value),
        noise.finely_spaced(tape.noise[0]),
    ]

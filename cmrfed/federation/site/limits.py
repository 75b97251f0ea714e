"""What a site checks of a request by itself, before a patient is looked at and before anything is spent.

Nothing here depends on the site's patients: a refusal says what the server knows already.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from cmrfed.core.device import HOST, total_bytes
from cmrfed.core.errors import CmrfedError, SiteRefused
from cmrfed.federation.messages import StageJob, State
from cmrfed.federation.site.timing import record_budget
from cmrfed.generators.trainable import autoencoder_layout, weight_layout
from cmrfed.privacy.policy import Limits, SitePolicy
from cmrfed.training.rehearsal import subspace_bytes

if TYPE_CHECKING:
    from cmrfed.training.private import PrivateTrainer

GIB = 2**30


def check_request(job: StageJob, arrays: State, codec: State | None, policy: SitePolicy) -> None:
    """Refuse a request that is too large, or whose weights are not those of its network.

    Args:
        job: The request.
        arrays: Weights that came with it.
        codec: Weights of the autoencoder that came with it.
        policy: The site's own.

    Raises:
        SiteRefused: It is.
        ConfigError: There is no network of this size.
    """
    limits, subspace = policy.limits, job.privacy.subspace if job.privacy else None
    if job.privacy:
        policy.check_delta(job.privacy.declared_patients)
    draws = (
        (job.privacy.noise_multiplicity, subspace.draws if subspace else 1)
        if job.privacy
        else (job.training.batch_size,)
    )
    layout = weight_layout(job.stage, job.generator)
    autoencoder = job.generator.autoencoder
    kept = autoencoder_layout(autoencoder) if codec is not None and autoencoder else {}
    parameters = sum(_count(shape) for _, shape in [*layout.values(), *kept.values()])
    limits.check(
        batch_size=max(draws),
        local_steps=job.training.local_steps,
        rounds=job.training.rounds,
        parameters=parameters,
    )
    if subspace:
        limits.check(simulated_patients=subspace.patients)
        _check_memory(subspace_bytes(parameters, subspace.rank, subspace.patients), limits)
    _check_weights("weights", arrays, layout)
    if codec is not None:
        _check_weights("autoencoder", codec, kept)


def rehearse(trainer: "PrivateTrainer", job: StageJob, limits: Limits) -> float:
    """Put a made-up record through the private step; seconds that all records of the round may take together.

    Raises:
        SiteRefused: It needs more memory or time than the policy allows, or does not pass through the step.
    """
    if job.privacy is None:
        raise AssertionError("only private steps are rehearsed")
    try:
        _check_memory(trainer.needed_bytes(), limits, trainer.device)
        if trainer.device != HOST:
            trainer.rehearse()  # an accelerator loads its kernels the first time
        seconds = trainer.rehearse()
    except CmrfedError:
        raise
    except Exception as error:
        raise SiteRefused(
            "the site cannot compute the request: made-up arrays of its size do not pass through the step",
            got=type(error).__name__,
            do="ask for fewer draws or a smaller network",
        ) from error
    budget = record_budget(
        job.privacy.declared_patients, job.privacy.sampling_rate, job.training.local_steps, max(seconds, 1e-6)
    )
    limits.check(round_seconds=budget)
    return budget


def _check_memory(needed: int, limits: Limits, device: torch.device = HOST) -> None:
    """Refuse what the policy does not allow, or the machine or its accelerator does not have."""
    limits.check(memory_gib=needed / GIB)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    there = whole if device == HOST else total_bytes(device) or whole
    if needed > there:
        raise SiteRefused(
            "the site's machine has too little memory for the request",
            got=f"an estimate of {needed / GIB:.1f} GiB",
            do="ask for fewer draws or a smaller network",
        )


def _check_weights(what: str, arrays: State, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    """Refuse weights of other names, layout or types, and ones that are not finite."""
    fault = None
    if set(arrays) != set(layout):
        fault = f"it lacks or adds {', '.join(sorted(set(arrays) ^ set(layout))[:3])}"
    for name in sorted(set(arrays) & set(layout)):
        weight = arrays[name]
        if (weight.dtype, tuple(weight.shape)) != layout[name]:
            kind, shape = layout[name]
            fault = f"{name} is {weight.dtype} {tuple(weight.shape)}, expected {kind} {shape}"
        elif not bool(torch.isfinite(weight).all()):
            fault = f"{name} holds NaN or infinity"
    if fault:
        raise SiteRefused(
            f"the {what} of the request cannot be used",
            got=fault[:500],
            do="send the weights that its settings describe",
        )


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())

"""What a step object must do whatever its noise: stop when it is spent, notice writes, draw anew after a restart."""

import logging
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmrfed.core.errors import PrivacyError
from cmrfed.privacy.audit.canaries import Canary, Tensors
from cmrfed.privacy.audit.checks import Check, Finding, correlation_p, worst_of, yes_or_no
from cmrfed.privacy.audit.tape import MakeStep, Recorder, Tape, make_event
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig
from cmrfed.privacy.event import PrivacyEvent


def spent_steps(
    make_step: MakeStep, noise_multiplier: float, config: MechanismConfig, canaries: list[Canary], device: torch.device
) -> Check:
    """No step more than was paid for, and none after one that failed on the way."""
    faults = []
    event = make_event(noise_multiplier, 1.0, 2)
    recorder = Recorder(make_step, event, config, canaries, len(canaries), device)
    recorder.run()
    if not _refuses(recorder, recorder.records.losses):
        faults.append("a third step was taken where two were paid for")
    faults += _after_errors(make_step, event, config, canaries, device)
    return yes_or_no("steps: as many as were paid for, whatever a record does", "the next one is refused", faults)


def _after_errors(
    make_step: MakeStep, event: PrivacyEvent, config: MechanismConfig, canaries: list[Canary], device: torch.device
) -> Iterator[str]:
    """A record that cannot be read counts as zero: whether a step ended tells who was in it. A leak ends all steps."""
    recorder = Recorder(make_step, event, config, canaries, len(canaries), device)
    before = recorder.module.flat()
    log = logging.getLogger("cmrfed")
    level = log.level
    log.setLevel(logging.ERROR)  # the step may warn of the record that fails here on purpose
    try:
        recorder.steps.step(_failing(recorder, RuntimeError("planned")), learning_rate=1.0)
        if (recorder.module.flat() == before).all():
            yield "no step was taken where a record could not be read"
    except Exception as error:  # whatever it is
        yield f"a record that could not be read ended the step: {type(error).__name__}"
    finally:
        log.setLevel(level)
    recorder = Recorder(make_step, event, config, canaries, len(canaries), device)
    before = recorder.module.flat()
    try:
        recorder.steps.step(_failing(recorder, PrivacyError("planned")), learning_rate=1.0)
        yield "a module that is at fault went unnoticed"
    except PrivacyError:
        if (recorder.module.flat() != before).any():
            yield "the weights moved in a step that was given up"
        if not _refuses(recorder, recorder.records.losses):
            yield "a step was taken after one that was given up"


def _failing(recorder: Recorder, error: Exception) -> Callable[[int], Tensor]:
    def losses(record: int) -> Tensor:
        if record == 3:
            raise error
        return recorder.records.losses(record)

    return losses


def _refuses(recorder: Recorder, losses: Callable[[int], Tensor]) -> bool:
    before = recorder.module.flat()
    try:
        recorder.steps.step(losses, learning_rate=1.0)
    except PrivacyError:
        return bool((recorder.module.flat() == before).all())
    return False


# --- writes beside the gradient -----------------------------------------------------------------
def _writes() -> dict[str, Callable[[Tensors], None]]:
    """Ways in which a forward pass could carry something of a record out of the step without noise."""

    def replace_buffer(module: Tensors) -> None:
        module.kept = module.kept + 1

    def add_buffer(module: Tensors) -> None:
        module.register_buffer("more", torch.ones(1, device=module.device))

    def replace_parameter(module: Tensors) -> None:
        module.frozen = nn.Parameter(module.frozen.detach() + 1, requires_grad=False)

    @torch.no_grad()
    def in_place(tensor: Tensor) -> None:
        tensor.add_(1)

    return {
        "a buffer, in place": lambda module: in_place(module.kept),
        "a buffer, by .data": lambda module: in_place(module.kept.data),
        "a buffer, replaced": replace_buffer,
        "a buffer, added": add_buffer,
        "a frozen parameter, in place": lambda module: in_place(module.frozen),
        "a frozen parameter, by .data": lambda module: in_place(module.frozen.data),
        "a frozen parameter, replaced": replace_parameter,
        "a trained parameter, by .data": lambda module: in_place(module.matrix.data),
        "one number of a frozen parameter": lambda module: in_place(module.frozen.data[:1]),
    }


def noticed_writes(
    make_step: MakeStep, noise_multiplier: float, config: MechanismConfig, canaries: list[Canary], device: torch.device
) -> Check:
    """A forward pass that writes to the module ends the step before anything is released."""
    faults = []
    for name, write in _writes().items():
        recorder = Recorder(make_step, make_event(noise_multiplier, 1.0, 1), config, canaries, 4, device)

        def losses(record: int, recorder: Recorder = recorder, write: Callable[[Tensors], None] = write) -> Tensor:
            values = recorder.records.losses(record)
            if record == 2:
                write(recorder.module)
            return values

        try:
            recorder.steps.step(losses, learning_rate=1.0)
            faults.append(f"not noticed: {name}")
        except PrivacyError:
            continue
        except Exception as error:  # whatever it is, it is not what was asked for
            faults.append(f"{name}: {type(error).__name__}: {error}"[:200])
    return yes_or_no("state: a write to the module while records are read is noticed", "a PrivacyError", faults)


# --- restarts -----------------------------------------------------------------------------------
def fresh_randomness(
    make_step: MakeStep,
    noise_multiplier: float,
    rate: float,
    config: MechanismConfig,
    canaries: list[Canary],
    device: torch.device,
) -> Check:
    """Two step objects for the same event, as after a restart: seeds of the process are the same, noise is not."""
    event = make_event(noise_multiplier, rate, 3)
    count = max(len(canaries), round(60 / rate)) if rate > 0.01 else len(canaries)
    with _rewinding(make_step) as rewind:
        tapes: list[Tape] = []
        for _ in range(2):
            rewind()
            tapes.append(Recorder(make_step, event, config, canaries, count, device).run())
    first, second = tapes
    found = []
    scale = np.linalg.norm(first.noise, axis=1)[:, None] * np.linalg.norm(second.noise, axis=1)[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = (first.noise @ second.noise.T) / scale
    p_values = correlation_p(correlations, first.noise.shape[1])
    worst = np.unravel_index(int(np.argmin(p_values)), p_values.shape)
    about = f"step {worst[0] + 1} before and {worst[1] + 1} after"
    found.append(Finding(about, f"{correlations[worst]:+.3f}", min(1.0, float(p_values.min()) * p_values.size)))
    same = _same_draws(first.seen, second.seen, rate)
    if same is not None:
        found.append(same)
    return worst_of("restart: correlation of the noise before and after", "0", found)


def _same_draws(first: np.ndarray, second: np.ndarray, rate: float) -> Finding | None:
    """Whether the same records were drawn, where that is too unlikely to be chance."""
    chance = float((rate**2 + (1 - rate) ** 2) ** first.size)
    same = bool((first == second).all())
    return Finding("the records drawn", "the same" if same else "others", chance if same else 1.0)


@contextmanager
def _rewinding(make_step: MakeStep) -> Iterator[Callable[[], None]]:
    """Give a function that puts back the randomness that belongs to the process, as a restart does.

    Only generators that outlive a step object: those of torch, numpy and random, and such as this project's modules
    keep. Afterwards they are where the first step object left them, so that nothing that was drawn comes again.
    """
    keepers = _process_generators(make_step)
    start = [read() for read, _ in keepers]
    latest: list[Any] = []

    def rewind() -> None:
        if not latest:
            latest.append(None)
            return
        latest[:] = [[read() for read, _ in keepers]]
        for (_, write), state in zip(keepers, start, strict=True):
            write(state)

    try:
        yield rewind
    finally:
        if latest and latest[0] is not None:
            for (_, write), state in zip(keepers, latest[0], strict=True):
                write(state)


def _numpy_state(generator: np.random.Generator) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    bits = generator.bit_generator
    return lambda: bits.state, lambda state: setattr(bits, "state", state)


def _process_generators(make_step: MakeStep) -> list[tuple[Callable[[], Any], Callable[[Any], None]]]:
    found: list[tuple[Callable[[], Any], Callable[[Any], None]]] = [
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
        (torch.get_rng_state, torch.set_rng_state),
    ]
    if torch.cuda.is_available():
        found.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    module = getattr(make_step, "__module__", "")
    kept = [m for name, m in list(sys.modules.items()) if name == module or name.split(".")[0] == "cmrfed"]
    classes = [value for m in kept for value in vars(m).values() if isinstance(value, type)]
    values = {id(v): v for owner in [*kept, *classes] for v in list(vars(owner).values())}
    for value in values.values():
        if isinstance(value, torch.Generator):
            found.append((value.get_state, value.set_state))  # type: ignore[arg-type]
        elif isinstance(value, np.random.Generator):
            found.append(_numpy_state(value))
        elif isinstance(value, np.random.RandomState):
            found.append((value.get_state, value.set_state))
        elif isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
            found.append((value.getstate, value.setstate))
    return found

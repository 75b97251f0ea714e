"""Does the optimizer see the noisy gradient and nothing else?

The gradients that reach it are recorded. They have to be clipped sums with the promised noise, and an optimizer of the
same kind that is given these alone has to end in the same weights and the same moments.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from cmrfed.privacy.audit.canaries import Canary, Tensors, flatten
from cmrfed.privacy.audit.checks import Check, yes_or_no
from cmrfed.privacy.audit.noise import scale
from cmrfed.privacy.audit.tape import MakeStep, Recorder, Tape
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig
from cmrfed.privacy.event import PrivacyEvent

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
CLOSE = 1e-6
"""Largest difference of weights and moments, over their size: the same arithmetic twice."""


class _Recorded(Recorder):
    """Steps with another optimizer, whose gradients are recorded."""

    def __init__(self, make_step: MakeStep, make_optimizer: MakeOptimizer, *args: object) -> None:
        self.gradients: list[list[Tensor]] = []
        self.optimizer: torch.optim.Optimizer

        def make(module: nn.Module, _: object, event: PrivacyEvent, count: int, config: MechanismConfig) -> object:
            assert isinstance(module, Tensors)  # noqa: S101
            self.optimizer = make_optimizer(module.trained)
            self.optimizer.register_step_pre_hook(lambda *_: self._record(module))
            return make_step(module, self.optimizer, event, count, config)

        super().__init__(make, *args)  # type: ignore[arg-type]

    def _record(self, module: Tensors) -> None:
        self.gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.trained])


def check_optimizer(
    make_step: MakeStep,
    make_optimizer: MakeOptimizer,
    event: PrivacyEvent,
    config: MechanismConfig,
    canaries: list[Canary],
    count: int,
    device: torch.device,
) -> list[Check]:
    """Lines on what the optimizer was given and what it did with it."""
    recorder = _Recorded(make_step, make_optimizer, event, config, canaries, count, device)
    tape = recorder.run()
    faults = list(tape.faults)
    if len(recorder.gradients) != event.steps:
        faults.append(f"the optimizer stepped {len(recorder.gradients)} times in {event.steps} steps")
        return [yes_or_no("optimizer: weights and moments follow from the noisy gradients", "bit by bit", faults)]
    divisor = event.sampling_rate * config.declared_patients / config.clip_norm
    released = np.stack([flatten(g) for g in recorder.gradients]) * divisor
    given = Tape(event, config, canaries, tape.seen, released)
    line = scale(given.noise)
    line = Check("optimizer: noise in its gradients / (σ·C)", line.measured, line.expected, line.p_value)
    faults += _differences(recorder, make_optimizer)
    return [line, yes_or_no("optimizer: weights and moments follow from the noisy gradients", "the same", faults)]


def _differences(recorder: _Recorded, make_optimizer: MakeOptimizer) -> list[str]:
    """Where weights or moments are not those of an optimizer that was given the recorded gradients alone."""
    twin = Tensors().to(recorder.module.device)
    optimizer, rates = make_optimizer(twin.trained), recorder.rates
    for number, gradients in enumerate(recorder.gradients):
        for parameter, gradient in zip(twin.trained, gradients, strict=True):
            parameter.grad = gradient.clone()
        for group in optimizer.param_groups:
            group["lr"] = rates[number]
        optimizer.step()
    pairs = {"weights": (flatten(recorder.module.trained), flatten(twin.trained))}
    for theirs, ours in zip(recorder.module.trained, twin.trained, strict=True):
        left, right = recorder.optimizer.state.get(theirs, {}), optimizer.state.get(ours, {})
        if set(left) != set(right):
            return [f"the optimizer keeps {sorted(left)}, expected {sorted(right)}"]
        for name in left:
            if torch.is_tensor(left[name]):
                pairs[f"{name} {id(theirs)}"] = (flatten([left[name]]), flatten([right[name]]))
    found = []
    for name, (got, expected) in pairs.items():
        size = float(np.abs(expected).max(initial=0.0))
        if not float(np.abs(got - expected).max(initial=0.0)) <= CLOSE * size:
            found.append(f"{name.split()[0]} hold something else than the noisy gradients")
    return sorted(set(found))

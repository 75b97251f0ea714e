"""Steps of a step object on canaries, recorded: who was seen, what was released, and what was touched meanwhile."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from cmrfed.core.artifacts import digest_state
from cmrfed.privacy.audit.canaries import Canary, Records, Tensors
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig, PrivateStep
from cmrfed.privacy.event import PrivacyEvent

MakeStep = Callable[[nn.Module, torch.optim.Optimizer, PrivacyEvent, int, MechanismConfig], PrivateStep]
"""What makes the step that is audited, such as `PrivateSGD`."""
_RATES = (0.5, 0.25, 0.8)
"""Learning rates of successive steps: noise that is added after them would have another size in each."""


def make_event(noise_multiplier: float, sampling_rate: float, steps: int, number: int = 1) -> PrivacyEvent:
    """An event that pays for an audit: no ledger knows it, since no patient is in it."""
    return PrivacyEvent(
        noise_multiplier=noise_multiplier,
        sampling_rate=sampling_rate,
        steps=steps,
        run="audit",
        stage="audit",
        round=number,
        digest="",
    )


@dataclass
class Tape:
    """What T steps on R records of D numbers did.

    seen: int (T, R), how often each record was asked for its losses.
    released: float64 (T, D), what each step released: the noisy sum in units of C.
    noise: float64 (T, D), the same without the clipped gradients of the records that were seen, in units of σ·C.
    faults: what the step did that no step may do, whatever its noise.
    """

    event: PrivacyEvent
    config: MechanismConfig
    canaries: list[Canary]
    seen: np.ndarray
    released: np.ndarray
    noise: np.ndarray = field(init=False)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.noise = (self.released - self.sums()) / self.event.noise_multiplier

    def sums(self) -> np.ndarray:
        """Clipped gradients of the records that each step read, summed, in units of C: float64 (T, D)."""
        return self.by_kind() @ np.stack([c.contribution(self.config.clip_norm) for c in self.canaries])

    def by_kind(self) -> np.ndarray:
        """How many records of each kind were seen in each step, float64 (T, kinds)."""
        counts = np.zeros((len(self.seen), len(self.canaries)))
        for kind in range(len(self.canaries)):
            counts[:, kind] = self.seen[:, kind :: len(self.canaries)].sum(1)
        return counts


class Recorder:
    """One step object on canaries, with plain SGD: what it releases is read from the weights.

    Args:
        make_step: What makes the step object.
        event: How much noise, which sampling rate, how many steps.
        config: Bound, public denominator and precision.
        canaries: The kinds of records.
        count: R.
        device: Where the module is.
    """

    def __init__(
        self,
        make_step: MakeStep,
        event: PrivacyEvent,
        config: MechanismConfig,
        canaries: list[Canary],
        count: int,
        device: torch.device,
    ) -> None:
        self.event, self.config, self.canaries = event, config, canaries
        self.module = Tensors().to(device)
        self.records = Records(self.module, canaries, count, config.clip_norm)
        optimizer = torch.optim.SGD(self.module.trained, lr=1.0)
        self.steps = make_step(self.module, optimizer, event, count, config)
        self.rates = [_RATES[number % len(_RATES)] for number in range(event.steps)]
        self.faults: list[str] = []

    def run(self) -> Tape:
        """Take all steps that the event pays for."""
        seen = np.zeros((self.event.steps, self.records.count), int)
        released = np.full((self.event.steps, len(self.module.flat())), np.nan)
        fixed = digest_state(_untrained(self.module))
        for number in range(self.event.steps):
            try:
                released[number], seen[number] = self._step(self.rates[number])
            except Exception as error:  # whatever it is, the step failed on a valid batch
                self._fault(f"step {number + 1} raised {type(error).__name__}: {error}"[:300])
                break
        if digest_state(_untrained(self.module)) != fixed:
            self._fault("untrained state changed: a frozen parameter or a buffer of the module")
        return Tape(self.event, self.config, self.canaries, seen, released, faults=self.faults)

    def _step(self, rate: float) -> tuple[np.ndarray, np.ndarray]:
        before = [p.detach().clone() for p in self.module.trained]
        self.records.seen, self.records.watch = [], lambda: self._watch(before)
        at_first = self.module.flat()
        self.steps.step(self.records.losses, learning_rate=rate)
        divisor = self.event.sampling_rate * self.config.declared_patients
        released = (at_first - self.module.flat()) / rate * divisor / self.config.clip_norm
        self._leftovers()
        return released, np.bincount(self.records.seen, minlength=self.records.count)

    def _watch(self, before: list[Tensor]) -> None:
        now = self.module.trained
        if not all(torch.equal(a, b) for a, b in zip(before, now, strict=True)):
            self._fault("the weights moved while records were still being read")

    def _leftovers(self) -> None:
        for name in ("grad", "summed_grad", "grad_sample"):
            if any(getattr(p, name, None) is not None for p in self.module.trained):
                self._fault(f"parameters keep {name} after the step: sums may be left there without noise")

    def _fault(self, text: str) -> None:
        if text not in self.faults:
            self.faults.append(text)


def _untrained(module: nn.Module) -> dict[str, Tensor]:
    """Buffers and parameters that require no gradient, by name."""
    frozen = {name: p.detach() for name, p in module.named_parameters() if not p.requires_grad}
    return {**frozen, **{f"buffer {name}": b for name, b in module.named_buffers()}}

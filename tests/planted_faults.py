"""DP-SGD by hand, slow and obvious, and the same with one fault each: what an audit has to catch."""

import math
import random
import secrets
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cmrfed.core.errors import PrivacyError
from cmrfed.privacy.dpsgd.clipping import StateGuard, record_gradient
from cmrfed.privacy.dpsgd.mechanism import StepNotes
from cmrfed.privacy.dpsgd.noise import entropy_generator

_COIN = secrets.SystemRandom()


class ByHand:
    """A correct private step that shares no clipping, noise or sampling with the project's own."""

    def __init__(self, module, optimizer, event, records, config):
        self.module, self.optimizer, self.event, self.records, self.config = module, optimizer, event, records, config
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.C, self.sigma, self.q, self.N = (
            config.clip_norm,
            event.noise_multiplier,
            event.sampling_rate,
            config.declared_patients,
        )
        self.left, self.taken = event.steps, 0
        self.random = entropy_generator(self.parameters[0].device)
        self.untrained = StateGuard(module, but=self.parameters)

    # --- the parts that a fault replaces ----------------------------------------------------------
    def sample(self):
        return [i for i in range(self.records) if _COIN.random() < self.q]

    def gradient(self, losses_of, record):
        try:
            return record_gradient(losses_of(record), self.parameters)
        except RuntimeError:
            return None

    def factor(self, gradient):
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient))
        return min(1.0, self.C / norm) if norm else 1.0

    def clip(self, gradient):
        factor = self.factor(gradient)
        return [g * factor for g in gradient]

    def sum(self, sampled, losses_of):
        total = [torch.zeros_like(p) for p in self.parameters]
        for record in sampled:
            gradient = self.gradient(losses_of, record)
            if gradient is not None and all(torch.isfinite(g).all() for g in gradient):
                total = [t + g for t, g in zip(total, self.clip(gradient), strict=True)]
        return total

    def normal(self, parameter):
        return torch.randn(parameter.shape, generator=self.random, device=parameter.device)

    def noise(self, sampled):
        return [self.normal(p) * (self.sigma * self.C) for p in self.parameters]

    def divisor(self, sampled):
        return self.q * self.N

    def guard(self):
        return StateGuard(self.module)

    def release(self, total, noise, divisor, rate):
        for parameter, summed, added in zip(self.parameters, total, noise, strict=True):
            parameter.grad = (summed + added) / divisor
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] if rate is None else rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, losses_of, *, learning_rate=None):
        if not self.left:
            raise PrivacyError("no step that was paid for is left")
        left, self.left = self.left - 1, 0
        guard = self.guard()
        sampled = self.sample()
        total = self.sum(sampled, losses_of)
        guard.check()
        self.untrained.check()
        self.release(total, self.noise(sampled), self.divisor(sampled), learning_rate)
        self.left, self.taken = left, self.taken + 1
        return StepNotes(len(sampled), 0, 0, None)


FAULTS: dict[str, type[ByHand]] = {}
"""Each fault by what is wrong with it."""


def fault(name: str) -> Callable[[type[ByHand]], type[ByHand]]:
    def note(kind: type[ByHand]) -> type[ByHand]:
        FAULTS[name] = kind
        return kind

    return note


# --- size of the noise ----------------------------------------------------------------------------
def scaled(factor: float) -> type[ByHand]:
    class Scaled(ByHand):
        def noise(self, sampled):
            return [factor * n for n in super().noise(sampled)]

    return Scaled


FAULTS["no noise"] = scaled(0.0)
FAULTS["half of the noise"] = scaled(0.5)
FAULTS["90 % of the noise"] = scaled(0.9)
FAULTS["97 % of the noise"] = scaled(0.97)
FAULTS["110 % of the noise"] = scaled(1.1)
FAULTS["twice the noise"] = scaled(2.0)


@fault("noise multiplier without the clipping bound")
class NoiseWithoutBound(ByHand):
    def noise(self, sampled):
        return [self.normal(p) * self.sigma for p in self.parameters]


@fault("noise multiplier squared")
class NoiseSquared(ByHand):
    def noise(self, sampled):
        return [self.normal(p) * (self.sigma**2 * self.C) for p in self.parameters]


@fault("noise multiplier and clipping bound swapped")
class Swapped(ByHand):
    def __init__(self, *args):
        super().__init__(*args)
        self.C, self.sigma = self.sigma, self.C


@fault("noise in the first step only")
class FirstStep(ByHand):
    def noise(self, sampled):
        return [n * (self.taken == 0) for n in super().noise(sampled)]


@fault("one step of many without noise")
class OneStepWithout(ByHand):
    def noise(self, sampled):
        return [n * (self.taken != 3) for n in super().noise(sampled)]


@fault("noise that decays over the steps")
class Decaying(ByHand):
    def noise(self, sampled):
        return [n * 0.99**self.taken for n in super().noise(sampled)]


@fault("no noise on matrices")
class NotOnMatrices(ByHand):
    def noise(self, sampled):
        return [n * (n.ndim != 2) for n in super().noise(sampled)]


@fault("no noise on convolution kernels")
class NotOnKernels(ByHand):
    def noise(self, sampled):
        return [n * (n.ndim != 4) for n in super().noise(sampled)]


@fault("no noise on single numbers")
class NotOnNumbers(ByHand):
    def noise(self, sampled):
        return [n * (n.numel() > 1) for n in super().noise(sampled)]


@fault("90 % of the noise in one tensor")
class LessInOneTensor(ByHand):
    def noise(self, sampled):
        return [n * (0.9 if n.ndim == 4 else 1.0) for n in super().noise(sampled)]


@fault("noise divided over the tensors")
class DividedOverTensors(ByHand):
    def noise(self, sampled):
        return [n / math.sqrt(len(self.parameters)) for n in super().noise(sampled)]


@fault("no noise in the first row of each tensor")
class NotInFirstRow(ByHand):
    def noise(self, sampled):
        made = super().noise(sampled)
        for n in made:
            if len(n) > 1:
                n[0] = 0
        return made


@fault("noise scaled with the batch that was drawn")
class ScaledWithBatch(ByHand):
    def noise(self, sampled):
        return [n * math.sqrt(len(sampled) / (self.q * self.records or 1)) for n in super().noise(sampled)]


@fault("no noise where nobody was drawn")
class NoNoiseWhenEmpty(ByHand):
    def noise(self, sampled):
        return [n * bool(sampled) for n in super().noise(sampled)]


@fault("noise scaled with the norm of the sum")
class ScaledWithSum(ByHand):
    def sum(self, sampled, losses_of):
        self.total = super().sum(sampled, losses_of)
        return self.total

    def noise(self, sampled):
        norm = math.sqrt(sum(float(t.square().sum()) for t in self.total)) / self.C
        return [n * min(1.0, norm) for n in super().noise(sampled)]


@fault("noise after the learning rate")
class AfterTheRate(ByHand):
    def release(self, total, noise, divisor, rate):
        super().release(total, [torch.zeros_like(n) for n in noise], divisor, rate)
        with torch.no_grad():
            for p, n in zip(self.parameters, noise, strict=True):
                p.sub_(n / divisor)


@fault("noise after the division")
class AfterTheDivision(ByHand):
    def release(self, total, noise, divisor, rate):
        super().release(total, [n * divisor for n in noise], divisor, rate)


@fault("noise before clipping, by record")
class BeforeClipping(ByHand):
    def clip(self, gradient):
        return super().clip([g + n for g, n in zip(gradient, super().noise([]), strict=True)])

    def noise(self, sampled):
        return [torch.zeros_like(p) for p in self.parameters]


@fault("noise by record")
class ByRecord(ByHand):
    def noise(self, sampled):
        return [n * math.sqrt(len(sampled)) for n in super().noise(sampled)]


# --- law of the noise -----------------------------------------------------------------------------
def law(draw: Callable[[torch.Size], Tensor]) -> type[ByHand]:
    class Law(ByHand):
        def normal(self, parameter):
            return draw(parameter.shape).to(parameter.device)

    return Law


_ROOT3 = math.sqrt(3)


def _entropy() -> np.random.Generator:
    return np.random.default_rng(secrets.randbits(128))


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


FAULTS["uniform noise"] = law(lambda shape: _tensor(_entropy().uniform(-_ROOT3, _ROOT3, tuple(shape))))
FAULTS["Laplace noise"] = law(lambda shape: _tensor(_entropy().laplace(0, math.sqrt(0.5), tuple(shape))))
FAULTS["heavy-tailed noise"] = law(lambda shape: _tensor(_entropy().standard_t(8, tuple(shape)) * math.sqrt(6 / 8)))
FAULTS["logistic noise"] = law(lambda s: _tensor(_entropy().logistic(0, _ROOT3 / math.pi, tuple(s))))
FAULTS["noise of signs"] = law(lambda shape: _tensor(_entropy().integers(0, 2, tuple(shape)) * 2 - 1))
FAULTS["noise clipped at 3 standard deviations"] = law(lambda s: _tensor(_entropy().normal(size=tuple(s)).clip(-3, 3)))
FAULTS["noise rounded to tenths"] = law(lambda shape: _tensor(_entropy().normal(size=tuple(shape)).round(1)))
FAULTS["noise in float16"] = law(lambda s: _tensor(_entropy().normal(size=tuple(s)).astype(np.float16)))
FAULTS["noise in bfloat16"] = law(lambda s: _tensor(_entropy().normal(size=tuple(s))).bfloat16().float())
FAULTS["noise in 256 levels"] = law(lambda s: _tensor((_entropy().normal(size=tuple(s)) * 32).round() / 32))
FAULTS["absolute values of noise"] = law(lambda shape: _tensor(np.abs(_entropy().normal(size=tuple(shape)))))
FAULTS["skewed noise"] = law(lambda s: _tensor((_entropy().gamma(20, 1, tuple(s)) - 20) / math.sqrt(20)))
FAULTS["noise with a bias"] = law(lambda shape: _tensor(_entropy().normal(0.05, 1, tuple(shape))))
FAULTS["one number for a whole tensor"] = law(lambda shape: torch.full(shape, _entropy().normal()))
FAULTS["one row of noise for a whole tensor"] = law(
    lambda shape: _tensor(_entropy().normal(size=tuple(shape[1:]))).expand(shape).clone()
)


# --- noise that can be known or repeats -----------------------------------------------------------
@fault("the same noise in every step")
class SameEveryStep(ByHand):
    def noise(self, sampled):
        if not hasattr(self, "kept"):
            self.kept = super().noise(sampled)
        return self.kept


@fault("two steps share their noise")
class SharedByTwo(ByHand):
    def noise(self, sampled):
        if self.taken % 2 == 0:
            self.kept = super().noise(sampled)
        return self.kept


@fault("noise that is taken back in the next step")
class TakenBack(SharedByTwo):
    def noise(self, sampled):
        return [n if self.taken % 2 == 0 else -n for n in super().noise(sampled)]


@fault("half of the noise of a step returns in the next")
class HalfReturns(ByHand):
    def noise(self, sampled):
        fresh = super().noise(sampled)
        kept = getattr(self, "kept", fresh)
        self.kept = fresh
        return [math.sqrt(0.5) * (f + k) for f, k in zip(fresh, kept, strict=True)] if self.taken else fresh


@fault("noise of one step shifted in the next")
class Shifted(SameEveryStep):
    def noise(self, sampled):
        return [n.flatten().roll(self.taken).view_as(n) for n in super().noise(sampled)]


@fault("tensors share their noise")
class SharedByTensors(ByHand):
    def noise(self, sampled):
        most = max(p.numel() for p in self.parameters)
        one = torch.randn(most, generator=self.random) * (self.sigma * self.C)
        return [one[: p.numel()].view(p.shape) for p in self.parameters]


@fault("tensors share their noise, reversed")
class ReversedNoise(SharedByTensors):
    def noise(self, sampled):
        made = super().noise(sampled)
        return [n.flatten().flip(0).view_as(n) if i % 2 else n for i, n in enumerate(made)]


@fault("noise of opposite pairs within a tensor")
class OppositePairs(ByHand):
    def normal(self, parameter):
        whole = super().normal(parameter).flatten()
        half = len(whole) // 2
        if half:
            whole[half : 2 * half] = -whole[:half]
        return whole.view_as(parameter)


@fault("noise from torch's own generator")
class FromTorch(ByHand):
    def normal(self, parameter):
        return torch.randn(parameter.shape)


@fault("noise from a seed in the event")
class FromTheEvent(ByHand):
    def __init__(self, *args):
        super().__init__(*args)
        self.random.manual_seed(self.event.round * 1000 + self.event.steps)


@fault("noise from the number of the step")
class FromTheStep(ByHand):
    def noise(self, sampled):
        self.random.manual_seed(self.taken)
        return super().noise(sampled)


@fault("noise from the clock in seconds")
class FromTheClock(ByHand):
    def __init__(self, *args):
        super().__init__(*args)
        self.random.manual_seed(int(time.time()) // 60)


@fault("noise from a generator that the class keeps")
class KeptByTheClass(ByHand):
    kept = torch.Generator().manual_seed(7)

    def normal(self, parameter):
        return torch.randn(parameter.shape, generator=self.kept)


@fault("noise from numpy's own generator")
class FromNumpy(ByHand):
    def normal(self, parameter):
        return _tensor(np.random.standard_normal(tuple(parameter.shape)))


# --- clipping -------------------------------------------------------------------------------------
def factor(change: Callable[[ByHand, list[Tensor]], float]) -> type[ByHand]:
    class Factor(ByHand):
        def factor(self, gradient):
            return change(self, gradient)

    return Factor


def _norm(gradient: list[Tensor], order: float = 2.0) -> float:
    flat = torch.cat([g.flatten() for g in gradient]).double()
    return max(float(torch.linalg.vector_norm(flat, order)), 1e-300)


FAULTS["no clipping"] = factor(lambda step, gradient: 1.0)
FAULTS["clipping to twice the bound"] = factor(lambda step, g: min(1.0, 2 * step.C / _norm(g)))
FAULTS["clipping to 1.05 of the bound"] = factor(lambda step, g: min(1.0, 1.05 * step.C / _norm(g)))
FAULTS["clipping to half the bound"] = factor(lambda step, g: min(1.0, 0.5 * step.C / _norm(g)))
FAULTS["clipping by the largest number"] = factor(lambda step, g: min(1.0, step.C / _norm(g, math.inf)))
FAULTS["clipping by the sum of absolute values"] = factor(lambda step, g: min(1.0, step.C / _norm(g, 1)))
FAULTS["clipping by the squared norm"] = factor(lambda step, g: min(1.0, step.C / _norm(g) ** 2))
FAULTS["every gradient stretched to the bound"] = factor(lambda step, g: step.C / _norm(g))
FAULTS["quiet gradients tripled"] = factor(lambda s, g: s.C / _norm(g) if _norm(g) > s.C / 3 else 3.0)
FAULTS["no clipping up to twice the bound"] = factor(
    lambda step, g: 1.0 if _norm(g) < 2 * step.C else step.C / _norm(g)
)
FAULTS["no clipping of the very loud"] = factor(
    lambda step, g: 1.0 if _norm(g) > 500 * step.C else min(1.0, step.C / _norm(g))
)
FAULTS["norm of the first tensor alone"] = factor(lambda step, g: min(1.0, step.C / _norm(g[:1])))
FAULTS["norm without the single numbers"] = factor(
    lambda step, g: min(1.0, step.C / _norm([part for part in g if part.numel() > 1]))
)


@fault("clipping of each tensor by itself")
class EachTensor(ByHand):
    def clip(self, gradient):
        return [g * min(1.0, self.C / _norm([g])) for g in gradient]


@fault("clipping of each number")
class EachNumber(ByHand):
    def clip(self, gradient):
        return [g.clamp(-self.C, self.C) for g in gradient]


@fault("clipping with the norm of the record before")
class NormBefore(ByHand):
    def factor(self, gradient):
        before, self.before = getattr(self, "before", self.C), _norm(gradient)
        return min(1.0, self.C / before)


@fault("bound adapted to the batch without noise")
class AdaptiveBound(ByHand):
    def sum(self, sampled, losses_of):
        gradients = [g for i in sampled if (g := self.gradient(losses_of, i)) is not None]
        bound = float(np.median([_norm(g) for g in gradients])) if gradients else self.C
        total = [torch.zeros_like(p) for p in self.parameters]
        for g in gradients:
            total = [t + x * min(1.0, bound / _norm(g)) for t, x in zip(total, g, strict=True)]
        return total


@fault("clipping of the batch's mean")
class BatchMean(ByHand):
    def sum(self, sampled, losses_of):
        gradients = [g for i in sampled if (g := self.gradient(losses_of, i)) is not None]
        if not gradients:
            return [torch.zeros_like(p) for p in self.parameters]
        mean = [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]
        return [len(gradients) * g * min(1.0, self.C / _norm(mean)) for g in mean]


@fault("clipping of each draw")
class EachDraw(ByHand):
    def sum(self, sampled, losses_of):
        total = [torch.zeros_like(p) for p in self.parameters]
        for record in sampled:
            losses = losses_of(record)
            for loss in losses if losses.requires_grad else ():
                gradient = torch.autograd.grad(loss, self.parameters, retain_graph=True)
                if all(torch.isfinite(g).all() for g in gradient):
                    total = [t + g for t, g in zip(total, self.clip(list(gradient)), strict=True)]
        return total


@fault("clipping of each draw, then their mean")
class MeanOfDraws(EachDraw):
    def clip(self, gradient):
        return [g / 4 for g in super().clip(gradient)]


@fault("draws summed instead of averaged")
class SummedDraws(ByHand):
    def gradient(self, losses_of, record):
        gradient = super().gradient(losses_of, record)
        return None if gradient is None else [4 * g for g in gradient]


@fault("gradients that are not cleared between records")
class NotCleared(ByHand):
    def sum(self, sampled, losses_of):
        total, kept = [torch.zeros_like(p) for p in self.parameters], [torch.zeros_like(p) for p in self.parameters]
        for record in sampled:
            gradient = self.gradient(losses_of, record)
            if gradient is not None:
                kept = [k + g for k, g in zip(kept, gradient, strict=True)]
                total = [t + g for t, g in zip(total, self.clip(kept), strict=True)]
        return total


@fault("the sum of the step before is not forgotten")
class NotForgotten(ByHand):
    def sum(self, sampled, losses_of):
        fresh = super().sum(sampled, losses_of)
        before, self.before = getattr(self, "before", None), fresh
        return fresh if before is None else [f + b for f, b in zip(fresh, before, strict=True)]


@fault("broken gradients set to zero number by number")
class NanToZero(ByHand):
    def sum(self, sampled, losses_of):
        total = [torch.zeros_like(p) for p in self.parameters]
        for record in sampled:
            losses = losses_of(record).float().mean()
            if losses.requires_grad:
                gradient = torch.autograd.grad(losses, self.parameters)
                gradient = [torch.nan_to_num(g, nan=self.C, posinf=self.C, neginf=-self.C) for g in gradient]
                total = [t + g for t, g in zip(total, self.clip(gradient), strict=True)]
        return total


@fault("a broken record empties the batch")
class BrokenEmpties(ByHand):
    def sum(self, sampled, losses_of):
        gradients = [self.gradient(losses_of, i) for i in sampled]
        total = [torch.zeros_like(p) for p in self.parameters]
        if all(g is not None for g in gradients):
            for g in gradients:
                total = [t + x for t, x in zip(total, self.clip(g), strict=True)]
        return total


@fault("a broken record ends the step")
class BrokenEndsStep(ByHand):
    def release(self, total, noise, divisor, rate):
        if not self.broken:
            super().release(total, noise, divisor, rate)

    def sum(self, sampled, losses_of):
        self.broken = False
        return super().sum(sampled, losses_of)

    def gradient(self, losses_of, record):
        gradient = super().gradient(losses_of, record)
        self.broken |= gradient is None
        return gradient


@fault("a broken record poisons the weights")
class Poisons(ByHand):
    def sum(self, sampled, losses_of):
        total = [torch.zeros_like(p) for p in self.parameters]
        for record in sampled:
            losses = losses_of(record).float().mean()
            if losses.requires_grad:
                gradient = torch.autograd.grad(losses, self.parameters)
                total = [t + g for t, g in zip(total, self.clip(gradient), strict=True)]
        return total


@fault("records weighted by their loss")
class WeightedByLoss(ByHand):
    def gradient(self, losses_of, record):
        losses = losses_of(record)
        gradient = record_gradient(losses, self.parameters)
        return None if gradient is None else [g * float(1.5 - losses.detach().mean()) for g in gradient]

    def clip(self, gradient):
        return [1.02 * g for g in super().clip(gradient)]


@fault("every second gradient with the wrong sign")
class WrongSign(ByHand):
    def clip(self, gradient):
        self.turn = not getattr(self, "turn", False)
        return [g if self.turn else -g for g in super().clip(gradient)]


# --- sampling -------------------------------------------------------------------------------------
def sampler(draw: Callable[[ByHand], list[int]]) -> type[ByHand]:
    class Sampler(ByHand):
        def sample(self):
            return draw(self)

    return Sampler


def _coins(step: ByHand, rate: float) -> list[int]:
    return [i for i in range(step.records) if _COIN.random() < rate]


def _some(step: ByHand) -> int:
    return round(step.q * step.records)


FAULTS["batches of a fixed size"] = sampler(lambda s: _COIN.sample(range(s.records), _some(s)))
FAULTS["draws with replacement"] = sampler(lambda s: [_COIN.randrange(s.records) for _ in range(_some(s))])
FAULTS["everybody in every step"] = sampler(lambda step: list(range(step.records)))
FAULTS["always the same records"] = sampler(lambda step: list(range(_some(step))))
FAULTS["twice the sampling rate"] = sampler(lambda step: _coins(step, min(1.0, 2 * step.q)))
FAULTS["half the sampling rate"] = sampler(lambda step: _coins(step, step.q / 2))
FAULTS["a sampling rate of 1 - (1 - q)^2"] = sampler(lambda step: _coins(step, 1 - (1 - step.q) ** 2))
FAULTS["the last record never drawn"] = sampler(lambda step: _coins(step, step.q)[: step.records - 1 or None][:-1])
FAULTS["one coin for all"] = sampler(lambda s: list(range(s.records)) if _COIN.random() < s.q else [])
FAULTS["one coin for pairs of records"] = sampler(
    lambda s: [j for i in range(0, s.records, 2) if _COIN.random() < s.q for j in (i, i + 1) if j < s.records]
)
FAULTS["never an empty step"] = sampler(lambda s: _coins(s, s.q) or [0][: s.records])
FAULTS["records drawn with a seed"] = sampler(lambda s: [i for i in range(s.records) if random.random() < s.q])


@fault("epochs of a shuffled list")
class Epochs(ByHand):
    def sample(self):
        kept = getattr(self, "order", [])
        if len(kept) < _some(self):
            kept = kept + _COIN.sample(range(self.records), self.records)
        taken, self.order = kept[: _some(self)], kept[_some(self) :]
        return sorted(set(taken))


@fault("coins tossed once for two steps")
class CoinsKept(ByHand):
    def sample(self):
        if self.taken % 2 == 0:
            self.drawn = super().sample()
        return self.drawn


@fault("who sat out is in the next step")
class TurnAbout(ByHand):
    def sample(self):
        before = getattr(self, "drawn", None)
        fresh = super().sample()
        self.drawn = fresh if before is None or self.taken % 2 == 0 else [
            i for i in range(self.records) if i not in set(before)
        ]  # fmt: skip
        return self.drawn


@fault("loud records seldom used")
class LoudSeldom(ByHand):
    def clip(self, gradient):
        unused = _norm(gradient) > 100 * self.C and _COIN.random() < 0.5
        return [g * (not unused) for g in super().clip(gradient)]


@fault("broken records drawn again until they are whole")
class DrawnAgain(ByHand):
    def gradient(self, losses_of, record):
        gradient = super().gradient(losses_of, record)
        while gradient is None:
            gradient = super().gradient(losses_of, _COIN.randrange(self.records))
        return gradient


# --- denominators, steps and optimizer ------------------------------------------------------------
@fault("the real batch size as denominator")
class RealBatch(ByHand):
    def divisor(self, sampled):
        return max(1, len(sampled))


@fault("the real number of records in the denominator")
class RealNumber(ByHand):
    def divisor(self, sampled):
        return self.q * max(1, self.records)


@fault("no denominator")
class NoDenominator(ByHand):
    def divisor(self, sampled):
        return 1.0


@fault("no step where nobody was drawn")
class NoEmptyStep(ByHand):
    def release(self, total, noise, divisor, rate):
        if any(t.any() for t in total):
            super().release(total, noise, divisor, rate)


@fault("learning rate scaled with the batch")
class RateWithBatch(ByHand):
    def sample(self):
        self.drawn = super().sample()
        return self.drawn

    def release(self, total, noise, divisor, rate):
        super().release(total, noise, divisor, (rate or 1.0) * len(self.drawn) / (self.q * self.records or 1))


@fault("the wrong learning rate")
class ConstantRate(ByHand):
    def release(self, total, noise, divisor, rate):
        super().release(total, noise, divisor, 1.0)


@fault("moments of gradients without noise")
class RawMoments(ByHand):
    def release(self, total, noise, divisor, rate):
        super().release(total, noise, divisor, rate)
        for parameter, summed in zip(self.parameters, total, strict=True):
            if "exp_avg" in self.optimizer.state[parameter]:
                self.optimizer.state[parameter]["exp_avg"].copy_(summed / divisor)


@fault("noise added to the weights behind the optimizer")
class BehindTheOptimizer(ByHand):
    def release(self, total, noise, divisor, rate):
        super().release(total, [0 * n for n in noise], divisor, rate)
        with torch.no_grad():
            for p, n in zip(self.parameters, noise, strict=True):
                p.sub_((rate or 1.0) * n / divisor)


@fault("weight decay from the data")
class DecayFromData(ByHand):
    def release(self, total, noise, divisor, rate):
        size = math.sqrt(sum(float(t.square().sum()) for t in total)) / self.C
        super().release(total, noise, divisor, rate)
        with torch.no_grad():
            for p in self.parameters:
                p.mul_(1 - 1e-2 * size)


@fault("two optimizer steps of one")
class TwoSteps(ByHand):
    def release(self, total, noise, divisor, rate):
        super().release([t / 2 for t in total], [n / 2 for n in noise], divisor, rate)
        super().release([t / 2 for t in total], [n / 2 for n in noise], divisor, rate)


@fault("the better of two noises by the loss")
class BetterOfTwo(ByHand):
    def noise(self, sampled):
        first, second = super().noise(sampled), super().noise(sampled)
        pulls = [sum(float((n * t).sum()) for n, t in zip(made, self.total, strict=True)) for made in (first, second)]
        return first if pulls[0] > pulls[1] else second

    def sum(self, sampled, losses_of):
        self.total = super().sum(sampled, losses_of)
        return self.total


@fault("a step of each record")
class StepOfEach(ByHand):
    def sum(self, sampled, losses_of):
        total = super().sum(sampled[:-1], losses_of)
        with torch.no_grad():
            for p, t in zip(self.parameters, total, strict=True):
                p.sub_(t / self.divisor(sampled))
        return super().sum(sampled[-1:], losses_of)

    def guard(self):
        return StateGuard(self.module, but=self.parameters)


@fault("the sum without noise is left in the gradients")
class LeftInGradients(ByHand):
    def release(self, total, noise, divisor, rate):
        super().release(total, noise, divisor, rate)
        for p, t in zip(self.parameters, total, strict=True):
            p.grad = t


@fault("more steps than were paid for")
class Unpaid(ByHand):
    def step(self, losses_of, *, learning_rate=None):
        self.left = max(self.left, 1)
        return super().step(losses_of, learning_rate=learning_rate)


@fault("goes on after an error")
class GoesOn(ByHand):
    def step(self, losses_of, *, learning_rate=None):
        left = self.left
        try:
            return super().step(losses_of, learning_rate=learning_rate)
        except PrivacyError:
            self.left = left
            raise


@fault("a record that cannot be read ends the step")
class ErrorEnds(ByHand):
    def gradient(self, losses_of, record):
        return record_gradient(losses_of(record), self.parameters)


@fault("stops when the loss is low")
class StopsEarly(ByHand):
    def step(self, losses_of, *, learning_rate=None):
        self.pull = []
        return super().step(losses_of, learning_rate=learning_rate)

    def gradient(self, losses_of, record):
        losses = losses_of(record)
        self.pull.append(float(losses.detach().mean()))
        return record_gradient(losses, self.parameters)

    def release(self, total, noise, divisor, rate):
        if self.taken < 5 or np.nanmean(self.pull or [0]) > 0:
            super().release(total, noise, divisor, rate)


# --- state ----------------------------------------------------------------------------------------
class _Unguarded:
    def check(self) -> None:
        pass


@fault("no guard over the module")
class NoGuard(ByHand):
    def __init__(self, *args):
        super().__init__(*args)
        self.untrained = _Unguarded()

    def guard(self):
        return _Unguarded()


@fault("a guard that counts versions of buffers alone")
class VersionsOfBuffers(NoGuard):
    def guard(self):
        module = self.module

        class Guard:
            def __init__(self):
                self.seen = self.state()

            def state(self):
                return {name: (id(b), b._version) for name, b in module.named_buffers()}

            def check(self):
                if self.state() != self.seen:
                    raise PrivacyError("a buffer was written")

        return Guard()


@fault("statistics of the batch in a buffer")
class StatisticsInBuffer(NoGuard):
    def release(self, total, noise, divisor, rate):
        super().release(total, noise, divisor, rate)
        for buffer in self.module.buffers():
            buffer.data.add_(float(total[0].mean()))


@fault("a frozen parameter that moves")
class FrozenMoves(NoGuard):
    def release(self, total, noise, divisor, rate):
        super().release(total, noise, divisor, rate)
        for p in self.module.parameters():
            if not p.requires_grad:
                p.data[:1].add_(float(total[0].flatten()[0]))


@fault("an average of weights without noise")
class AverageWithoutNoise(NoGuard):
    def __init__(self, *args):
        super().__init__(*args)
        self.raw = [p.detach().clone() for p in self.parameters]

    def release(self, total, noise, divisor, rate):
        super().release(total, noise, divisor, rate)
        self.raw = [r - (rate or 1.0) * t / divisor for r, t in zip(self.raw, total, strict=True)]
        for p, r in zip(self.parameters, self.raw, strict=True):
            p.data.lerp_(r, 0.05)


@fault("a trained parameter written before the noise")
class WrittenBefore(NoGuard):
    def sum(self, sampled, losses_of):
        total = super().sum(sampled, losses_of)
        self.parameters[1].data.sub_(1e-3 * total[1])
        return total

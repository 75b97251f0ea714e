import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cmrfed.core.errors import PrivacyError
from cmrfed.privacy.dpsgd import mechanism
from cmrfed.privacy.dpsgd.clipping import check_module, record_gradient
from cmrfed.privacy.dpsgd.mechanism import MechanismConfig, PrivateSGD
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.settings import (
    LARGEST_CLIP_NORM,
    LARGEST_NOISE_MULTIPLIER,
    MOST_PATIENTS,
    SMALLEST_CLIP_NORM,
    SMALLEST_NOISE_MULTIPLIER,
    SMALLEST_SAMPLING_RATE,
)


def event(sigma=1.0, q=1.0, steps=100, unit="patient"):
    return PrivacyEvent(
        noise_multiplier=sigma, sampling_rate=q, steps=steps, run="r", stage="s", round=1, digest="d", unit=unit
    )


class Point(nn.Module):
    """One vector, whose gradient for record i is ``pulls[i]``."""

    def __init__(self, pulls):
        super().__init__()
        self.pulls = torch.as_tensor(pulls, dtype=torch.float32)
        self.weight = nn.Parameter(torch.zeros(self.pulls.shape[1]))

    def losses(self, record):
        return (self.weight * self.pulls[record]).sum()


def sgd(module, cost=None, *, clip=1.0, declared=1, precision="fp32", records=None):
    config = MechanismConfig(clip_norm=clip, declared_patients=declared, precision=precision)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0)
    count = len(module.pulls) if records is None else records
    return PrivateSGD(module, optimizer, cost or event(sigma=1e-6), count, config)


def test_each_record_is_clipped_then_summed_then_divided_by_the_public_number():
    point = Point([[3.0, 4.0], [0.3, 0.0], [0.0, -0.5]])
    notes = sgd(point, declared=8).step(point.losses)
    assert torch.allclose(point.weight, -torch.tensor([0.6 + 0.3, 0.8 - 0.5]) / 8, atol=1e-5)
    assert (notes.sampled, notes.clipped, notes.not_finite) == (3, 1, 0)


def test_the_denominator_is_rate_times_declared_patients_whatever_is_sampled(monkeypatch):
    point = Point([[1.0], [1.0], [1.0]])
    monkeypatch.setattr(mechanism, "poisson_sample", lambda count, rate: [1])
    sgd(point, event(sigma=1e-6, q=0.5), declared=40).step(point.losses)
    assert point.weight.item() == pytest.approx(-1 / 20, abs=1e-5)


def test_an_empty_batch_is_a_step_of_noise_alone():
    point = Point(torch.zeros(0, 20_000))
    notes = sgd(point, event(sigma=2.0), clip=3.0, declared=2).step(point.losses)
    assert (notes.sampled, notes.mean_loss) == (0, None)
    assert point.weight.std().item() == pytest.approx(2.0 * 3.0 / 2, rel=0.05)
    assert abs(point.weight.mean().item()) < 0.2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_contributes_nothing(bad):
    point = Point([[bad, 1.0], [0.5, 0.0]])
    notes = sgd(point).step(point.losses)
    assert torch.allclose(point.weight, torch.tensor([-0.5, 0.0]), atol=1e-5)
    assert notes.not_finite == 1


@pytest.mark.parametrize(
    ("sigma", "clip"),
    [(1.0, 7.1e-46), (1.0, 1e-44), (1.0, 1e-40), (1e-40, 1.0), (1e-38, 1e-6), (1.0, 0.0), (1e300, 1e6), (1e35, 1e6)],
)
def test_noise_that_float32_cannot_hold_is_refused(sigma, clip):
    with pytest.raises(PrivacyError, match=r"is no number that float32 can hold.*Do: set clip_norm"):
        mechanism.check_noise(sigma, clip)
    config = MechanismConfig(declared_patients=1).model_copy(update={"clip_norm": clip})
    point = Point([[1.0]])
    with pytest.raises(PrivacyError, match="is no number that float32 can hold"):
        PrivateSGD(point, torch.optim.SGD([point.weight], lr=1e38), event(sigma=sigma), 1, config)


@settings(max_examples=40)
@given(
    sigma=st.floats(SMALLEST_NOISE_MULTIPLIER, LARGEST_NOISE_MULTIPLIER),
    clip=st.floats(SMALLEST_CLIP_NORM, LARGEST_CLIP_NORM),
    q=st.floats(SMALLEST_SAMPLING_RATE, 1),
    declared=st.integers(1, MOST_PATIENTS),
)
def test_within_the_bounds_of_a_request_the_noise_is_what_was_paid_for(sigma, clip, q, declared):
    """Every intermediate: the noise itself, and what the optimizer gets after the division by q · N."""
    point = Point(torch.zeros(0, 4000))
    step = sgd(point, event(sigma=sigma, q=q, steps=1), clip=clip, declared=declared)
    seen, original = [], step.optimizer.add_noise

    def add_noise():
        original()
        seen.append(point.weight.grad.double())

    step.optimizer.add_noise = add_noise
    step.optimizer.original_optimizer.step = lambda: seen.append(point.weight.grad.double())
    step.step(point.losses)
    noised, divided = seen
    assert float(noised.std()) == pytest.approx(sigma * clip, rel=0.1), "4000 values: 0.1 is 9 standard errors"
    assert torch.allclose(divided * (q * declared), noised, rtol=1e-5)


@settings(max_examples=80)
@given(
    size=st.floats(1e-30, 3e38),
    clip=st.floats(SMALLEST_CLIP_NORM, LARGEST_CLIP_NORM),
    count=st.integers(1, 40),
)
def test_no_gradient_however_large_moves_the_sum_by_more_than_the_bound(size, clip, count):
    """C over a norm beyond 1e38 is no normal float32: it could be rounded up by a half."""
    point = Point(torch.full((1, count), size))
    step = sgd(point, clip=clip)
    step._accumulate([0], point.losses)
    assert float(point.weight.summed_grad.norm()) <= clip * (1 + 1e-5)


def test_sums_of_many_records_are_exact():
    """In float32, any number of additions of .01 to 1e6 would leave the sum where it was."""
    point = Point(torch.cat([torch.full((1, 1), 1e6), torch.full((500, 1), 0.01)]))
    step = sgd(point, clip=1e6)
    step._accumulate(list(range(501)), point.losses)
    assert point.weight.summed_grad.item() == pytest.approx(1e6 + 5, abs=1e-3)


def test_more_records_than_sums_are_exact_for_are_refused():
    with pytest.raises(PrivacyError, match=r"too many records.*at most 1,000,000"):
        sgd(Point([[1.0]]), records=1_000_001)


def test_a_gradient_whose_norm_overflows_is_still_bounded():
    point = Point([[1e30, 0.0], [0.5, 0.0]])
    sgd(point).step(point.losses)
    assert point.weight.isfinite().all()
    assert abs(point.weight[0].item()) <= 1.5 + 1e-5


def test_draws_are_averaged_before_clipping():
    point = Point([[4.0, 0.0]])
    scales = torch.tensor([1.0, 0.0, 0.0, 0.0])
    sgd(point, clip=2.0).step(lambda i: scales * (point.weight * point.pulls[i]).sum())
    assert torch.allclose(point.weight, torch.tensor([-1.0, 0.0]), atol=1e-5)


def test_steps_are_as_many_as_were_paid_for():
    point = Point([[1.0]])
    step = sgd(point, event(steps=2))
    step.step(point.losses)
    step.step(point.losses)
    with pytest.raises(PrivacyError, match="no step that was paid for is left"):
        step.step(point.losses)


def test_a_step_that_was_interrupted_cannot_be_followed_by_another():
    point = Point([[1.0], [1.0]])
    step = sgd(point)

    def fails(record):
        if record:
            raise KeyboardInterrupt
        return point.losses(record)

    with pytest.raises(KeyboardInterrupt):
        step.step(fails)
    with pytest.raises(PrivacyError, match="no step that was paid for is left"):
        step.step(point.losses)
    assert point.weight.item() == 0


FAULTS = [RuntimeError("out of memory"), MemoryError(), ValueError("p03"), OSError("disk"), torch.OutOfMemoryError("x")]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize("where", ["losses", "sum"])
def test_a_record_that_cannot_be_computed_contributes_nothing_and_ends_no_step(fault, bad, where, caplog):
    """A failure only where somebody was sampled would tell whether anybody was."""
    point = Point([[0.5, 0.0], [0.5, 0.0], [0.0, 0.5]])
    step = sgd(point, event(sigma=1e-6, steps=2))
    original, calls = step._add, []

    def losses(record):
        if where == "losses" and record == bad:
            raise fault
        return point.losses(record)

    def add(parts):
        calls.append(None)
        step.optimizer.signal_skip_step(True)
        if where == "sum" and (len(calls) - 1) % 3 == bad:
            raise fault
        step.optimizer.forget_signals()
        original(parts)

    step._add = add
    for number in (1, 2):
        notes = step.step(losses)
        expected = -number * (point.pulls.sum(0) - point.pulls[bad])
        assert torch.allclose(point.weight.detach(), expected, atol=1e-5)
        assert (notes.sampled, notes.not_finite) == (3, 1)
    assert type(fault).__name__ in caplog.text, "the site's own log"


def test_a_fault_of_the_module_is_no_fault_of_a_record():
    def losses(record):
        raise PrivacyError("a buffer was written")

    with pytest.raises(PrivacyError, match="a buffer was written"):
        sgd(Point([[1.0]])).step(losses)


@pytest.mark.parametrize("fault", [None, RuntimeError("out of memory")])
def test_a_rehearsal_leaves_no_trace(fault):
    point = Point([[0.5]])
    step = sgd(point)

    def losses():
        if fault:
            raise fault
        return (point.weight * 1e3).sum()

    if fault:
        with pytest.raises(RuntimeError, match="out of memory"):
            step.rehearse(losses)
    else:
        assert step.rehearse(losses) > 0
    assert (point.weight.item(), point.weight.grad, point.weight.grad_sample) == (0, None, None)
    assert step.record_seconds == 0
    step.step(point.losses)
    assert point.weight.item() == pytest.approx(-0.5, abs=1e-4)
    assert step.record_seconds > 0


def test_a_rehearsal_finds_a_module_that_keeps_statistics_before_anybody_is_sampled():
    module = nn.Linear(1, 1)
    module.register_buffer("seen", torch.zeros(1))

    def losses():
        module.seen += 1
        return module(torch.ones(1, 1))

    with pytest.raises(PrivacyError, match="wrote to a buffer"):
        sgd(module, records=1).rehearse(losses)


def test_nothing_without_noise_is_left_behind():
    point = Point([[1.0]])
    step = sgd(point)
    step.step(point.losses)
    assert point.weight.grad is None
    assert point.weight.summed_grad is None
    assert point.weight.grad_sample is None


def test_steps_do_not_add_up_earlier_sums():
    point = Point([[0.5]])
    step = sgd(point)
    for _ in range(4):
        step.step(point.losses)
    assert point.weight.item() == pytest.approx(-2.0, abs=1e-4)


def test_frozen_parameters_stay_and_the_others_are_clipped_among_themselves():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    module[0].requires_grad_(False)
    frozen = module[0].weight.clone()
    trained = module[1].weight.clone()
    config = MechanismConfig(clip_norm=1.0, declared_patients=4)
    optimizer = torch.optim.AdamW(module[1].parameters(), lr=0.1)
    step = PrivateSGD(module, optimizer, event(), 4, config)
    step.step(lambda i: module(torch.full((2, 3), float(i))).square().flatten(), learning_rate=0.01)
    assert torch.equal(module[0].weight, frozen)
    assert not torch.equal(module[1].weight, trained)
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert set(optimizer.state) == set(module[1].parameters())


def test_a_parameter_without_influence_gets_noise_and_no_error():
    module = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    before = module[1].weight.item()
    step = PrivateSGD(module, optimizer, event(), 1, MechanismConfig(declared_patients=1))
    step.step(lambda i: module[0](torch.ones(1, 1)))
    assert module[1].weight.item() != before


def test_bf16_reaches_the_forward_pass_and_never_the_gradient(monkeypatch):
    monkeypatch.setattr("cmrfed.core.precision.has_bf16", lambda device: True)  # as on a processor that has it
    module = nn.Linear(4, 4)
    seen = []

    def losses(record):
        out = module(torch.ones(1, 4))
        seen.append(out.dtype)
        return out.square().mean(1)

    gradient = []
    step = sgd(module, precision="bf16", records=1)
    original = step._add
    step._add = lambda parts: (gradient.extend(p.dtype for p in parts), original(parts))
    step.step(losses)
    assert seen == [torch.bfloat16]
    assert set(gradient) == {torch.float32}


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
            r"BatchNorm2d cannot be trained.*Got: 1: it keeps",
        ),
        (nn.BatchNorm1d(2).eval(), "use GroupNorm"),
        (nn.Sequential(nn.InstanceNorm2d(2, affine=True, track_running_stats=True)), "InstanceNorm2d cannot"),
        (nn.Linear(1, 1).requires_grad_(False), "nothing is left to train"),
        (nn.Linear(1, 1).to(torch.bfloat16), "needs float32 parameters"),
    ],
)
def test_modules_that_cannot_be_private_are_refused(module, words):
    with pytest.raises(PrivacyError, match=words):
        check_module(module)


def test_other_normalisation_is_accepted():
    check_module(nn.Sequential(nn.GroupNorm(1, 2), nn.LayerNorm(2), nn.InstanceNorm2d(2, affine=True)))


@pytest.mark.parametrize("way", ["write", "replace", "add"])
def test_a_forward_pass_that_keeps_statistics_is_noticed(way):
    class Keeps(nn.Linear):
        def __init__(self):
            super().__init__(1, 1)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            if way == "write":
                self.seen += x.mean()
            elif way == "replace":
                self.seen = self.seen + x.mean()
            else:
                self.register_buffer("more", x.mean())
            return super().forward(x)

    module = Keeps()
    before = module.weight.clone()
    with pytest.raises(PrivacyError, match="wrote to a buffer"):
        sgd(module, records=1).step(lambda i: module(torch.ones(1, 1)))
    assert torch.equal(module.weight, before)


def test_an_optimizer_of_other_parameters_is_refused():
    one, two = nn.Linear(1, 1), nn.Linear(1, 1)
    with pytest.raises(PrivacyError, match="train different parameters"):
        PrivateSGD(one, torch.optim.SGD(two.parameters()), event(), 1, MechanismConfig(declared_patients=1))


@pytest.mark.parametrize("cost", [event(sigma=0.0), event(sigma=0.0, unit="none")])
def test_an_event_without_noise_is_not_a_private_step(cost):
    with pytest.raises(PrivacyError, match="has no noise"):
        sgd(Point([[1.0]]), cost)


def test_losses_that_depend_on_nothing_have_gradient_zero():
    weight = nn.Parameter(torch.ones(2))
    assert torch.equal(record_gradient(torch.tensor(1.0), [weight])[0], torch.zeros(2))
    assert record_gradient(torch.tensor(math.nan), [weight]) is None


def test_the_source_of_noise_is_named():
    assert "four" in sgd(Point([[1.0]])).noise_source

"""Predictions turned into one another, as properties in float64 against the formulas written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cmrfed.generators.process import cosine_level, make_process
from cmrfed.generators.settings import DDPMConfig, FlowConfig, ProcessSettings

FAMILIES: dict[str, ProcessSettings] = {
    **{
        f"ddpm {p} {s}": DDPMConfig(prediction=p, schedule=s)
        for p in ("epsilon", "v_prediction", "sample")
        for s in ("squaredcos_cap_v2", "linear")
    },
    "flow": FlowConfig(),
}
FEW = hypothesis_settings(max_examples=40, deadline=None)


def arrays(seed: int, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean array and noise, float64 (B, 2, 3, 3)."""
    rng = torch.Generator().manual_seed(seed)
    clean = torch.rand(count, 2, 3, 3, generator=rng, dtype=torch.float64) * 2 - 1
    return clean, torch.randn(count, 2, 3, 3, generator=rng, dtype=torch.float64)


def slow(settings: ProcessSettings, time: float) -> tuple[float, float]:
    """α and σ of one time, from the definition of the family."""
    if isinstance(settings, FlowConfig):
        return 1 - time / 1000, time / 1000
    betas = make_process(settings).scheduler.betas.double()
    alpha_bar = float(make_process(settings).scheduler.alphas_cumprod.double()[int(time)])
    assert alpha_bar == pytest.approx(float((1 - betas)[: int(time) + 1].prod()), rel=1e-4)
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


@pytest.mark.parametrize("name", FAMILIES)
@FEW
@given(seed=st.integers(0, 2**31), times=st.lists(st.integers(1, 990), min_size=3, max_size=3))
def test_every_prediction_leads_back_to_clean_array_noise_and_velocity(name, seed, times):
    settings = FAMILIES[name]
    process, (clean, noise) = make_process(settings), arrays(seed)
    levels = [slow(settings, t) for t in times]
    a, s = (torch.tensor(part, dtype=torch.float64).view(-1, 1, 1, 1) for part in zip(*levels, strict=True))
    velocity = noise - clean if isinstance(settings, FlowConfig) else a * noise - s * clean
    noisy = a * clean + s * noise
    kind = getattr(settings, "prediction", "flow")
    answer = {"epsilon": noise, "sample": clean, "v_prediction": velocity, "flow": velocity}[kind]
    time = torch.tensor(times, dtype=torch.float64)
    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(process.to_noise(answer, noisy, time), noise, **close)
    torch.testing.assert_close(process.to_clean(answer, noisy, time), clean, rtol=0, atol=1e-8)
    torch.testing.assert_close(process.to_velocity(answer, noisy, time), velocity, **close)
    alpha, sigma = process.alpha_sigma(time)
    torch.testing.assert_close(alpha, a.flatten(), **close)
    torch.testing.assert_close(sigma, s.flatten(), **close)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_time_for_all_items_is_that_time_for_each(name):
    process, (clean, noisy) = make_process(FAMILIES[name]), arrays(1)
    for convert in (process.to_noise, process.to_clean, process.to_velocity):
        one = convert(clean, noisy, torch.tensor(321.0, dtype=torch.float64))
        torch.testing.assert_close(one, convert(clean, noisy, torch.full((3,), 321.0, dtype=torch.float64)))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_target_of_training_is_a_prediction_of_the_noise_that_was_added(name):
    process, (clean, _) = make_process(FAMILIES[name]), arrays(2, 64)
    made = process.perturb(clean, torch.Generator().manual_seed(3))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3)).double()
    inside = (made.time > 1) & (made.time < 990)
    seen = process.to_noise(made.target, made.noisy, made.time.double())
    torch.testing.assert_close(seen[inside], noise[inside], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_steps_have_equal_noise_in_every_family(name):
    process = make_process(FAMILIES[name])
    for step in (0, 25, 500, 998):
        alpha, sigma = process.alpha_sigma(torch.tensor(process.time_of_step(step), dtype=torch.float64))
        a, s = slow(FAMILIES[name], step) if isinstance(FAMILIES[name], DDPMConfig) else cosine_level(step)
        assert float(sigma / alpha) == pytest.approx(s / a)


def test_a_family_that_says_nothing_of_it_finds_the_time_of_a_step_by_its_noise():
    flow = make_process(FlowConfig())
    general = super(type(flow), flow).time_of_step
    for step in (0, 10, 500, 999):
        assert general(step) == pytest.approx(flow.time_of_step(step), rel=1e-9)


def test_what_is_left_of_the_path():
    assert make_process(FlowConfig()).time_left(250.0) == 250
    assert make_process(DDPMConfig()).time_left(999.0) == 1000

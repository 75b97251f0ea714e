"""Each process against its formulas, written out in float64."""

import math

import pytest
import torch
from pydantic import ValidationError

from cmrfed.generators.process import make_process
from cmrfed.generators.processes.ddpm import VELOCITY_CAP
from cmrfed.generators.settings import DDPMConfig, FlowConfig


def cosine_alpha_bar() -> torch.Tensor:
    """Nichol & Dhariwal (arXiv 2102.09672), equation 17, with β capped at 0.999: float64 (1000,)."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = [1 - min(1 - f((t + 1) / 1000) / f(t / 1000), 0.999) for t in range(1000)]
    return torch.tensor(kept, dtype=torch.float64).cumprod(0)


def clean(count=64):
    return torch.rand(count, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7)) * 2 - 1


def rng():
    return torch.Generator().manual_seed(3)


def perturbed_ddpm(prediction):
    """What the process made, and the same from the formulas: x_0, ε, √ᾱ, √(1 - ᾱ)."""
    x0 = clean()
    noisy, time, target = make_process(DDPMConfig(prediction=prediction)).perturb(x0, rng())
    stream = rng()
    noise = torch.randn(x0.shape, generator=stream).double()
    steps = torch.randint(1000, (len(x0),), generator=stream)
    assert torch.equal(time, steps.float())
    alpha_bar = cosine_alpha_bar()[steps].view(-1, 1, 1, 1)
    return noisy, target, x0, noise, alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def close(left, right):
    return torch.allclose(left, right, rtol=0, atol=2e-5)


def test_ddpm_perturbs_as_in_ho_et_al():
    noisy, _, x0, noise, a, s = perturbed_ddpm("epsilon")
    assert close(noisy, a * x0 + s * noise)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddpm_targets_and_the_way_back_to_the_clean_array(prediction):
    noisy, target, x0, noise, a, s = perturbed_ddpm(prediction)
    expected = {"epsilon": noise, "v_prediction": a * noise - s * x0, "sample": x0}[prediction]
    assert close(target, expected)
    scaled = {"epsilon": noisy - s * target, "v_prediction": a * (a * noisy - s * target), "sample": a * target}
    assert close(scaled[prediction], a * x0)


def test_flow_perturbs_on_straight_paths():
    x0 = clean()
    noisy, time, target = make_process(FlowConfig()).perturb(x0, rng())
    stream = rng()
    noise = torch.randn(x0.shape, generator=stream).double()
    sigma = torch.randn(len(x0), generator=stream).double().sigmoid().view(-1, 1, 1, 1)
    assert close(time.double() / 1000, sigma.flatten())
    assert close(noisy, (1 - sigma) * x0 + sigma * noise)
    assert close(target, noise - x0)
    assert close(noisy - sigma * target, x0)


def test_laws_of_time():
    many = torch.zeros(20000, 1)
    uniform = make_process(FlowConfig(timestep_sampling="uniform")).perturb(many, rng())[1] / 1000
    bell = make_process(FlowConfig(timestep_sampling="logit_normal")).perturb(many, rng())[1] / 1000
    steps = make_process(DDPMConfig()).perturb(many, rng())[1]
    middle = make_process(DDPMConfig(timestep_sampling="logit_normal")).perturb(many, rng())[1]
    for probability in (0.1, 0.5, 0.9):
        normal = torch.distributions.Normal(0, 1).icdf(torch.tensor(probability)).sigmoid()
        assert abs(uniform.quantile(probability) - probability) < 0.02
        assert abs(bell.quantile(probability) - normal) < 0.02
        assert abs(steps.quantile(probability) - 1000 * probability) < 20
        assert abs(middle.quantile(probability) - 1000 * normal) < 20
    assert steps.min() >= 0
    assert steps.max() <= 999


def test_precision_of_the_data_is_kept():
    for config in (DDPMConfig(), FlowConfig()):
        noisy, _, target = make_process(config).perturb(clean().float(), rng())
        assert noisy.dtype == target.dtype == torch.float32


def test_velocity_weighting_gives_the_error_of_the_velocity():
    config = DDPMConfig(prediction="sample", weighting="velocity")
    process, x0 = make_process(config), clean()
    noisy, time, target = process.perturb(x0, rng())
    alpha_bar = cosine_alpha_bar()[time.long()].view(-1, 1, 1, 1)
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    guess = x0 + 0.1 * torch.randn(x0.shape, generator=rng()).double()

    def velocity(array):
        return a * (noisy - a * array) / s - s * array

    ours = process.weight(time) * (guess - target).square().flatten(1).mean(1)
    theirs = (velocity(guess) - velocity(x0)).square().flatten(1).mean(1)
    uncapped = (1 / (1 - alpha_bar)).flatten() < VELOCITY_CAP
    assert 0.7 < uncapped.float().mean() < 1
    assert torch.allclose(ours[uncapped], theirs[uncapped], rtol=1e-3)
    assert (ours[~uncapped] < theirs[~uncapped]).all()


def test_velocity_weighting_is_for_the_clean_array_only():
    with pytest.raises(ValidationError, match="weighting velocity belongs to prediction sample, not to epsilon"):
        DDPMConfig(prediction="epsilon", weighting="velocity")


def test_other_processes_weigh_all_times_the_same():
    for config in (DDPMConfig(), FlowConfig()):
        assert torch.equal(make_process(config).weight(torch.tensor([1.0, 999.0])), torch.ones(2))

"""Sampling against loops written with diffusers alone, and against a case whose answer is known exactly."""

import math

import diffusers
import pytest
import torch
from torch import nn
from torch.nn import functional

from cmrfed.generators.settings import DDPMConfig, FlowConfig, SamplerConfig
from tests.generator_world import random_condition, tiny_generator

COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
SCHEDULERS = {
    "ancestral": lambda: diffusers.DDPMScheduler(**COSINE),
    "ddim": lambda: diffusers.DDIMScheduler(**COSINE, timestep_spacing="trailing"),
    "dpm++": lambda: diffusers.DPMSolverMultistepScheduler(**COSINE, timestep_spacing="trailing"),
    "dpm++-karras": lambda: diffusers.DPMSolverMultistepScheduler(**COSINE),
    "euler": diffusers.FlowMatchEulerDiscreteScheduler,
    "heun": diffusers.FlowMatchHeunDiscreteScheduler,
}


def karras_times(scheduler, steps):
    """Equation 5 of arXiv 2206.00364, one level at a time; each at the step of the schedule that is nearest."""
    levels = [math.sqrt((1 - a) / a) for a in scheduler.alphas_cumprod.tolist()]
    largest, smallest = max(level for level in levels if level <= 80), levels[0]
    wanted = [
        (largest ** (1 / 7) + i / (steps - 1) * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7 for i in range(steps)
    ]
    return [min(range(1000), key=lambda t: abs(math.log(levels[t] / level))) for level in wanted]


def set_times(name, scheduler, steps):
    """Set the timesteps of diffusers' scheduler."""
    if name == "dpm++-karras":
        scheduler.set_timesteps(timesteps=karras_times(scheduler, steps))
    else:
        scheduler.set_timesteps(steps)


def process_of(name):
    return FlowConfig() if name in ("euler", "heun") else DDPMConfig()


def plain_loop(unet, scheduler, planes, null, seed, *, scale, shape=(1, 1, 16, 16)):
    """One array, as a page of diffusers' documentation would draw it; masks and constants as further channels."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    added_noise = torch.Generator().manual_seed(seed ^ 0x5DEECE66D)  # the stream that Generator.sample keeps apart
    for t in scheduler.timesteps:
        patches = functional.pixel_unshuffle(x, 2)
        told, untold = (unet(torch.cat([patches, p], 1), t).sample for p in (planes, null))
        out = functional.pixel_shuffle(untold + scale * (told - untold), 2)
        x = scheduler.step(out, t, x, generator=added_noise).prev_sample
    return x


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("name", SCHEDULERS)
@torch.no_grad()
def test_sampling_equals_a_plain_loop_over_diffusers(name, scale):
    sampler = SamplerConfig(name=name, steps=5, guidance_scale=scale)
    generator = tiny_generator(process=process_of(name), sampler=sampler, condition_dropout=0.1)
    cond, seeds = random_condition(2), [11, 12]
    drawn = generator.sample(cond, seeds)
    for i, seed in enumerate(seeds):
        planes = generator.network.condition_planes(cond[i : i + 1])
        null = generator.network.condition_planes(cond[i : i + 1].null())
        unet, scheduler = generator.network.unet, SCHEDULERS[name]()
        set_times(name, scheduler, 5)
        plain = plain_loop(unet, scheduler, planes, null, seed, scale=scale).clamp(-1, 1)
        assert torch.allclose(drawn[i : i + 1], plain, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
@torch.no_grad()
def test_latent_sampling_equals_a_plain_loop_that_its_autoencoder_decodes(name):
    sampler = SamplerConfig(name=name, steps=5, guidance_scale=2.5)
    generator = tiny_generator("latent", process_of(name), sampler=sampler, condition_dropout=0.1)
    cond, unet, scheduler = random_condition(1), generator.network.unet, SCHEDULERS[name]()
    if "clip_sample" in scheduler.config:
        scheduler.register_to_config(clip_sample=False)
    set_times(name, scheduler, 5)
    planes, null = (generator.network.condition_planes(c) for c in (cond, cond.null()))
    latent = plain_loop(unet, scheduler, planes, null, 11, scale=2.5, shape=(1, 2, 8, 8))
    plain = generator.codec.vae.decode(latent).sample.clamp(-1, 1)
    assert torch.allclose(generator.sample(cond, [11]), plain, atol=1e-4)


# --- a Gaussian, whose denoiser is known ----------------------------------------------------------
MEAN, STD = 0.15, 0.2


class ExactDenoiser(nn.Module):
    """What a network that has learned N(MEAN, STD²) in every pixel would predict: E[target | noisy]."""

    def __init__(self, process) -> None:
        super().__init__()
        self.process = process
        self.anchor = nn.Parameter(torch.zeros(1))

    def condition_planes(self, cond):
        return cond.mask_planes()

    def forward(self, noisy, time, planes):
        if isinstance(self.process.config, FlowConfig):
            a, s = 1 - time / 1000, time / 1000
        else:
            alpha_bar = self.process.scheduler.alphas_cumprod[time.long()]
            a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        a, s = a.view(-1, 1, 1, 1), s.view(-1, 1, 1, 1)
        clean = MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (noisy - a * MEAN)
        noise = (noisy - a * clean) / s
        if isinstance(self.process.config, FlowConfig):
            return noise - clean
        kinds = {"epsilon": noise, "v_prediction": a * noise - s * clean, "sample": clean}
        return kinds[self.process.config.prediction]


def drawn_from_the_gaussian(process, name, steps):
    """Samples, and the noise they began with: (8, 1, 16, 16) each."""
    generator = tiny_generator(process=process)
    generator.network = ExactDenoiser(generator.process)
    drawn = generator.sample(random_condition(8), range(8), sampler=SamplerConfig(name=name, steps=steps))
    return drawn, generator._normal(range(8))


DRAWS = [
    *[("ancestral", DDPMConfig(prediction=p), 1000) for p in ("v_prediction", "sample")],
    *[("ddim", DDPMConfig(prediction=p), 250) for p in ("epsilon", "v_prediction", "sample")],
    *[
        (n, DDPMConfig(prediction=p), 50)
        for n in ("dpm++", "dpm++-karras")
        for p in ("epsilon", "v_prediction", "sample")
    ],
    ("euler", FlowConfig(), 100),
    ("heun", FlowConfig(), 30),
]


@pytest.mark.parametrize(("name", "process", "steps"), DRAWS, ids=lambda v: getattr(v, "prediction", None))
def test_samplers_draw_a_gaussian_of_the_right_mean_and_spread(name, process, steps):
    drawn, _ = drawn_from_the_gaussian(process, name, steps)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=4 * STD / math.sqrt(drawn.numel()))
    assert drawn.std().item() == pytest.approx(STD, rel=0.08)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "dpm++-karras", "euler", "heun"])
def test_deterministic_samplers_converge_to_the_exact_transport(name):
    """The probability flow carries noise ε to MEAN + STD ε (Gaussian case of Song et al., arXiv 2011.13456)."""
    errors = []
    for steps in (5, 20, 80):
        drawn, noise = drawn_from_the_gaussian(process_of(name), name, steps)
        errors.append((drawn - (MEAN + STD * noise).clamp(-1, 1)).abs().mean().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02 * STD * 2


def test_heun_is_of_higher_order_than_euler():
    error = {}
    for name in ("euler", "heun"):
        drawn, noise = drawn_from_the_gaussian(FlowConfig(), name, 20)
        error[name] = (drawn - (MEAN + STD * noise)).abs().mean().item()
    assert error["heun"] < error["euler"] / 3

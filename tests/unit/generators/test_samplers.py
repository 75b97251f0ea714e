from itertools import pairwise

import diffusers
import pytest
import torch
from pydantic import ValidationError

from cmrfed.core.errors import ConfigError
from cmrfed.generators.process import make_process
from cmrfed.generators.samplers import karras_times, make_sampler
from cmrfed.generators.settings import DDPMConfig, FlowConfig, SamplerConfig
from tests.generator_world import random_condition, tiny_config, tiny_generator

FITTING = [
    ("ancestral", DDPMConfig(), diffusers.DDPMScheduler),
    ("ddim", DDPMConfig(), diffusers.DDIMScheduler),
    ("dpm++", DDPMConfig(prediction="sample"), diffusers.DPMSolverMultistepScheduler),
    ("dpm++-karras", DDPMConfig(prediction="sample"), diffusers.DPMSolverMultistepScheduler),
    ("euler", FlowConfig(), diffusers.FlowMatchEulerDiscreteScheduler),
    ("heun", FlowConfig(), diffusers.FlowMatchHeunDiscreteScheduler),
]


@pytest.mark.parametrize(("name", "process", "kind"), FITTING, ids=[f[0] for f in FITTING])
def test_each_name_gives_its_scheduler_with_the_settings_of_training(name, process, kind):
    scheduler = make_sampler(SamplerConfig(name=name, steps=7), make_process(process))
    assert type(scheduler) is kind
    assert len(scheduler.timesteps) == (13 if name == "heun" else 7)
    assert scheduler.config.num_train_timesteps == 1000
    if isinstance(process, DDPMConfig):
        assert scheduler.config.beta_schedule == "squaredcos_cap_v2"
        assert scheduler.config.prediction_type == process.prediction


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_fast_samplers_of_diffusion_begin_where_all_is_noise(name):
    assert make_sampler(SamplerConfig(name=name, steps=7), make_process(DDPMConfig())).timesteps[0] == 999


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 10, 20, 100, 1000])
def test_karras_times_fall_without_repeats_from_noise_to_the_cleanest_time(schedule, steps):
    process = make_process(DDPMConfig(schedule=schedule))
    times = karras_times(process, steps)
    assert all(a > b for a, b in pairwise(times))
    alpha, sigma = process.alpha_sigma(torch.tensor([times[0]], dtype=torch.float64))
    assert 70 < sigma / alpha <= 80
    assert steps == 1 or times[-1] == 0
    assert steps == 1000 or len(times) == steps
    assert make_sampler(SamplerConfig(name="dpm++-karras", steps=steps), process).timesteps.tolist() == times


def test_karras_times_spend_more_steps_on_detail_than_equal_steps_of_time_do():
    process = make_process(DDPMConfig())
    even = make_sampler(SamplerConfig(name="dpm++", steps=20), process).timesteps.tolist()
    assert sum(t < 100 for t in karras_times(process, 20)) >= 2 * sum(t < 100 for t in even)


def test_a_sampler_of_the_other_family_is_refused_with_those_that_fit():
    with pytest.raises(
        ConfigError,
        match=r"euler does not fit.*Expected: ancestral or ddim or dpm\+\+ or dpm\+\+-karras.*sampler\.name",
    ):
        make_sampler(SamplerConfig(name="euler"), make_process(DDPMConfig()))
    with pytest.raises(ConfigError, match=r"ddim does not fit.*Expected: euler or heun"):
        make_sampler(SamplerConfig(name="ddim"), make_process(FlowConfig()))


def test_a_recipe_with_a_sampler_of_the_other_family_is_refused_before_training():
    with pytest.raises(ConfigError, match=r"sampler ddim does not fit.*euler or heun"):
        tiny_config(process=FlowConfig(), sampler=SamplerConfig(name="ddim"))


def test_guidance_without_condition_dropout_is_refused():
    strong = SamplerConfig(name="euler", steps=2, guidance_scale=2.0)
    with pytest.raises(ValidationError, match="guidance_scale other than 1 needs condition_dropout > 0"):
        tiny_config(sampler=strong)
    with pytest.raises(ConfigError, match=r"never learned to draw without a condition.*condition_dropout"):
        tiny_generator().sample(random_condition(1), [0], sampler=strong)
    assert tiny_config(sampler=strong, condition_dropout=0.1).sampler.guidance_scale == 2

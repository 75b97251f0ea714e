import diffusers
import pytest
from pydantic import ValidationError

from cmrfed.core.errors import ConfigError
from cmrfed.generators.process import make_process
from cmrfed.generators.samplers import make_sampler
from cmrfed.generators.settings import DDPMConfig, FlowConfig, SamplerConfig
from tests.generator_world import random_condition, tiny_config, tiny_generator

FITTING = [
    ("ancestral", DDPMConfig(), diffusers.DDPMScheduler),
    ("ddim", DDPMConfig(), diffusers.DDIMScheduler),
    ("dpm++", DDPMConfig(prediction="sample"), diffusers.DPMSolverMultistepScheduler),
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


def test_a_sampler_of_the_other_family_is_refused_with_those_that_fit():
    with pytest.raises(ConfigError, match=r"euler does not fit.*Expected: ancestral or ddim or dpm\+\+.*sampler\.name"):
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

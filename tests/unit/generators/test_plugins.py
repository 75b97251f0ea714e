"""A distribution that offers a process family, a network and a sampler in one file."""

import importlib
import sys

import pytest
import torch
from pydantic import ValidationError

from cmrfed.config.experiment import resolve
from cmrfed.config.reference import find
from cmrfed.core.settings.registry import builtins_only
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import GeneratorConfig
from cmrfed.training.loop import LocalTrainer
from cmrfed.training.settings import TrainingConfig
from tests.generator_world import blob_cohort, random_condition, same_weights
from tests.plugin_world import install

CODE = '''
"""Trigonometric interpolation between data and noise, a plain convolution, and midpoint steps."""

import math
from typing import Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from pydantic import Field
from torch import nn

from cmrfed.generators.backbone import Backbone
from cmrfed.generators.process import Levels, Process
from cmrfed.generators.samplers import Sampler
from cmrfed.generators.settings import BackboneSettings, Family, ProcessSettings


class TrigConfig(ProcessSettings):
    """Trigonometric interpolation (arXiv 2303.08797)."""

    family = Family(
        label="TI", latent_label="LTI", name="trigonometric interpolation", latent_name="latent interpolation",
        card="Interpolation (arXiv 2303.08797)", tag="interpolation", text="trigonometric interpolation",
        source="Albergo MS, Boffi NM, Vanden-Eijnden E. Stochastic interpolants. 2023. arXiv 2303.08797.",
    )
    samplers = ()

    kind: Literal["trig"] = "trig"
    floor: float = Field(0.001, gt=0, lt=0.5)
    """Earliest time in training."""

    def build(self, *, bounded):
        return Trig(self, "noise", FlowMatchEulerDiscreteScheduler())


class Trig(Process):
    def alpha_sigma(self, time):
        angle = time / 1000 * math.pi / 2
        return angle.cos(), angle.sin()

    def derivatives(self, alpha, sigma):
        return -sigma, alpha

    def draw_levels(self, count, rng, like):
        time = 1000 * torch.rand(count, generator=rng).clamp(min=self.settings.floor).to(like)
        return Levels(time, *self.alpha_sigma(time))


class PlainConfig(BackboneSettings):
    """Two convolutions."""

    kind: Literal["plain"] = "plain"
    width: int = Field(8, ge=1, le=64)

    def build(self, *, size, channels, masks, styles, shrink):
        return Plain(self, channels, masks, styles)


class Plain(Backbone):
    def __init__(self, config, channels, masks, styles):
        super().__init__()
        self.styles = styles
        self.into = nn.Conv2d(channels + 4 * masks + 1, config.width, 3, padding=1)
        self.out = nn.Conv2d(config.width, channels, 3, padding=1)

    def condition_planes(self, cond):
        return cond.mask_planes()

    def zero_site_conditioning(self):
        pass

    def forward(self, noisy, time, planes):
        clock = (time / 1000).view(-1, 1, 1, 1).expand(-1, 1, *noisy.shape[2:])
        return self.out(torch.relu(self.into(torch.cat([noisy, planes, clock], 1)))).float()


class Steps:
    """Deterministic steps (DDIM) on any path."""

    def __init__(self, process, steps):
        self.process, self.timesteps = process, torch.linspace(990, 0, steps + 1)[:-1]
        self.ends = dict(zip(self.timesteps.tolist(), torch.linspace(990, 0, steps + 1)[1:]))

    def step(self, model_output, timestep, sample, *, generator, return_dict):
        parts = [convert(model_output, sample, timestep) for convert in (self.process.to_clean, self.process.to_noise)]
        alpha, sigma = self.process.alpha_sigma(self.ends[float(timestep)])
        return (alpha * parts[0] + sigma * parts[1],)


STEPS = Sampler(Steps, families=("trig", "flow"))
'''
GROUPS = {
    "cmrfed.process_families": {"trig": "cmrfed_trig:TrigConfig"},
    "cmrfed.backbones": {"plain": "cmrfed_trig:PlainConfig"},
    "cmrfed.samplers": {"steps": "cmrfed_trig:STEPS"},
}
SETTINGS = {
    "process": {"kind": "trig", "floor": 0.01},
    "backbone": {"kind": "plain", "width": 4},
    "sampler": {"name": "steps", "steps": 3},
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    lines = "\n".join(
        f"[{group}]\n" + "\n".join(f"{name} = {target}" for name, target in entries.items())
        for group, entries in GROUPS.items()
    )
    install(tmp_path / "site", "unused", "cmrfed-trig", {}, CODE)
    (entries,) = (tmp_path / "site").rglob("entry_points.txt")
    entries.write_text(lines, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    yield
    sys.modules.pop("cmrfed_trig", None)


def config(**more):
    return GeneratorConfig(codec="pixel", size_px=16, styles=2, **{**SETTINGS, **more})


def test_a_family_a_network_and_a_sampler_from_outside_train_draw_and_are_saved(installed, tmp_path):
    generator, cohort = Generator(config(), 1), blob_cohort(tmp_path / "c")
    assert generator.config.model_dump(mode="json")["process"] == {"kind": "trig", "floor": 0.01}
    training = TrainingConfig(rounds=40, local_steps=1, batch_size=8, precision="fp32", learning_rate=1e-2)
    losses = LocalTrainer(generator, cohort, "image", 0, training, 3).run(0, 40).losses
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    states = []
    drawn = generator.eval().sample(random_condition(2), [1, 2], on_state=lambda left, _: states.append(left))
    assert drawn.shape == (2, 1, 16, 16)
    assert states == [990, 660, 330, 0]
    generator.save(tmp_path / "g")
    loaded = Generator.load(tmp_path / "g")
    assert same_weights(generator.network.state_dict(), loaded.network.state_dict())
    assert torch.equal(loaded.sample(random_condition(2), [1, 2]), drawn)
    card = (tmp_path / "g" / "README.md").read_text(encoding="utf-8")
    assert "Interpolation (arXiv 2303.08797). The network is a `Plain` of" in card
    assert "diffusers alone" not in card


def test_a_sampler_from_outside_draws_from_a_family_of_ours(installed):
    flow = config(process={"kind": "flow"})
    assert Generator(flow).process.samplers == ("euler", "heun", "steps")
    with pytest.raises(Exception, match=r"sampler euler does not fit this process.*Expected: steps"):
        config(sampler={"name": "euler"})


def test_a_recipe_names_them_and_their_settings_are_listed(installed):
    recipe = {"name": "r", "data": {"phantom": {}}, "image": {"generator": SETTINGS}}
    experiment = resolve(recipe)
    assert experiment.generator("image").process.floor == 0.01
    assert experiment.digest != resolve(recipe, ["image.generator.process.floor=0.02"]).digest
    assert "Earliest time in training" in find("image.generator.process")
    assert "or steps" in find("image.generator.sampler.name")
    assert "`plain`".strip("`") in find("image.generator.backbone.kind")


def test_where_plugins_are_not_allowed_each_is_refused(installed):
    for part in SETTINGS:
        plain = {k: v for k, v in SETTINGS.items() if k == part}
        with builtins_only(), pytest.raises(ValidationError, match="not part of the code that this site has approved"):
            GeneratorConfig(codec="pixel", size_px=16, **plain)

"""The card beside a saved generator: its code is run as it is written, and draws what the generator draws."""

import re
from pathlib import Path

import pytest
import torch

from cmrfed.config.experiment import resolve
from cmrfed.generators.card import example
from cmrfed.generators.condition import Condition
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import DDPMConfig, FlowConfig, SamplerConfig
from tests.generator_world import SIZE_PX, tiny_generator

CLEAN = DDPMConfig(prediction="sample", schedule="linear")


@pytest.mark.parametrize(
    ("codec", "process", "sampler"),
    [
        ("pixel", FlowConfig(), "euler"),
        ("pixel", FlowConfig(), "heun"),
        ("pixel", DDPMConfig(), "ddim"),
        ("pixel", CLEAN, "dpm++"),
        ("pixel", CLEAN, "dpm++-karras"),
        ("mask", CLEAN, "dpm++"),
        ("mask", FlowConfig(), "euler"),
        ("latent", FlowConfig(), "heun"),
        ("latent", DDPMConfig(), "ddim"),
        ("latent", CLEAN, "dpm++"),
    ],
)
def test_the_code_on_the_card_draws_what_the_generator_draws(codec, process, sampler, tmp_path) -> None:
    card_draws_as(tiny_generator(codec, process, sampler=SamplerConfig(name=sampler, steps=3)), codec, tmp_path)


def test_the_code_on_the_card_decodes_masks_below_full_resolution(tmp_path) -> None:
    sampler = SamplerConfig(name="dpm++", steps=3)
    card_draws_as(tiny_generator("mask", CLEAN, sampler=sampler, mask_downsampling=2), "mask", tmp_path)
    assert "blocks of 2 x 2 pixels" in (tmp_path / "g" / "README.md").read_text(encoding="utf-8")


def card_draws_as(generator, codec, tmp_path) -> None:
    """Run the code on the card of a generator, and compare."""
    generator.save(tmp_path / "g")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "g" / "README.md").read_text(), re.DOTALL)
    assert "cmrfed" not in code
    stage = "mask" if codec == "mask" else "image"
    shared: dict = {}
    exec(code.replace(f'"generators/{stage}"', repr(str(tmp_path / "g"))), shared)  # noqa: S102
    masks = torch.full((1, 2, SIZE_PX, SIZE_PX), -1) if codec == "mask" else torch.zeros(1, 1, SIZE_PX, SIZE_PX).long()
    cond = Condition(masks, torch.tensor([0]), torch.tensor([0.0]), torch.tensor([0]))
    expected = generator.sample(cond, [0])
    assert torch.allclose(shared["drawn"].float(), expected.float(), atol=1e-4)


def test_the_example_in_the_readme_is_that_of_the_recipe() -> None:
    root = Path(__file__).parents[3]
    experiment = resolve(root / "configs" / "recipes" / "acdc.yaml")
    generator = Generator(experiment.generator("image"))
    assert example(generator, generator.network) in (root / "README.md").read_text()


@pytest.mark.parametrize("codec", ["pixel", "latent"])
def test_the_card_names_every_input_channel_and_promises_no_privacy(codec, tmp_path) -> None:
    generator = tiny_generator(codec, FlowConfig())
    generator.save(tmp_path / "g")
    card = (tmp_path / "g" / "README.md").read_text()
    counts = [int(n) for n in re.findall(r"\| (\d+) \|$", card, re.MULTILINE)]
    assert sum(counts) == generator.network.unet.config.in_channels
    assert "this folder promises none" in card
    assert ("trained on public data alone" in card) == (codec == "latent")
    assert card.startswith("---\nlibrary_name: diffusers\n")

"""Public training: the running average, the unknown style, and settings that cannot be."""

import pytest
import torch
from pydantic import ValidationError

from cmrfed.generators.condition import UNKNOWN
from cmrfed.generators.generator import Generator
from cmrfed.training.loop import LocalTrainer
from cmrfed.training.public import train_publicly
from cmrfed.training.settings import PretrainConfig, PublicTraining
from tests.generator_world import blob_cohort, random_condition, same_weights, tiny_config

TRAINING = PublicTraining(rounds=3, local_steps=2, batch_size=2, precision="fp32", warmup_steps=0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return blob_cohort(tmp_path_factory.mktemp("public") / "cohort")


def fresh(stage="image"):
    return Generator(tiny_config("mask" if stage == "mask" else "pixel"), seed=4)


@pytest.mark.parametrize("stage", ["mask", "image"])
def test_it_ends_with_the_running_average_of_plain_training_without_style(cohort, stage):
    generator, slow = fresh(stage), fresh(stage)
    train_publicly(generator, cohort, stage, TRAINING, seed=7)

    slow.network.zero_site_conditioning()
    trainer = LocalTrainer(slow, cohort, stage, UNKNOWN, TRAINING, 7)
    average = {name: weights.clone() for name, weights in slow.network.state_dict().items()}
    for number, decay in ((1, 2 / 11), (2, 3 / 12), (3, 4 / 13)):
        trainer.run(2 * number - 2, 2)
        average = {n: decay * average[n] + (1 - decay) * w for n, w in slow.network.state_dict().items()}
    assert same_weights(generator.network.state_dict(), average)
    assert not same_weights(average, fresh(stage).network.state_dict())


def test_afterwards_every_style_is_drawn_like_none(cohort):
    generator = fresh()
    train_publicly(generator, cohort, "image", TRAINING, seed=7)
    cond, noisy, time = random_condition(3), torch.randn(3, 1, 16, 16), torch.full((3,), 400.0)
    network = generator.network.eval()
    draws = [
        network(noisy, time, network.condition_planes(type(cond)(**(vars(cond) | {"style": torch.full((3,), style)}))))
        for style in (UNKNOWN, 0, 1, 2)
    ]
    assert all(torch.equal(draws[0], other) for other in draws[1:])


def test_a_site_can_teach_its_style_afterwards(cohort):
    generator = fresh()
    train_publicly(generator, cohort, "image", TRAINING, seed=7)
    LocalTrainer(generator, cohort, "image", 1, TRAINING, 7).run(0, 1)
    styles = generator.network.unet.conv_in.weight[:, -3:].abs().amax((0, 2, 3))
    assert styles[1] > 0
    assert styles[[0, 2]].eq(0).all()


def test_fewer_patients_than_scanners_are_refused():
    with pytest.raises(ValidationError, match="3 patients are too few for 4 scanners"):
        PretrainConfig(patients=3, scanners=4)

"""The evaluator on an accelerator: numbers close to the CPU's, no tensors that mix, and no waits within steps."""

import numpy as np
import pytest
import torch

from cmrfed.core.device import HOST, to_host
from cmrfed.core.rng import torch_generator
from cmrfed.evaluation.features.extractors import PhantomFeatures
from cmrfed.evaluation.features.phantom_cnn import PhantomCnn
from cmrfed.evaluation.privacy.nearest import Points
from cmrfed.evaluation.privacy.white_box import patient_scores, untrained
from cmrfed.evaluation.settings import AttackConfig
from cmrfed.evaluation.utility.arms import SegmenterBenchmark
from cmrfed.evaluation.utility.segmenter import LabelledSlices, labelled_slices, segment, train_segmenter
from cmrfed.generators.generator import Generator
from cmrfed.segmentation.settings import SegmenterConfig
from tests.evaluation_world import cohort
from tests.fake_device import STATE, counted_waits, noise_by_seed
from tests.generator_world import tiny_config

SMALL = SegmenterConfig(channels=(4, 8), steps=3, batch_size=4, precision="fp32", seeds=1)


def slices(count=12, side=16):
    random = torch_generator(0, "slices")
    images = torch.rand(count, 1, side, side, generator=random) * 2 - 1
    return LabelledSlices(images, torch.randint(4, (count, side, side), generator=random).to(torch.uint8))


def test_features_are_those_of_the_cpu(fake_device):
    images = np.random.default_rng(0).uniform(-1, 1, (5, 16, 16)).astype(np.float32)
    here, there = (PhantomFeatures(PhantomCnn(2), device) for device in (HOST, fake_device))
    there._network.load_state_dict(here._network.state_dict())
    np.testing.assert_allclose(there(images), here(images), rtol=1e-5, atol=1e-6)


def test_neighbours_are_those_of_the_cpu(fake_device):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 6)).astype(np.float32), rng.choice(list("abc"), 20)
    here, there = (Points(*rows, device).to(Points(rows[0][:9] + 0.5, rows[1][:9])) for device in (HOST, fake_device))
    np.testing.assert_allclose(there.distance, here.distance, rtol=1e-6)
    assert (there.row == here.row).all()


@pytest.mark.parametrize("free", [1 << 30, 0], ids=["slices on the device", "slices on the host"])
def test_a_segmenter_is_that_of_the_cpu_and_its_steps_do_not_wait(fake_device, free):
    STATE.free, data = free, slices()
    with counted_waits() as waits:
        there = train_segmenter(data.images, data.masks, SMALL, 0, mixed_with=slices(8), device=fake_device)
        assert not waits
    with noise_by_seed():
        here = train_segmenter(data.images, data.masks, SMALL, 0, mixed_with=slices(8))
    for name, weights in here.state_dict().items():
        torch.testing.assert_close(to_host(there.state_dict()[name]), weights, rtol=1e-4, atol=1e-5)
    images = data.images[:, 0].numpy()
    assert (segment(there, images) == segment(here, images)).mean() > 0.999


def test_a_segmenter_that_is_kept_is_read_on_any_device(fake_device, tmp_path):
    data = cohort(tmp_path / "c", range(3))
    real, steps = labelled_slices(data), []
    for device in (fake_device, HOST):
        benchmark = SegmenterBenchmark(data, {}, SMALL, tmp_path / "kept", device=device)
        model = benchmark._segmenter((real, None), data.labels, 0, lambda n=1: steps.append(n))
        assert next(model.parameters()).device == device
    assert steps == [1, 1, 1, 3], "trained once, read once"


def test_white_box_scores_are_those_of_the_cpu(fake_device, tmp_path):
    data = cohort(tmp_path / "c", range(2), size=16)
    config = AttackConfig(slices=2, noise_samples=1)
    found = []
    for device in (HOST, fake_device):
        target = Generator(tiny_config("pixel"), 1).eval().to(device)
        target = untrained(target, 3)
        assert target.device == device
        found.append(patient_scores(target, [target], data, data.patient_ids, config, 0, "members"))
    for attack, values in found[0].items():
        np.testing.assert_allclose(found[1][attack], values, rtol=1e-4, atol=1e-6)

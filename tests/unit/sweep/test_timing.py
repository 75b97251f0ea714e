import pytest

from cmrfed.config.experiment import put, resolve
from cmrfed.evaluation.features.phantom_cnn import cached
from cmrfed.sweep import timing
from cmrfed.sweep.timing import (
    Clock,
    drawing_seconds,
    extractor_seconds,
    public_seconds,
    segmenter_seconds,
    training_seconds,
)

BACKBONE = {"channels": [8], "norm_groups": 4, "patch_px": 4}
TREE = {
    "name": "timed",
    "data": {"phantom": {"patients": 9}, "size_px": 16, "partition": {"sites": 3}},
    "mask": {"generator": {"backbone": BACKBONE}, "training": {"rounds": 2, "local_steps": 5, "batch_size": 4}},
    "image": {"generator": {"backbone": BACKBONE}, "training": {"rounds": 3, "local_steps": 5, "batch_size": 4}},
    "synthesis": {"patients": 10, "slices": [8, 8]},
}
LATENT = {
    "image.generator.backbone.patch_px": 2,
    "image.generator.autoencoder": {"channels": [8, 8], "latent_channels": 2, "norm_groups": 4},
    "pretrain": {"mask": None, "image": None, "autoencoder": {"steps": 7}},
}


class Even(Clock):
    """Everything takes a second: what is left are the counts."""

    def _timed(self, key, make):
        make()()  # it works
        return 1.0


@pytest.fixture
def clock():
    return Even(1)


def test_steps_at_all_sites_count(clock):
    assert training_seconds(resolve(TREE), clock) == 3 * (2 + 3) * 5


def test_a_private_step_is_one_gradient_for_each_patient_who_is_expected_in_it(clock):
    privacy = {"unit": "patient", "epsilon": 8.0, "declared_patients": 10, "delta": 0.05}
    stages = {
        "mask": {"sampling_rate": 0.5, "noise_multiplicity": 2},
        "image": {"sampling_rate": 0.2, "noise_multiplicity": 2},
    }
    tree = TREE | {"privacy": privacy | stages, "federation": {"weighting": "equal"}}
    assert training_seconds(resolve(tree), clock) == pytest.approx(3 * (10 * 0.5 * 10 + 15 * 0.2 * 10))
    few = put(tree, {"privacy.image.subspace": {"rank": 2, "patients": 6, "scanners": 3, "draws": 2}})
    assert training_seconds(resolve(few), clock) == pytest.approx(3 * (10 * 0.5 * 10 + 15 * 0.2 * 10) + 3 * 6)


def test_drawing_segmenters_and_public_weights(clock):
    experiment = resolve(put(TREE, LATENT))
    assert drawing_seconds(experiment, clock) == pytest.approx(2 * 10 * 2 * 8 / timing.DRAWN)
    assert segmenter_seconds(experiment, 6, clock) == 6
    assert public_seconds(experiment, "autoencoder", clock) == 7
    assert public_seconds(experiment, "mask", clock) == 0
    pretrained = resolve(TREE | {"pretrain": {"mask": {"rounds": 4, "local_steps": 5}}})
    assert public_seconds(pretrained, "mask", clock) == 20


def test_each_kind_is_timed_once_and_takes_time(monkeypatch):
    clock, timed = Clock(1), []
    monkeypatch.setattr(timing, "_seconds", lambda step, _: timed.append(step()) or 0.5)
    experiment = resolve(TREE)
    first, second = training_seconds(experiment, clock), training_seconds(experiment, clock)
    assert first == second == 3 * (2 + 3) * 5 * 0.5
    assert len(timed) == 2 * (1 + timing.REPEATS)


def test_the_feature_extractor_counts_until_it_is_in_the_cache(clock, tmp_path):
    experiment = resolve(put(TREE, {"evaluation.features.cache": str(tmp_path)}))
    assert extractor_seconds(experiment, clock) == 400
    cached(tmp_path).touch()
    assert extractor_seconds(experiment, clock) == 0
    photographs = resolve(put(TREE, {"evaluation.features.extractor": "inception-v3-fid"}))
    assert extractor_seconds(photographs, clock) == 0

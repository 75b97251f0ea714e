import pytest

from cmrfed.config.experiment import put, resolve
from cmrfed.core.artifacts import digest_json
from cmrfed.evaluation.features.phantom_cnn import cached
from cmrfed.generators.generator import Generator
from cmrfed.pipeline.pretrain import stage_origin
from cmrfed.sweep import clock as clocks
from cmrfed.sweep.clock import DRAWN, MOST_REPEATS, PATIENTS, TOGETHER, Clock
from cmrfed.sweep.timing import (
    ROUND_S,
    SCORE_SLICE_S,
    WRITE_SLICE_S,
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
    """Everything takes a second: what is left are the counts. A private step takes one more for each record in it."""

    def _timed(self, key, make):
        make()()  # it works
        return 1.0 + PATIENTS * (key[:2] == ["private", 1.0])


@pytest.fixture
def clock():
    return Even(1)


def round_seconds(experiment):
    """Of all sites in all rounds, beside their steps."""
    sizes = [sum(p.numel() for p in Generator(experiment.generator(s)).network.parameters()) for s in ("mask", "image")]
    return 3 * ROUND_S * (2 * sizes[0] + 3 * sizes[1]) / 1e6


def test_steps_at_all_sites_count(clock):
    experiment = resolve(TREE)
    assert training_seconds(experiment, clock) == pytest.approx(3 * (2 + 3) * 5 + round_seconds(experiment))


def test_a_private_step_is_its_noise_and_a_gradient_for_each_patient_who_is_expected_in_it(clock):
    privacy = {"unit": "patient", "epsilon": 8.0, "declared_patients": 10, "delta": 0.05}
    stages = {
        "mask": {"sampling_rate": 0.5, "noise_multiplicity": 2},
        "image": {"sampling_rate": 0.2, "noise_multiplicity": 2},
    }
    tree = TREE | {"privacy": privacy | stages, "federation": {"weighting": "equal"}}
    experiment = resolve(tree)
    expected = 3 * (10 * (1 + 0.5 * 10) + 15 * (1 + 0.2 * 10)) + round_seconds(experiment)
    assert training_seconds(experiment, clock) == pytest.approx(expected)
    few = put(tree, {"privacy.image.subspace": {"rank": 2, "patients": 6, "scanners": 3, "draws": 2}})
    assert training_seconds(resolve(few), clock) == pytest.approx(expected + 3 * 6)


def test_drawing_segmenters_and_public_weights(clock):
    experiment = resolve(put(TREE, LATENT))
    drawn, held_out = 10 * 2 * 8, 9 * 2 * 8 / 3
    written = WRITE_SLICE_S * (drawn + held_out) * (16 / 64) ** 2
    assert drawing_seconds(experiment, clock) == pytest.approx((2 * drawn + held_out) / DRAWN + written)
    scored = SCORE_SLICE_S * held_out * (16 / 64) ** 2
    steps = experiment.evaluation.segmenter.steps
    assert segmenter_seconds(experiment, 2 * steps, clock) == pytest.approx(2 * (steps / TOGETHER + scored))
    assert segmenter_seconds(experiment, 0, clock) == 0
    assert public_seconds(experiment, "autoencoder", clock) == 7
    assert public_seconds(experiment, "mask", clock) == 0
    pretrained = resolve(TREE | {"pretrain": {"mask": {"rounds": 4, "local_steps": 5}}})
    assert public_seconds(pretrained, "mask", clock) == 20


def test_public_weights_in_the_cache_take_no_time(clock, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    experiment = resolve(TREE | {"pretrain": {"mask": {"rounds": 4, "local_steps": 5}}})
    folder = tmp_path / "cmrfed" / f"stage-{digest_json(stage_origin(experiment, 'mask'))[:16]}"
    assert public_seconds(experiment, "mask", clock) == 20
    folder.mkdir(parents=True)
    assert public_seconds(experiment, "mask", clock) == 0
    assert public_seconds(experiment, "image", clock) > 0


def test_each_kind_is_timed_once_and_takes_time(monkeypatch):
    clock, timed = Clock(1), []
    monkeypatch.setattr(clocks, "_seconds", lambda step, _: timed.append(step()) or 0.5)
    experiment = resolve(TREE)
    first, second = training_seconds(experiment, clock), training_seconds(experiment, clock)
    assert first == second == pytest.approx(3 * (2 + 3) * 5 * 0.5 + round_seconds(experiment))
    assert len(timed) == 2 * (1 + clocks.REPEATS)


def test_what_takes_little_is_timed_more_often_and_the_median_counts(monkeypatch):
    taken = iter([9.0, 0.1, 0.1, 5.0])
    monkeypatch.setattr(clocks, "_seconds", lambda step, _: next(taken))
    assert Clock(1)._timed("long", lambda: None) == 0.1
    taken = iter([9.0, *[0.1] * MOST_REPEATS])
    assert Clock(1)._timed("short", lambda: None) == 0.1
    assert not list(taken)


def test_the_feature_extractor_counts_until_it_is_in_the_cache(clock, tmp_path):
    experiment = resolve(put(TREE, {"evaluation.features.cache": str(tmp_path)}))
    assert extractor_seconds(experiment, clock) == 400
    cached(tmp_path).touch()
    assert extractor_seconds(experiment, clock) == 0
    photographs = resolve(put(TREE, {"evaluation.features.extractor": "inception-v3-fid"}))
    assert extractor_seconds(photographs, clock) == 0

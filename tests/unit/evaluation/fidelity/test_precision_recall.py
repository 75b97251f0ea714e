"""Known answers: what is wrong with a set shows in the measure that is made for it."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cmrfed.data.settings import PhantomConfig
from cmrfed.evaluation.features.extractors import PhantomFeatures
from cmrfed.evaluation.features.phantom_cnn import Recipe, load_or_train
from cmrfed.evaluation.fidelity.distances import kid_of
from cmrfed.evaluation.fidelity.precision_recall import manifold_metrics, memberships, spread_of
from tests.evaluation_world import sliced

SHORT = Recipe(phantom=PhantomConfig(patients=2, sites=2, seed=3), steps=2, batch_size=4, size_px=32, crop_px=24)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    return PhantomFeatures(load_or_train(tmp_path_factory.mktemp("cache"), SHORT))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, extractor):
    folder = tmp_path_factory.mktemp("sets")
    held = sliced(folder / "held", range(20, 34), "hold-out")
    fresh = sliced(folder / "fresh", range(40, 54), "synthetic").images
    noise = np.random.default_rng(0).uniform(-1, 1, fresh.shape).astype(np.float32)
    images = {
        "fresh": fresh,
        "blur": gaussian_filter(fresh, (0, 1.5, 1.5)),
        "repeated": np.repeat(fresh[:1], len(fresh), 0),
        "other contrast": -fresh,
        "noise": noise,
    }
    return extractor(held.images), {name: extractor(x) for name, x in images.items()}


def test_kid_ranks_all_that_is_wrong_behind_fresh_patients(worlds):
    held, made = worlds
    kid = {name: kid_of(x, held) for name, x in made.items()}
    assert min(kid, key=kid.get) == "fresh"
    assert all(kid[name] > 5 * abs(kid["fresh"]) for name in kid if name != "fresh"), kid


def test_precision_sees_what_is_not_real_and_recall_what_is_not_reached(worlds):
    held, made = worlds
    found = {name: {k: v.mean() for k, v in memberships(held, x).items()} for name, x in made.items()}
    assert min(found["fresh"].values()) > 0.7
    assert found["noise"]["precision"] == found["noise"]["coverage"] == 0
    assert found["other contrast"]["precision"] < 0.2
    assert found["repeated"]["precision"] == 1
    assert found["repeated"]["recall"] < 0.1
    assert found["repeated"]["coverage"] < 0.3


def test_a_repeated_image_has_no_spread(worlds):
    owners = np.repeat(np.arange(14), 6)
    assert spread_of(worlds[1]["repeated"], owners).max() == pytest.approx(0, abs=1e-3)
    assert spread_of(worlds[1]["fresh"], owners).min() > 0


def normal_sets(tmp_path):
    sets = [sliced(tmp_path / n, range(a, a + 6), n) for n, a in (("synthetic", 0), ("training", 20), ("hold-out", 40))]
    random = np.random.default_rng(0)
    return sets, {s.name: random.normal(size=(len(s), 3)) for s in sets}


def test_metrics_stand_beside_what_training_patients_get(tmp_path):
    sets, features = normal_sets(tmp_path)
    found = {m.measure: m for m in manifold_metrics(*sets, features, "f").metrics}
    assert set(found) == {"precision", "recall", "density", "coverage", "spread"}
    for name, metric in found.items():
        assert metric.low <= metric.value <= metric.high
        assert metric.value == pytest.approx(metric.reference, abs=0.35), name
    features["synthetic"] += 50
    far = {m.measure: m.value for m in manifold_metrics(*sets, features, "f").metrics}
    assert far["precision"] == far["recall"] == far["density"] == far["coverage"] == 0


def test_too_few_slices_are_said(tmp_path):
    sets, features = normal_sets(tmp_path)
    few = sets[0].take(np.arange(4))
    metrics = manifold_metrics(few, *sets[1:], {**features, "synthetic": features["synthetic"][:4]}, "f").metrics
    assert all("too few" in m.unavailable for m in metrics)

import numpy as np
import pytest
import torch

from cmrfed.data.public import cache_folder
from cmrfed.data.settings import PhantomConfig
from cmrfed.evaluation.features import phantom_cnn
from cmrfed.evaluation.features.extractors import PhantomFeatures, open_extractor
from cmrfed.evaluation.features.phantom_cnn import Recipe, _spoilt, load_or_train
from cmrfed.evaluation.settings import FeatureConfig

SHORT = Recipe(phantom=PhantomConfig(patients=2, sites=2, seed=3), steps=2, batch_size=4, size_px=32, crop_px=24)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    load_or_train(folder, SHORT)
    return folder


def test_a_trained_extractor_is_read_from_the_cache(cache, monkeypatch):
    def never(recipe):
        raise AssertionError("trained again")

    monkeypatch.setattr("cmrfed.evaluation.features.phantom_cnn.train", never)
    assert load_or_train(cache, SHORT).digest == load_or_train(cache, SHORT).digest
    with pytest.raises(AssertionError, match="trained again"):
        load_or_train(cache, SHORT.model_copy(update={"steps": 3}))


def test_features_are_standardised_and_do_not_depend_on_the_batch(cache):
    extractor = PhantomFeatures(load_or_train(cache, SHORT))
    images = np.random.default_rng(0).uniform(-1, 1, (70, 32, 32)).astype(np.float32)
    features = extractor(images)
    assert features.dtype == np.float64
    assert features.shape == (70, 2 * (12 + 24 + 48 + 64))
    assert np.allclose(features[66:], extractor(images[66:]), atol=1e-4)


def test_artefacts_keep_the_range_and_leave_one_kind_clean():
    images = torch.rand(60, 1, 32, 32) * 2 - 1
    spoilt, kinds = _spoilt(images, torch.Generator().manual_seed(0))
    assert spoilt.abs().max() <= 1
    same = (spoilt == images).flatten(1).all(1)
    assert torch.equal(same, kinds == 0)


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "cmrfed"


def test_the_real_recipe_sees_blur_noise_and_another_contrast():
    from cmrfed.evaluation.features.phantom_cnn import _phantom_slices
    from cmrfed.evaluation.fidelity.distances import kid_of

    extractor = open_extractor(FeatureConfig())  # the cached one, which tests/golden/test_caches.py holds to its code
    fresh = Recipe(phantom=PhantomConfig(patients=8, sites=2, seed=99))
    images = _phantom_slices(fresh)[0]
    a, b = images[::2], images[1::2]
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(b, (1, 1, 1, 1), mode="replicate"), 3, 1)
    noisy = (b + 0.15 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    floor, *worse = (kid_of(extractor(a[:, 0].numpy()), extractor(x[:, 0].numpy())) for x in (b, blurred, noisy, -b))
    assert all(value > 10 * abs(floor) for value in worse)


@pytest.mark.parametrize("version", ["PUBLIC_VERSION", "TRAINING_VERSION"])
def test_an_extractor_of_another_version_is_not_used(tmp_path, monkeypatch, version):
    monkeypatch.setattr(phantom_cnn, "train", lambda recipe: phantom_cnn.PhantomCnn(recipe.phantom.sites))
    load_or_train(tmp_path, SHORT)
    load_or_train(tmp_path, SHORT)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    monkeypatch.setattr(phantom_cnn, version, 0)
    load_or_train(tmp_path, SHORT)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2

import numpy as np
import pytest
import torch

from cmrfed.core.errors import PrivacyError
from cmrfed.privacy.dpsgd.sampling import poisson_sample


def test_every_record_has_its_own_coin():
    draws = [poisson_sample(50, 0.2) for _ in range(2000)]
    counts = np.bincount(np.concatenate(draws).astype(int), minlength=50)
    assert np.abs(counts - 400).max() < 8 * np.sqrt(2000 * 0.2 * 0.8)
    sizes = np.array([len(d) for d in draws])
    assert sizes.var() == pytest.approx(50 * 0.2 * 0.8, rel=0.3)  # a batch of fixed size has none
    assert all(d == sorted(set(d)) for d in draws)


def test_batches_may_be_empty_and_rate_one_takes_all():
    assert [] in [poisson_sample(3, 0.2) for _ in range(200)]
    assert poisson_sample(0, 0.5) == []
    assert poisson_sample(4, 1.0) == [0, 1, 2, 3]


def test_seeds_change_nothing():
    def draw():
        torch.manual_seed(0)
        np.random.seed(0)
        return poisson_sample(200, 0.5)

    assert draw() != draw()


@pytest.mark.parametrize("rate", [0, -0.1, 1.5])
def test_a_rate_is_a_probability(rate):
    with pytest.raises(PrivacyError, match="0 < rate <= 1"):
        poisson_sample(3, rate)

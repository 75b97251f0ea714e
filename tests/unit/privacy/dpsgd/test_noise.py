import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cmrfed.core.errors import PrivacyError
from cmrfed.privacy.dpsgd import noise

CPU = torch.device("cpu")


def test_torch_seeds_are_too_short_for_noise():
    """The reason for filling the state: two seeds that differ above bit 32 give the same stream."""
    streams = [torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + (7 << 32))]
    assert torch.equal(*streams)


def test_all_of_the_state_comes_from_the_operating_system(monkeypatch):
    entropy = np.random.default_rng(0).bytes(4 * 624)
    monkeypatch.setattr(noise.os, "urandom", lambda count: entropy[:count])
    drawn = torch.empty(2000, dtype=torch.int64).random_(0, 2**16, generator=noise.entropy_generator(CPU))
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": np.frombuffer(entropy, "<u4"), "pos": 624}}
    assert drawn.tolist() == [int(twister.random_raw()) & 0xFFFF for _ in range(2000)]


def test_two_sources_differ_whatever_the_seed():
    def draw():
        torch.manual_seed(0)
        return torch.randn(1000, generator=noise.open_noise_source(CPU).generator)

    first, second = draw(), draw()
    assert not torch.equal(first, second)
    assert abs(float(torch.dot(first, second))) / 1000 < 0.3
    assert first.std() == pytest.approx(1, abs=0.2)


def test_the_source_says_which_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcsprng", None)
    assert noise.open_noise_source(CPU).name == "torch cpu generator, state from the operating system"
    made = torch.Generator()
    fake = SimpleNamespace(create_random_device_generator=lambda path: made if path == "/dev/urandom" else None)
    monkeypatch.setitem(sys.modules, "torchcsprng", fake)
    assert noise.open_noise_source(CPU) == noise.NoiseSource(made, "torchcsprng, /dev/urandom")


def test_a_device_without_a_source_is_refused():
    with pytest.raises(PrivacyError, match="no safe source of noise on meta"):
        noise.entropy_generator(SimpleNamespace(type="meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_generators_differ_too():
    device = torch.device("cuda")
    one, two = (torch.randn(100, device=device, generator=noise.entropy_generator(device)) for _ in range(2))
    assert not torch.equal(one, two)

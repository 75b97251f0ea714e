"""Sites that train on accelerators: each on its own, with the CPU's numbers but for rounding."""

import pytest
import torch

from cmrfed.core.device import of_site
from cmrfed.core.errors import ConfigError
from cmrfed.federation.site.site import Site
from tests.fake_device import STATE, noise_by_seed
from tests.federation_world import make_sites, tiny_request


def two_rounds(root, device):
    """Weights that a site sends in the second of two rounds, the optimizer's state kept in between."""
    site = Site.open(root)
    site.record.model_copy(update={"device": device}).save(root)
    site = Site.open(root)
    _, arrays = tiny_request()
    with noise_by_seed():
        for number in (1, 2):
            arrays = dict(site.train_round(tiny_request(number)[0], arrays).arrays)
    return arrays


def test_simulated_sites_train_on_a_gpu_each(fake_device, tmp_path, monkeypatch):
    STATE.count, used = 2, set()
    original = torch.Tensor.backward
    monkeypatch.setattr(
        torch.Tensor, "backward", lambda loss, *rest: (used.add(str(loss.device)), original(loss, *rest))[1]
    )
    own, there = (make_sites(tmp_path / name, 2) for name in ("cpu", "fake"))
    for number in range(2):
        expected = two_rounds(own[number], "cpu")
        found = two_rounds(there[number], of_site("fake", number))
        assert all(weight.device.type == "cpu" for weight in found.values())
        assert all(torch.allclose(found[name], expected[name], atol=2e-5) for name in expected)
    assert used == {"cpu", "fake:0", "fake:1"}


def test_a_site_without_its_device_trains_on_nothing(tmp_path):
    root = make_sites(tmp_path, 1)[0]
    with pytest.raises(ConfigError, match="there is no device cuda:7 here"):
        two_rounds(root, "cuda:7")

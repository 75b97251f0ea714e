"""The fake accelerator does what the tests that run on it rely on."""

import pytest
import torch
from torch import nn

from cmrfed.core.device import HOST, explain, resolve, to_device, to_host, values
from tests.fake_device import STATE, Fake, counted_waits

MIXED = "expected all tensors to be on the same device"


def test_it_computes_real_numbers(fake_device):
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 2))
    x = torch.randn(2, 1, 8, 8)
    expected = layers(x)
    expected.square().mean().backward()
    gradients = [p.grad for p in layers.parameters()]
    layers.zero_grad()
    there = layers.to(fake_device)
    found = there(to_device(x, fake_device))
    found.square().mean().backward()
    assert isinstance(found, Fake)
    assert found.device == fake_device
    torch.testing.assert_close(to_host(found), expected)
    for parameter, gradient in zip(there.parameters(), gradients, strict=True):
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad.device == parameter.device == fake_device
        torch.testing.assert_close(to_host(parameter.grad), gradient, rtol=1e-5, atol=1e-6)
    assert all(type(p) is nn.Parameter for p in there.to(HOST).parameters())


def test_fused_adamw_steps_there(fake_device):
    moved = []
    for device in (HOST, fake_device):
        weight = nn.Parameter(torch.ones(3, device=device))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
        with counted_waits() as waits:
            for _ in range(3):
                (weight * torch.arange(3.0, device=device)).sum().backward()
                nn.utils.clip_grad_norm_([weight], 1.0)
                optimizer.step()
        assert not waits
        moved.append(to_host(weight))
    assert torch.equal(*moved)


def test_autocast_holds_there(fake_device):
    layer, x = nn.Linear(2, 2).to(fake_device), torch.ones(1, 2, device=fake_device)
    with torch.autocast(fake_device.type, torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert (x + x).dtype == torch.float32
    assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("other", ["cpu", "fake:1"])
def test_it_refuses_tensors_of_another_device(fake_device, other):
    there, elsewhere = torch.ones(2, device=fake_device), torch.ones(2, device=other)
    for mix in (torch.add, torch.mul, torch.dot, lambda a, b: torch.cat([a, b])):
        with pytest.raises(RuntimeError, match=MIXED):
            mix(there, elsewhere)
    with pytest.raises(RuntimeError, match=MIXED):
        nn.Linear(2, 2)(there)
    assert to_host(there + torch.tensor(1.0)).tolist() == [2, 2]


def test_every_wait_is_counted(fake_device):
    x = torch.ones(2, device=fake_device)
    for wait in (
        lambda: x.sum().item(),
        lambda: float(x[0]),
        lambda: bool(x[0] > 0),
        lambda: x.cpu(),
        lambda: x.to("cpu"),
        lambda: torch.zeros(2).copy_(x),
        lambda: torch.equal(x, x),
        lambda: x[x > 0],
        lambda: x.nonzero(),
        lambda: values([x[0], x[1]]),
    ):
        with counted_waits() as waits:
            wait()
            assert waits.total() >= 1, waits
    with counted_waits() as waits:
        y = to_device(torch.ones(2), fake_device) + x
        y[0] = 3.0
        torch.where(y > 2, y, x).clamp(max=1)
        assert not waits


def test_settings_know_it_within_tests(fake_device):
    STATE.count = 2
    assert resolve("fake:1") == torch.device("fake:1")
    assert explain("fake").startswith("fake:0 (Fake 1, one of 2; simulated sites take turns), 1 GiB free; ")

"""The place that decides on the device, on machines whose GPUs are made up."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cmrfed.core import device
from cmrfed.core.device import HOST, batch_that_fits, explain, fits, free_bytes, of_site, resolve, to_device, to_host
from cmrfed.core.errors import ConfigError
from cmrfed.core.rng import torch_generator
from cmrfed.core.settings.config import DeviceName


def machine(monkeypatch, **gpus):
    """Pretend that torch can use so many devices of each kind."""

    def module(kind):
        return SimpleNamespace(
            is_available=lambda: gpus.get(kind, 0) > 0,
            device_count=lambda: gpus.get(kind, 0),
            mem_get_info=lambda _: (8 << 30, 16 << 30),
            get_device_name=lambda where: f"Model {where}",
            is_bf16_supported=lambda **_: True,
        )

    monkeypatch.setattr(torch, "get_device_module", module)
    monkeypatch.setattr(device, "_make_cuda_repeatable", lambda: None)


@pytest.mark.parametrize(
    ("gpus", "name", "found"),
    [
        ({}, "auto", "cpu"),
        ({"cuda": 1}, "auto", "cuda:0"),
        ({"mps": 1}, "auto", "mps:0"),
        ({"cuda": 2, "mps": 1}, "auto", "cuda:0"),
        ({"cuda": 2}, "cpu", "cpu"),
        ({"cuda": 2}, "cuda", "cuda:0"),
        ({"cuda": 2}, "cuda:1", "cuda:1"),
    ],
)
def test_a_name_stands_for_a_device(monkeypatch, gpus, name, found):
    machine(monkeypatch, **gpus)
    assert resolve(name) == torch.device(found)


def test_private_training_passes_over_a_device_without_float64(monkeypatch):
    machine(monkeypatch, mps=1)
    assert resolve("auto", private=True) == HOST
    machine(monkeypatch, mps=1, cuda=1)
    assert resolve("auto", private=True) == torch.device("cuda:0")
    with pytest.raises(ConfigError, match=r"in float64, which mps does not compute.*to auto"):
        resolve("mps", private=True)


@pytest.mark.parametrize(
    ("gpus", "name", "message"),
    [
        ({}, "cuda", r"no device cuda here.*Expected: auto or cpu.*set compute.device"),
        ({"cuda": 1}, "cuda:1", r"no device cuda:1 here. Got: 1 device\(s\) of that kind. Expected: cuda:0\."),
        ({"cuda": 2}, "cuda:2", r"Expected: cuda:0 to cuda:1\."),
        ({}, "mps", r"no device mps here"),
    ],
)
def test_an_absent_device_is_refused(monkeypatch, gpus, name, message):
    machine(monkeypatch, **gpus)
    with pytest.raises(ConfigError, match=message):
        resolve(name)


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:11", "mps"])
def test_settings_take_names_of_devices(name):
    assert TypeAdapter(DeviceName).validate_python(name) == name


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:100", "cuda:0:1", "cpu:0", "auto:1", ""])
def test_settings_refuse_other_names(name):
    with pytest.raises(ValidationError, match="there is no such device: auto, cpu, cuda, cuda:N"):
        TypeAdapter(DeviceName).validate_python(name)


def test_simulated_sites_take_turns(monkeypatch):
    machine(monkeypatch, cuda=2)
    assert [of_site("auto", number) for number in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [of_site("cuda:1", number) for number in range(2)] == ["cuda:1", "cuda:1"]
    assert of_site("cpu", 1) == "cpu"
    machine(monkeypatch, cuda=1)
    assert of_site("auto", 1) == "auto"
    machine(monkeypatch)
    assert of_site("auto", 1) == "auto"


def test_a_device_is_explained_in_words(monkeypatch):
    machine(monkeypatch)
    assert explain("auto").startswith("CPU (torch can use no GPU here): ")
    assert explain("cpu").startswith("CPU: ")
    machine(monkeypatch, cuda=2)
    monkeypatch.setattr(device, "granted", lambda *_: "bf16")
    text = "cuda:0 (Model cuda:0, one of 2; simulated sites take turns), 8 GiB free; networks compute in bf16"
    assert explain("auto") == text


def test_a_processor_takes_the_batch_that_is_wanted_and_a_gpu_what_fits(monkeypatch):
    machine(monkeypatch, cuda=1)
    gpu = torch.device("cuda:0")
    assert batch_that_fits(HOST, 48, 1 << 40, most=1024) == 48
    assert batch_that_fits(gpu, 64, 1 << 30, most=1024) == 4  # half of 8 GiB
    assert batch_that_fits(gpu, 64, 3 << 29, most=1024) == 2  # a power of two
    assert batch_that_fits(gpu, 64, 1 << 40, most=1024) == 1
    assert batch_that_fits(gpu, 64, 1 << 10, most=1024) == 1024
    assert [fits(gpu, 2 << 30), fits(gpu, 3 << 30), fits(HOST, 1)] == [True, False, False]
    assert free_bytes(HOST) > 0


def test_a_batch_moves_with_all_its_tensors():
    @dataclass(frozen=True)
    class Batch:
        one: Tensor
        other: Tensor

    there = to_device(Batch(torch.ones(2), torch.zeros(0)), torch.device("meta"))
    assert there.one.device.type == there.other.device.type == "meta"
    assert to_device(there, torch.device("meta")).one.shape == (2,)
    kept = torch.ones(3)
    assert to_device(kept, HOST) is kept
    with pytest.raises(TypeError, match="a dataclass of tensors"):
        to_device({"one": kept}, HOST)


def test_numbers_come_to_the_host_without_history():
    found = to_host(torch.ones(2, requires_grad=True) * 2)
    assert (found.requires_grad, found.tolist()) == (False, [2, 2])
    assert device.values([torch.tensor(1.5), torch.tensor(2.5, requires_grad=True)]) == [1.5, 2.5]
    assert device.values([]) == []


def test_noise_on_a_processor_comes_from_the_generator_itself():
    like = torch.zeros(1, dtype=torch.float64)
    found = device.normal((2, 3), torch_generator(0, "noise"), like)
    assert torch.equal(found, torch.randn(2, 3, generator=torch_generator(0, "noise")).double())


def test_pinned_memory_is_for_what_goes_to_a_gpu_and_only_that_is_not_waited_for():
    asked = []

    class Watched:
        def __init__(self, place):
            self.device = torch.device(place)

        def numel(self):
            return 1

        def contiguous(self):
            asked.append("contiguous")
            return self

        def pin_memory(self):
            asked.append("pinned")
            return self

        def to(self, device, non_blocking=False):
            asked.append((str(device), non_blocking))

    device._sent(Watched("cpu"), torch.device("cuda:0"))
    device._sent(Watched("cuda:0"), torch.device("cuda:0"))
    device._sent(Watched("cuda:0"), HOST)
    assert asked == ["contiguous", "pinned", ("cuda:0", True), ("cuda:0", True), ("cpu", False)]

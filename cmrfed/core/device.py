"""The device on which networks compute, and all that is special about one: its memory, its random numbers, its copies.

A recipe and a site name a device (`DeviceName`); `resolve` turns the name into a `torch.device`, and everything else
follows from the tensors. No other module names a kind of device, copies a tensor to the host, or pins memory. The
arithmetic is decided in `cmrfed.core.precision`.

Random numbers: small draws (rows, times, moves of the augmentation, what is forgotten) come from CPU generators on
every device. Large noise comes from a generator of the device (`normal`), so that no step waits for the host; devices
of one kind draw the same noise for a seed, and devices of different kinds do not.
"""

import os
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from cmrfed.core.errors import ConfigError
from cmrfed.core.machine import GIB, memory, processor
from cmrfed.core.precision import granted

HOST = torch.device("cpu")
"""Where files, messages and NumPy are."""
_AUTOMATIC = ("cuda", "mps")
_SHARE, _KEPT_SHARE = 0.5, 0.25
"""Of the free memory, what `batch_that_fits` takes for a while, and what `fits` lets stay there."""

T = TypeVar("T")


# --- which one ------------------------------------------------------------------------------------
def resolve(name: str, *, private: bool = False) -> torch.device:
    """The device that a name stands for, on this machine.

    Args:
        name: "auto" (CUDA, else MPS, else the CPU), "cpu", "cuda", "cuda:N" or "mps".
        private: Whether patients' gradients are to be noised there: that needs float64, which MPS has not, and "auto"
            then passes it over.

    Raises:
        ConfigError: This machine has no such device, or it cannot do what it is wanted for.
    """
    kind, _, number = name.partition(":")
    if kind == "auto":
        kind = next((k for k in _AUTOMATIC if count(k) and not (private and k == "mps")), "cpu")
    if kind == "cpu":
        return HOST
    if private and kind == "mps":
        raise ConfigError(
            "private training sums gradients in float64, which mps does not compute",
            expected="auto, cpu or cuda",
            do="set compute.device (in site.json: device) to auto, which then takes the CPU",
        )
    have = count(kind)
    if int(number or 0) >= have:
        raise ConfigError(
            f"there is no device {name} here",
            got=_what_there_is(kind, have),
            expected=f"{kind}:0" + (f" to {kind}:{have - 1}" if have > 1 else "") if have else "auto or cpu",
            do="set compute.device (in site.json: device) to auto, or install the driver and torch's build for it",
        )
    if kind == "cuda":
        _make_cuda_repeatable()
    return torch.device(kind, int(number or 0))


def resolve_anywhere(name: str) -> torch.device:
    """As `resolve`, and "auto" where this machine has no such device: for a run that another machine made."""
    try:
        return resolve(name)
    except ConfigError:
        return resolve("auto")


@cache
def _make_cuda_repeatable() -> None:
    """Same seed, same weights; and float32 that is float32, not TF32."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False


def count(kind: str) -> int:
    """How many devices of a kind torch can use here; 0 where it does not know the kind."""
    if kind == "cpu":
        return 1
    try:
        module = torch.get_device_module(kind)
    except RuntimeError:
        return 0
    return int(module.device_count()) if module.is_available() else 0


def of_site(name: str, number: int) -> str:
    """The device of the simulated site ``number``: each takes the next one, where there are several of the kind."""
    kind, mark, _ = name.partition(":")
    if mark or kind == "cpu":
        return name
    if kind == "auto":
        kind = resolve(name).type
    several = count(kind)
    return f"{kind}:{number % several}" if several > 1 else name


def _what_there_is(kind: str, have: int) -> str:
    if have:
        return f"{have} device(s) of that kind"
    if kind == "cuda" and torch.version.cuda is None:
        return f"torch {torch.__version__}, which was built without CUDA"
    return "none of that kind that torch could use"


# --- in words -------------------------------------------------------------------------------------
def device_name(device: torch.device) -> str:
    """Model of the device, as its maker names it; "cpu" for a processor."""
    if device.type == "cpu":
        return "cpu"
    ask = getattr(torch.get_device_module(device.type), "get_device_name", None)
    return str(ask(device)) if ask else device.type


def explain(name: str) -> str:
    """Which device a name takes here, and why, in plain words.

    Raises:
        ConfigError: This machine has no such device.
    """
    device = resolve(name)
    bf16 = granted("bf16", device.type)
    if device.type == "cpu":
        why = "" if name == "cpu" else " (torch can use no GPU here)"
        slow = "" if bf16 == "bf16" else ", for the processor has no bfloat16 unit"
        return f"CPU{why}: {processor()}, {torch.get_num_threads()} thread(s); networks compute in {bf16}{slow}"
    several = count(device.type)
    also = f", one of {several}; simulated sites take turns" if several > 1 and ":" not in name else ""
    return (
        f"{device} ({device_name(device)}{also}), {free_bytes(device) / GIB:.0f} GiB free; networks compute in {bf16}"
    )


# --- memory ---------------------------------------------------------------------------------------
def free_bytes(device: torch.device) -> int:
    """Memory that is free there now; 0 where nobody says."""
    if device.type == "cpu":
        return memory()[1]
    module = torch.get_device_module(device.type)
    if device.type == "mps":
        return max(0, int(module.recommended_max_memory()) - int(module.driver_allocated_memory()))
    ask = getattr(module, "mem_get_info", None)
    return int(ask(device)[0]) if ask else 0


def total_bytes(device: torch.device) -> int:
    """Memory that there is in all; 0 where nobody says."""
    if device.type == "cpu":
        return memory()[0]
    module = torch.get_device_module(device.type)
    if device.type == "mps":
        return int(module.recommended_max_memory())
    ask = getattr(module, "mem_get_info", None)
    return int(ask(device)[1]) if ask else 0


def fits(device: torch.device, count_bytes: int) -> bool:
    """Whether so much may stay on an accelerator beside what computes there."""
    return device.type != "cpu" and count_bytes <= _KEPT_SHARE * free_bytes(device)


def batch_that_fits(device: torch.device, wanted: int, bytes_each: int, *, most: int) -> int:
    """Items at a time: as many as wanted on a CPU; on an accelerator as many as its memory takes.

    The number is a power of two, so that results do not follow each change of the free memory.

    Args:
        device: Where.
        wanted: On a CPU, and where nobody knows the free memory.
        bytes_each: What one item takes.
        most: The largest that pays.
    """
    free = 0 if device.type == "cpu" else free_bytes(device)
    if not free:
        return wanted
    room = max(1, int(_SHARE * free) // max(1, bytes_each))
    return min(max(most, wanted), 1 << (room.bit_length() - 1))


# --- copies ---------------------------------------------------------------------------------------
def to_device(batch: T, device: torch.device) -> T:
    """A tensor, or a dataclass of tensors, on a device; from pinned memory and without waiting, where that is possible.

    What is there already is returned as it is.
    """
    if isinstance(batch, Tensor):
        return _sent(batch, device)  # type: ignore[return-value]
    if not is_dataclass(batch) or isinstance(batch, type):
        raise TypeError(f"a tensor or a dataclass of tensors can be moved, not a {type(batch).__name__}")
    parts: dict[str, Any] = {f.name: to_device(getattr(batch, f.name), device) for f in fields(batch)}
    return replace(batch, **parts)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    if device == HOST:
        return tensor.to(HOST)  # who does not wait for what comes from a GPU reads what is not there yet
    if device.type == "cuda" and tensor.device == HOST and tensor.numel():
        tensor = tensor.contiguous().pin_memory()  # an expanded tensor cannot be pinned as it is
    return tensor.to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """A tensor in the host's memory, without its history; waits for the device."""
    return tensor.detach().to(HOST)


def values(tensors: Sequence[Tensor]) -> list[float]:
    """Scalars as numbers, in one copy."""
    found: list[float] = to_host(torch.stack(tuple(tensors))).tolist() if tensors else []
    return found


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given, as clocks need it."""
    if device.type != "cpu":
        torch.get_device_module(device.type).synchronize(*(() if device.type == "mps" else (device,)))


# --- random numbers -------------------------------------------------------------------------------
def generator(device: torch.device, seed: int) -> torch.Generator:
    """A generator of the device's own."""
    return torch.Generator(device).manual_seed(seed)


def normal(shape: Sequence[int], rng: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers of the device and the type of ``like``.

    Args:
        shape: Of the result.
        rng: A CPU generator: the source on a CPU, elsewhere the source of a seed for the device's own.
        like: Says where, and of which type.
    """
    if not _has_own_noise(like.device):
        return torch.randn(tuple(shape), generator=rng).to(like)
    seed = int(torch.randint(2**62, (), generator=rng))  # on the host: no wait for the device
    return torch.randn(tuple(shape), generator=generator(like.device, seed), device=like.device).to(like.dtype)


def _has_own_noise(device: torch.device) -> bool:
    return device.type != "cpu"

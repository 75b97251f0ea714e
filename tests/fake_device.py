"""An accelerator that needs no hardware: it computes real numbers, refuses to mix with the CPU, and counts waits.

`Fake` tensors hold a CPU tensor each and compute with it, so results can be compared with the CPU's. Everything above
the kernels is torch's own: dispatch, autograd, autocast, optimizers. As on a GPU

* an operation on tensors of two devices is an error, but for scalars of the host and for copies;
* what brings numbers to the host is a wait for the device: `WAITS` counts each, by the name of its operation.

Importing this module registers the device kind "fake" with torch and with the settings, for the rest of the process.
The fixture ``fake_device`` lends one, with `STATE` to say how many there are and what they can do. torch has no
generators for it, so the fixture lets it draw with CPU generators; under `noise_by_seed` the CPU draws the same noise.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration as registration
from torch.utils._pytree import tree_map_only

from cmrfed.core import device as devices
from cmrfed.core.settings.config import DEVICE_KINDS

KIND = "fake"
_HOST = torch.device("cpu")
_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
_WAITS = {
    _aten._local_scalar_dense.default,
    _aten.equal.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten._unique2.default,
}
"""What waits for a device whatever comes of it: numbers for the host, and shapes that depend on values."""


_BY_INDEX = {_aten.index.Tensor, _aten.index_put_.default, _aten._index_put_impl_.default}


@dataclass
class State:
    """The machine that is made up."""

    count: int = 1
    free: int = 1 << 30
    bf16: bool = False


STATE = State()


class _Module:
    """What torch asks a device's module for."""

    @staticmethod
    def is_available() -> bool:
        return STATE.count > 0

    @staticmethod
    def device_count() -> int:
        return STATE.count

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """Nothing has a default generator."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]

    @staticmethod
    def is_bf16_supported() -> bool:
        return STATE.bf16

    @staticmethod
    def mem_get_info(device: torch.device) -> tuple[int, int]:
        return STATE.free, 2 * STATE.free

    @staticmethod
    def get_device_name(device: torch.device) -> str:
        return "Fake 1"

    @staticmethod
    def synchronize(device: torch.device) -> None:
        WAITS["synchronize"] += 1


WAITS: Counter[str] = Counter()
"""Waits for the device since `counted_waits` began."""


class Fake(torch.Tensor):
    """A tensor of the fake device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> "Fake":
        made: Fake = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=device,
            requires_grad=held.requires_grad,
        )
        made.held = held.detach() if held.requires_grad else held
        return made

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["held"], self.device

    @staticmethod
    def __tensor_unflatten__(inner: Any, device: Any, size: Any, stride: Any) -> "Fake":
        return Fake(inner["held"], device)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Fake({self.held!r}, device={self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    given = _tensors([args, kwargs])
    here = _one_device(func, given)
    wanted = kwargs.get("device")
    target = here if wanted is None else _numbered(torch.device(wanted))
    _count(func, args, target)
    known = {id(t.held): t for t in given if isinstance(t, Fake)}
    inner = tree_map_only(Fake, lambda t: t.held, (args, kwargs))
    if wanted is not None:
        inner[1]["device"] = _HOST
    if func is _aten.copy_.default and not isinstance(args[0], Fake):
        WAITS["to the host"] += 1
    found = func(*inner[0], **inner[1])
    if target.type != KIND or (func is _aten.copy_.default and not isinstance(args[0], Fake)):
        return found

    def wrapped(tensor: Tensor) -> Tensor:
        same = known.get(id(tensor))  # what an operation in place gives back
        return Fake(tensor, target) if same is None else same

    return tree_map_only(Tensor, wrapped, found)


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, tree)  # type: ignore[arg-type]
    return found


def _one_device(func: Any, given: list[Tensor]) -> torch.device:
    """The device of all arguments; scalars of the host may stand beside them, and copies may go from one to another."""
    places = {t.device for t in given if not (t.device.type == "cpu" and t.dim() == 0)}
    if func in _COPIES:
        places = {t.device for t in given[:1]}
    if len(places) > 1:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, got {sorted(map(str, places))}")
    return places.pop() if places else next((t.device for t in given), _HOST)


def _count(func: Any, args: Any, target: torch.device) -> None:
    by_mask = func in _BY_INDEX and any(t is not None and t.dtype == torch.bool for t in args[1])
    if func in _WAITS or by_mask:
        WAITS[func.overloadpacket.__name__.strip("_")] += 1
    if func is _aten._to_copy.default and target.type == "cpu":
        WAITS["to the host"] += 1


def _numbered(device: torch.device) -> torch.device:
    return torch.device(KIND, device.index or 0) if device.type == KIND else device


# --- registration -------------------------------------------------------------------------------
def _register() -> None:
    registration._setup_privateuseone_for_python_backend(KIND, backend_module=_Module())
    DEVICE_KINDS.add(KIND)
    library = torch.library.Library("aten", "IMPL")
    for name in ("empty.memory_format", "empty_strided"):
        library.impl(name, _factory(name), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    for name in _IN_LESS:
        library.impl(name, _in_less(name), "AutocastPrivateUse1")
    every = torch.library.Library("_", "IMPL")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _KEPT.extend([library, every])


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What `torch.tensor` calls, with dispatch to Python off."""
    here, there = (t.held if isinstance(t, Fake) else t for t in (source, target))
    there.copy_(here)
    return target


_KEPT: list[Any] = []
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
_IN_LESS = ("conv2d", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")
"""What autocast computes in bfloat16, as on a CPU and on CUDA."""


def _in_less(name: str) -> Any:
    def computed(*args: Any, **kwargs: Any) -> Any:
        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 and tensor.device.type == KIND else tensor

        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            args, kwargs = tree_map_only(Tensor, cast, (args, kwargs))
            return getattr(_aten, name)(*args, **kwargs)

    return computed


def _factory(name: str) -> Any:
    packet, _, overload = name.partition(".")
    make = getattr(getattr(_aten, packet), overload or "default")

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Fake:
        return Fake(make(*args, device=_HOST, **kwargs), _numbered(torch.device(device or KIND)))

    return made


_register()


# --- for tests ------------------------------------------------------------------------------------
@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """Waits for the fake device within the block, by what waited."""
    WAITS.clear()
    yield WAITS


@contextmanager
def lend() -> Iterator[torch.device]:
    """The first fake device, on a machine with one."""
    STATE.__dict__.update(vars(State()))
    WAITS.clear()
    with pytest.MonkeyPatch.context() as patch, torch.autograd.set_multithreading_enabled(False):
        own = devices.generator
        patch.setattr(devices, "generator", lambda device, seed: own(_HOST, seed))
        yield torch.device(KIND, 0)  # one thread: torch lets a device that is written in Python have one queue alone


@contextmanager
def noise_by_seed() -> Iterator[None]:
    """Let the CPU draw large noise as an accelerator does: by a generator of its own, from a seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "_has_own_noise", lambda _: True)
        yield

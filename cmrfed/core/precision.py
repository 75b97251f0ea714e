"""bfloat16 where the processor computes in it, float32 elsewhere: emulated bfloat16 is slower than either.

On a processor without it bfloat16 is emulated, and a step of the segmenter took 3.8 to 6 times as long as in float32.
Every network of the project therefore asks here, and no other module names bfloat16 or autocast.

The environment variable ``CMRFED_NO_BF16=1`` lets every device count as one without bfloat16: to repeat what another
machine computes, or where a virtual machine reports a unit that it emulates.
"""

import os
from functools import cache
from pathlib import Path

import torch

from cmrfed.core.settings.config import Precision

SWITCH = "CMRFED_NO_BF16"
_CPU_UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""What computes in bfloat16, as torch and Linux call it: Intel and AMD (AVX-512), Intel (AMX), ARM."""


def has_bf16(device: str) -> bool:
    """Whether a kind of device ("cpu", "cuda", …) multiplies bfloat16 in hardware, and may: see `SWITCH`."""
    return os.environ.get(SWITCH, "") in ("", "0") and _in_hardware(device)


@cache
def _in_hardware(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return bool(_CPU_UNITS & cpu_units())
    ask = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return bool(ask and ask())  # MPS does not say


def cpu_units() -> frozenset[str]:
    """Names of the processor's units: by torch, or by Linux where torch is too old to tell."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is not None:
        return frozenset(name for name, there in ask().items() if there is True)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(flags, "").split())


def granted(precision: Precision, device: str) -> Precision:
    """What a wish for "bf16" comes to on a device."""
    return "bf16" if precision == "bf16" and has_bf16(device) else "fp32"


def arithmetic(precision: Precision, device: str) -> torch.dtype:
    """Type of the network's arithmetic; "bf16" is a wish that the device may not fulfil.

    Weights, losses and optimizer states are float32 in any case. The same recipe gives different bits on a device
    with bfloat16 and on one without.
    """
    return torch.bfloat16 if granted(precision, device) == "bf16" else torch.float32


def autocast(device: str, dtype: torch.dtype) -> torch.autocast:
    """Let networks compute in ``dtype``, which comes from `arithmetic`, for the time of a block."""
    return torch.autocast(device, dtype, enabled=dtype != torch.float32)


def full_precision(device: str) -> torch.autocast:
    """Let a block inside `autocast` compute in float32."""
    return torch.autocast(device, enabled=False)

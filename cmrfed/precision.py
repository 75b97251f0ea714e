"""bfloat16 where the processor computes in it, float32 elsewhere: emulated bfloat16 is slower than either."""

from functools import cache
from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]


@cache
def has_bf16(device: str) -> bool:
    """Whether a device ("cpu" or "cuda") multiplies bfloat16 in hardware."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def arithmetic(precision: Precision, device: str) -> torch.dtype:
    """Type of the network's arithmetic; "bf16" is a wish that the device may not fulfil.

    Weights, losses and optimizer states are float32 in any case. The same recipe gives different bits on a device
    with bfloat16 and on one without.
    """
    return torch.bfloat16 if precision == "bf16" and has_bf16(device) else torch.float32

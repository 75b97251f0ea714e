"""Randomness for Gaussian noise that nobody can repeat.

``torch.Generator.manual_seed`` keeps 32 bits of a seed on a CPU: an observer could try them all and take the noise off.
Here the whole state of the generator comes from the operating system.
"""

import importlib
import os
from dataclasses import dataclass

import numpy as np
import torch

from cmrfed.core.device import HOST
from cmrfed.core.errors import PrivacyError

_WORDS = 624
_FIRST_WORD = 24
"""Bytes before the Mersenne Twister's words in the state of torch's CPU generator; each word fills 8 bytes."""

_FILLED = ("cpu", "cuda")
"""Devices whose generators `entropy_generator` fills."""


@dataclass(frozen=True)
class NoiseSource:
    """A generator for noise, and what to say of it in a report."""

    generator: torch.Generator
    name: str


def open_noise_source(device: torch.device) -> NoiseSource:
    """Take torchcsprng's cryptographic generator where it is installed, else torch's own with an unguessable state.

    On a device whose generator has no state that is known here, noise is drawn on the host and sent there.
    """
    try:
        csprng = importlib.import_module("torchcsprng")
    except ImportError:
        device = device if device.type in _FILLED else HOST
        return NoiseSource(entropy_generator(device), f"torch {device.type} generator, state from the operating system")
    return NoiseSource(csprng.create_random_device_generator("/dev/urandom"), "torchcsprng, /dev/urandom")


def entropy_generator(device: torch.device) -> torch.Generator:
    """A torch generator whose state is the operating system's entropy.

    CPU: Mersenne Twister, all 624 words. CUDA: Philox, 64 bits of key and 60 bits of offset.
    """
    if device.type == "cpu":
        state = _cpu_state(os.urandom(4 * _WORDS))
    elif device.type == "cuda":
        key, offset = os.urandom(8), int.from_bytes(os.urandom(8), "little") >> 4 << 2  # CUDA wants a multiple of 4
        state = torch.frombuffer(bytearray(key + offset.to_bytes(8, "little")), dtype=torch.uint8)
    else:
        raise PrivacyError(
            f"there is no safe source of noise on {device.type}", expected="cpu or cuda", do="train on one of them"
        )
    return torch.Generator(device).set_state(state)


def _cpu_state(entropy: bytes) -> torch.Tensor:
    state = torch.Generator().manual_seed(0).get_state()
    words = np.frombuffer(entropy, "<u4").astype("<u8")
    state[_FIRST_WORD : _FIRST_WORD + 8 * _WORDS] = torch.from_numpy(words.view(np.uint8))
    return state

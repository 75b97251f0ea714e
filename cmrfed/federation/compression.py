"""Updates in fewer bits: halves, or bytes with stochastic rounding that is right on average."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cmrfed.core.device import HOST, to_host

SCALES = "/scales"
"""Name of the tensor (number of weights,) float32 by whose elements, in order of name, the others are multiplied."""

_TYPES = {"fp16": torch.float16, "int8": torch.int8}
_STEPS = 127
"""Largest magnitude of a byte: -128 is not used, so that the range is symmetric."""


def compress(
    new: Mapping[str, Tensor], old: Mapping[str, Tensor], kind: str, draws: torch.Generator
) -> dict[str, Tensor]:
    """What a site sends in place of its weights.

    fp16: the change over a power of two, to the nearest half: each number is off by at most 2^-11 of itself, or by
    2^-25 of the tensor's largest where that is more. int8: the change over a 127th of the tensor's largest magnitude,
    rounded up or down at random so that its expectation is the change (QSGD, arXiv 1610.02132); off by less than one
    step. The random bits are 24, so the expectation is off by at most 2^-24 of a step.

    Args:
        new: The site's weights, floating point.
        old: The global weights, of the same names and shapes.
        kind: "fp16" or "int8".
        draws: CPU generator of the stochastic rounding; "fp16" needs none.

    Returns:
        The rounded changes by name, and `SCALES`. A change that is not finite gives a scale that is not.
    """
    out, scales = {}, []
    for name in sorted(new):
        change = to_host(new[name]).double() - to_host(old[name]).double()
        largest = change.abs().max() if change.numel() else torch.zeros((), dtype=torch.float64, device=HOST)
        scale = _scale(largest, kind)
        scales.append(scale)
        ratio = change / scale.double() if float(scale) else torch.zeros_like(change)
        if kind == "int8":
            ratio = torch.floor(ratio + torch.rand(ratio.shape, generator=draws))
        out[name] = ratio.to(_TYPES[kind])
    return out | {SCALES: torch.stack(scales)}


def _scale(largest: Tensor, kind: str) -> Tensor:
    """What one step stands for, float32: rounded up, so that the largest magnitude is within range."""
    if kind == "fp16":
        return torch.exp2(torch.floor(torch.log2(largest))).float() if largest > 0 else largest.float()
    scale = (largest / _STEPS).float()
    return torch.nextafter(scale, torch.tensor(torch.inf, device=HOST)) if scale.double() * _STEPS < largest else scale


def expand(sent: Mapping[str, Tensor], old: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The weights that a reply stands for, typed like ``old``.

    Raises:
        ValueError: The reply is not what `compress` gives for these weights.
    """
    names = sorted(old)
    if set(sent) != {*names, SCALES}:
        odd = sorted(set(sent) ^ {*names, SCALES})
        raise ValueError(f"it lacks or adds weights: {', '.join(odd[:3])}")
    scales = sent[SCALES]
    if scales.dtype != torch.float32 or scales.shape != (len(names),):
        raise ValueError(f"{SCALES} is {scales.dtype} {tuple(scales.shape)}, expected torch.float32 ({len(names)},)")
    out = {}
    for name, scale in zip(names, scales.double(), strict=True):
        if sent[name].dtype != _TYPES[kind] or sent[name].shape != old[name].shape:
            got, shape = sent[name].dtype, tuple(sent[name].shape)
            raise ValueError(f"{name} is {got} {shape}, expected {_TYPES[kind]} {tuple(old[name].shape)}")
        out[name] = (old[name].double() + sent[name].double() * scale).to(old[name].dtype)
    return out

"""Exponential moving averages of weights, of a public training and of a federation's rounds."""

from collections.abc import Mapping

from torch import Tensor


def moved_average(average: Mapping[str, Tensor], new: Mapping[str, Tensor], decay: float) -> dict[str, Tensor]:
    """``decay`` parts of the average and 1 - ``decay`` of the new weights, by name."""
    return {name: decay * average[name] + (1 - decay) * weights for name, weights in new.items()}

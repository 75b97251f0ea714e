"""A record that stands for nobody: the arrays of a patient's step, made up, to learn what the step needs beforehand.

A site rehearses before it pays and before anyone is sampled. What fails then fails for every cohort alike, and what has
passed takes the memory and the time that it takes for a patient.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cmrfed.core.device import HOST
from cmrfed.data.draws import SliceBatch
from cmrfed.data.labels import Label, Phase
from cmrfed.generators.memory import saved_bytes, tensors

_WORKING_COPIES = 2
"""Arrays that live beside those saved for the backward pass, over these: gradients by activations, and workspaces."""
_COPIES_OF_WEIGHTS = 12
"""In float32: weights, gradient and its clipped copy, sum, four draws of noise and their sum in float64, moments."""


def made_up_slices(count: int, size_px: int, rng: torch.Generator) -> SliceBatch:
    """Slices (B = count) of random pixels, labels and phases, on the host; `gather` gives the same types."""
    shape = (count, size_px, size_px)

    def labels() -> Tensor:
        return torch.randint(len(Label), shape, generator=rng)

    return SliceBatch(
        image=torch.rand(count, 1, size_px, size_px, generator=rng) * 2 - 1,
        mask=labels(),
        basal=labels(),
        ed=labels(),
        phase=torch.randint(len(Phase), (count,), generator=rng),
        position=torch.rand(count, generator=rng),
        patient=torch.zeros(count, dtype=torch.int64, device=HOST),
    )


def needed_bytes(network: nn.Module, losses_of_one: Callable[[], Tensor], count: int) -> int:
    """Estimate of the memory of a step, from a forward pass of one made-up slice.

    What is saved for the backward pass grows with the number of slices; copies of the weights do not.

    Args:
        network: Whose weights are used.
        losses_of_one: Losses of one slice.
        count: Slices in memory together.
    """
    total = (1 + _WORKING_COPIES) * count * saved_bytes(network, losses_of_one)
    return total + _COPIES_OF_WEIGHTS * 4 * sum(t.numel() for t in tensors(network))


def subspace_bytes(parameters: int, rank: int, patients: int) -> int:
    """Memory of finding public directions: one gradient of each simulated patient, and the directions three times."""
    return 4 * parameters * (patients + 3 * rank)

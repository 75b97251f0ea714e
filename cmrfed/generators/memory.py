"""How much memory a forward pass takes, from one that is made."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def saved_bytes(network: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, beside the weights: more than it takes at any moment.

    Args:
        network: Whose weights are used.
        forward: The pass; gradients are enabled for it.
    """
    weights = {t.untyped_storage()._cdata for t in tensors(network)}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor.detach()  # a graph that holds one of its own outputs is never freed

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = forward()
    total = sum(saved.values())
    del found
    return total


def tensors(network: nn.Module) -> Iterable[Tensor]:
    """Parameters and buffers."""
    yield from network.parameters()
    yield from network.buffers()

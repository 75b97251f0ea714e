"""One patient's gradient: fp32, finite, of the trained parameters alone; and modules that cannot keep patients apart.

Flat clipping itself is Opacus' (`mechanism.PrivateSGD`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from cmrfed.core.device import values
from cmrfed.core.errors import PrivacyError


def checked_gradient(losses: Tensor, parameters: Sequence[nn.Parameter]) -> tuple[list[Tensor], Tensor]:
    """Gradient of the mean of one record's losses, by one ordinary backward; nothing waits for the device.

    Args:
        losses: Losses of the record's K draws, any shape; their mean is taken here, so that K costs no privacy.
        parameters: Trained ones, float32; one that the losses do not depend on has gradient 0.

    Returns:
        One float32 tensor per parameter, and whether all entries are finite, bool (): a record of which that is not
        true contributes nothing.
    """
    loss = losses.float().mean()
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in parameters], torch.isfinite(loss)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    whole = [torch.zeros_like(p) if g is None else g.detach() for g, p in zip(gradients, parameters, strict=True)]
    return whole, torch.stack([torch.isfinite(g).all() for g in whole]).all()


def record_gradient(losses: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor] | None:
    """The gradient of `checked_gradient`, or None where an entry is not finite; waits for the device."""
    gradient, finite = checked_gradient(losses, parameters)
    return gradient if finite else None


def check_module(module: nn.Module) -> None:
    """Refuse modules with which clipping bounds nothing.

    Raises:
        PrivacyError: The module has batch statistics, nothing to train, or parameters that are not float32.
    """
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) or (isinstance(part, _InstanceNorm) and part.track_running_stats):
            raise PrivacyError(
                f"{type(part).__name__} cannot be trained privately",
                got=f"{name or 'the module itself'}: it keeps statistics of the patients without noise",
                expected="normalisation within one item",
                do="use GroupNorm, LayerNorm, or InstanceNorm without running statistics",
            )
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise PrivacyError("nothing is left to train", do="let at least one parameter require gradients")
    kinds = {str(p.dtype) for p in trained}
    if kinds != {"torch.float32"}:
        raise PrivacyError(
            "private training needs float32 parameters: clipping in less may exceed its bound",
            got=", ".join(sorted(kinds)),
            expected="torch.float32 (bf16 autocast is fine)",
        )


class StateGuard:
    """Notices any write to a module, bit by bit: what a forward pass writes there reaches the server unclipped.

    Copies are compared, so that writes are found that torch does not count: by ``.data``, or to a frozen parameter.

    Args:
        module: Its parameters and buffers are copied now.
        but: Parameters that may change.
    """

    def __init__(self, module: nn.Module, but: Sequence[nn.Parameter] = ()) -> None:
        self._module, self._free = module, {id(p) for p in but}
        self._seen = {name: (id(tensor), tensor.detach().clone()) for name, tensor in self._state().items()}

    def _state(self) -> dict[str, Tensor]:
        parameters = {name: p for name, p in self._module.named_parameters() if id(p) not in self._free}
        return {**parameters, **dict(self._module.named_buffers())}

    def check(self) -> None:
        """Compare with the state at construction.

        Raises:
            PrivacyError: A parameter or a buffer was written, replaced or added.
        """
        now = self._state()
        known = [name for name in sorted(self._seen | now) if self._comparable(name, now)]
        same = values([_same_bits(self._seen[name][1], now[name]) for name in known])  # one wait for the device
        alike = {name for name, is_same in zip(known, same, strict=True) if is_same}
        changed = sorted((self._seen | now).keys() - alike)
        if changed:
            raise PrivacyError(
                "a forward pass wrote to a buffer or a parameter of the module: it depends on the patients, and has "
                "no noise",
                got=", ".join(changed[:5]),
                expected="weights and buffers that stay as they are while gradients are taken",
                do="use a module without running statistics, and write to none of its tensors",
            )

    def _comparable(self, name: str, now: dict[str, Tensor]) -> bool:
        """Whether it is the tensor that it was, of the same shape and type, on the same device."""
        if name not in self._seen or name not in now:
            return False
        (identity, copy), tensor = self._seen[name], now[name]
        alike = tensor.shape == copy.shape and tensor.dtype == copy.dtype and tensor.device == copy.device
        return alike and id(tensor) == identity


_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(one: Tensor, other: Tensor) -> Tensor:
    """Whether all bits are the same, bool (): NaN equals itself, and -0 is not 0."""
    return (_bits(one.detach()) == _bits(other.detach())).all()


def _bits(tensor: Tensor) -> Tensor:
    """The bits as whole numbers."""
    whole = _WHOLE.get(tensor.element_size(), torch.uint8)  # complex128 has 16 bytes
    return tensor.contiguous().view(-1).view(whole) if tensor.numel() else tensor.new_zeros(0)

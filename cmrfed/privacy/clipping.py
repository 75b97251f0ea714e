"""One patient's gradient: fp32, finite, of the trained parameters alone; and modules that cannot keep patients apart.

Flat clipping itself is Opacus' (`mechanism.PrivateSGD`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from cmrfed.errors import PrivacyError


def record_gradient(losses: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor] | None:
    """Gradient of the mean of one record's losses, by one ordinary backward.

    Args:
        losses: Losses of the record's K draws, any shape; their mean is taken here, so that K costs no privacy.
        parameters: Trained ones, float32; one that the losses do not depend on has gradient 0.

    Returns:
        One float32 tensor per parameter, or None where an entry is not finite: such a record contributes nothing.
    """
    loss = losses.float().mean()
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in parameters] if torch.isfinite(loss) else None
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    whole = [torch.zeros_like(p) if g is None else g.detach() for g, p in zip(gradients, parameters, strict=True)]
    finite = torch.stack([torch.isfinite(g).all() for g in whole]).all()
    return whole if finite else None


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


class BufferGuard:
    """Notices any write to the buffers of a module: what a forward pass writes there reaches the server unclipped."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._seen = module, self._state(module)

    @staticmethod
    def _state(module: nn.Module) -> dict[str, tuple[int, int]]:
        return {name: (id(buffer), buffer._version) for name, buffer in module.named_buffers()}

    def check(self) -> None:
        """Compare with the state at construction.

        Raises:
            PrivacyError: A buffer was written, replaced or added.
        """
        now = self._state(self._module)
        changed = sorted(name for name in self._seen | now if self._seen.get(name) != now.get(name))
        if changed:
            raise PrivacyError(
                "a forward pass wrote to a buffer of the module: it depends on the patients, and has no noise",
                got=", ".join(changed),
                expected="buffers that stay as they are",
                do="use a module without running statistics",
            )

"""What a generator is conditioned on: mask, phase, position and site, each of which may be unknown."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from cmrfed.core.device import to_device
from cmrfed.data.labels import Label, Phase

CLASSES = len(Label)
UNKNOWN = -1


def global_planes(styles: int) -> int:
    """Number of planes that are constant over the image: phase, position with its indicator, style."""
    return len(Phase) + 2 + styles


@dataclass(frozen=True)
class Condition:
    """Conditions of a batch.

    masks: int64 (B, M, H, W), canonical labels, -1 where unknown. The image stage has one (its own mask), the mask
    stage two (the basal neighbour, and for ES slices the ED mask). phase: int64 (B,), -1 unknown.
    position: float32 (B,), 0 base to 1 apex, NaN unknown. style: int64 (B,), site or vendor, -1 unknown.
    """

    masks: Tensor
    phase: Tensor
    position: Tensor
    style: Tensor

    def __len__(self) -> int:
        return len(self.phase)

    def __getitem__(self, part: slice) -> "Condition":
        return Condition(self.masks[part], self.phase[part], self.position[part], self.style[part])

    def to(self, device: torch.device) -> "Condition":
        """The same condition on another device."""
        return to_device(self, device)

    def null(self) -> "Condition":
        """Everything unknown: the unconditional side of guidance (Ho & Salimans, arXiv 2207.12598)."""
        return self._forget(torch.ones(len(self), dtype=torch.bool, device=self.phase.device))

    def drop(self, probability: float, rng: torch.Generator) -> "Condition":
        """Forget all conditions of each item with the given probability."""
        if not probability:
            return self
        return self._forget(to_device(torch.rand(len(self), generator=rng) < probability, self.phase.device))

    def drop_masks(self, probability: float, rng: torch.Generator) -> "Condition":
        """Forget each mask of each item with the given probability, so that a generator can start without it."""
        if not probability:
            return self
        gone = to_device(torch.rand(self.masks.shape[:2], generator=rng) < probability, self.masks.device)
        return replace(self, masks=torch.where(gone[:, :, None, None], UNKNOWN, self.masks))

    def _forget(self, gone: Tensor) -> "Condition":
        return Condition(
            torch.where(gone[:, None, None, None], UNKNOWN, self.masks),
            torch.where(gone, UNKNOWN, self.phase),
            torch.where(gone, torch.nan, self.position),
            torch.where(gone, UNKNOWN, self.style),
        )

    def mask_planes(self) -> Tensor:
        """One-hot masks, float32 (B, M * classes, H, W); all zero where unknown."""
        planes = torch.stack([(self.masks == label).float() for label in Label], 2)
        return planes.flatten(1, 2)

    def global_values(self, styles: int) -> Tensor:
        """Values of the constant planes, float32 (B, P): phase one-hot, position in [-1, 1], known, style one-hot.

        A style's plane holds the number of styles instead of 1: only one site trains its weights, and the mean over the
        sites shrinks each step of them by that number.
        """
        known = ~self.position.isnan()
        place = torch.where(known, self.position.nan_to_num() * 2 - 1, 0.0)
        return torch.cat(
            [
                _one_hot(self.phase, len(Phase)),
                torch.stack([place, known.float()], 1),
                styles * _one_hot(self.style, styles),
            ],
            1,
        )


def _one_hot(value: Tensor, classes: int) -> Tensor:
    known = (value >= 0) & (value < classes)
    return functional.one_hot(torch.where(known, value, 0), classes).float() * known[:, None]

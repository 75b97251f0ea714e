"""From slices to what a loss takes: the one way in which every trainer, audit and attack looks at a patient."""

import torch
from torch import Tensor

from cmrfed.core.device import to_device
from cmrfed.data.draws import SliceBatch
from cmrfed.generators.condition import Condition
from cmrfed.generators.stages import STAGES, StageName
from cmrfed.training.augment import augment
from cmrfed.training.settings import AugmentConfig


def stage_inputs(batch: SliceBatch, stage: StageName, style: int) -> tuple[Tensor, Condition]:
    """What the stage learns, and its condition.

    Args:
        batch: Slices of one or more patients.
        stage: Which stage.
        style: Number of the site's style, or `cmrfed.generators.condition.UNKNOWN`.
    """
    one = STAGES[stage]
    condition = Condition(one.masks(batch), batch.phase, batch.position, torch.full_like(batch.phase, style))
    return one.target(batch), condition


def training_inputs(
    batch: SliceBatch,
    stage: StageName,
    style: int,
    augmentation: AugmentConfig | None,
    rng: torch.Generator,
    device: torch.device,
) -> tuple[Tensor, Condition]:
    """Put slices on a device, where they are not there already, and augment them: what the stage learns from.

    Args:
        batch: Slices of one or more patients; no item sees another.
        stage: Which stage.
        style: As in `stage_inputs`.
        augmentation: Ranges; None leaves the slices as they are.
        rng: Source of the augmentation; a CPU generator.
        device: Where the loss is computed.
    """
    batch = to_device(batch, device)
    if augmentation:
        batch = augment(batch, augmentation, rng, with_images=STAGES[stage].learns_images)
    return stage_inputs(batch, stage, style)

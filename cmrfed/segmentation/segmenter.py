"""The reference segmenter: a small 2-D U-Net, trained the same way on whatever it is given."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmrfed.core.device import HOST, batch_that_fits, fits, normal, to_device, to_host
from cmrfed.core.errors import EvaluationError
from cmrfed.core.precision import arithmetic, autocast
from cmrfed.core.rng import torch_generator
from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import STRUCTURES, Label
from cmrfed.data.spool import Spool, blocks, release
from cmrfed.segmentation.settings import SegmenterConfig

BATCH, LARGEST_BATCH = 64, 1024
"""Slices that are segmented at a time on a CPU, and at most on an accelerator."""
BYTES = 1024
"""Memory for each pixel of a slice: a dozen maps of 16 channels, float32."""


def build_segmenter(config: SegmenterConfig, seed: int) -> nn.Module:
    """Make the untrained U-Net: (B, 1, H, W) in [-1, 1] => logits (B, 4, H, W)."""
    from monai.networks.nets import UNet  # all of MONAI: who trains no segmenter does not wait for it

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(seed, "segmenter").initial_seed())
        return UNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=len(Label),
            channels=config.channels,
            strides=(2,) * (len(config.channels) - 1),
            num_res_units=2,
            norm="instance",
        )


# --- augmentation -------------------------------------------------------------------------------
def _uniform(count: int, low: float, high: float, random: torch.Generator, device: torch.device) -> Tensor:
    return to_device(low + (high - low) * torch.rand(count, generator=random), device)


def _move(images: Tensor, masks: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rotate by up to 25 degrees, scale by 0.8 to 1.25, shift by up to 10 % of the field; no flips."""
    count, device = len(images), images.device
    angle = _uniform(count, -0.436, 0.436, random, device)
    scale = torch.exp(_uniform(count, -0.223, 0.223, random, device))
    shift = _uniform(2 * count, -0.2, 0.2, random, device).view(count, 2, 1)  # the field is 2 wide
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    grid = F.affine_grid(torch.cat([turn, shift], 2), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    labels = F.grid_sample(masks[:, None].float(), grid, mode="nearest", align_corners=False)
    return moved, labels[:, 0].long()


def _restyle(images: Tensor, random: torch.Generator) -> Tensor:
    """Gamma 0.6 to 1.6, a smooth bias field of about 30 %, and Gaussian noise of up to 0.1, values kept in [-1, 1]."""
    count, device = len(images), images.device
    gamma = torch.exp(_uniform(count, -0.5, 0.5, random, device)).view(-1, 1, 1, 1)
    unit = ((images + 1) / 2).clamp(0, 1) ** gamma
    coarse = to_device(0.3 * torch.randn(count, 1, 4, 4, generator=random), device)
    field = F.interpolate(coarse, size=images.shape[-2:], mode="bicubic", align_corners=True)
    level = _uniform(count, 0, 0.1, random, device).view(-1, 1, 1, 1)
    noise = level * normal(images.shape, random, images)
    return (2 * unit * torch.exp(field) - 1 + noise).clamp(-1, 1)


def augment(images: Tensor, masks: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Vary a batch without changing its anatomy: flips, which would put the right ventricle on the left, are left out.

    Args:
        images: float32 (B, 1, H, W) in [-1, 1].
        masks: int64 (B, H, W), on the same device.
        random: All draws come from it, a generator of the CPU.
    """
    moved, labels = _move(images, masks, random)
    return _restyle(moved, random), labels


# --- training -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class LabelledSlices:
    """Slices with masks: images float32 (N, 1, H, W) in [-1, 1], masks integers (N, H, W); both may be on disk."""

    images: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and masks, int64, of these rows (B,) on a device."""
        index = to_device(index, self.images.device)
        images, masks = (to_device(each[index], device) for each in (self.images, self.masks))
        if self.images.device == HOST:
            release(self.images.numpy())
            release(self.masks.numpy())
        return images, masks.long()

    @cached_property
    def digest(self) -> str:
        """`digest_state` of the images and the masks, the latter as int64, read in blocks."""
        total = hashlib.sha256()
        for name, each, kind in (("images", self.images, torch.float32), ("masks", self.masks, torch.int64)):
            total.update(f"{name}|{kind}|{tuple(each.shape)}|".encode())
            for _, block in blocks(each.numpy()):
                total.update(torch.from_numpy(block).to(kind).contiguous().numpy().data)
        return total.hexdigest()


def labelled_slices(cohort: Cohort, scratch: Path | None = None) -> LabelledSlices:
    """All slices of the patients that have masks.

    Args:
        cohort: The patients.
        scratch: Folder with room for the pixels; None: the system's folder for temporary files.
    """
    rows = [r for r, p in zip(cohort.rows_of, cohort.patients, strict=True) if p.has_mask]
    if not rows:
        raise EvaluationError(
            f"no patient of cohort {cohort.name} has a mask",
            expected="patients with masks",
            do="give a cohort with masks, or leave the segmentation out with evaluation.utility=false",
        )
    images, masks = (Spool((cohort.size_px, cohort.size_px), kind, scratch) for kind in (np.float32, np.uint8))
    for mine in rows:
        images.add(cohort.images[mine])
        masks.add(cohort.masks[mine])
        release(cohort.images)
    return LabelledSlices(torch.from_numpy(images.array())[:, None], torch.from_numpy(masks.array()))


def train_segmenter(
    images: Tensor,
    masks: Tensor,
    config: SegmenterConfig,
    seed: int,
    labels: Sequence[Label] = STRUCTURES,
    *,
    mixed_with: LabelledSlices | None = None,
    on_step: Callable[[], None] | None = None,
    device: torch.device = HOST,
) -> nn.Module:
    """Train the reference segmenter.

    Args:
        images: float32 (N, 1, H, W) in [-1, 1].
        masks: Integers (N, H, W), canonical labels.
        config: Size of the network and of the training.
        seed: Decides weights, order and augmentation.
        labels: Structures to learn; pixels of others are background.
        mixed_with: A second set that fills ``config.mixed_share`` of every batch.
        on_step: Called after every step.
        device: Where it is trained, and stays. Slices that fit into its memory are copied there once.

    Raises:
        EvaluationError: There are no slices, or their size does not fit the network.
    """
    from monai.losses import DiceCELoss

    sources = [LabelledSlices(images, masks)] + ([mixed_with] if mixed_with is not None else [])
    _check_sources(sources, config)
    model, random = build_segmenter(config, seed), torch_generator(seed, "segmenter batches")
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    sources = _resident(sources, device)
    optimiser = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=config.steps + 1)
    loss_of = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    learnt, dtype = to_device(_only(labels), device), arithmetic(config.precision, device.type)
    for _ in range(config.steps):
        x, y = _batch(sources, config, random, device)
        if config.augment:
            x, y = augment(x, y, random)
        with autocast(device.type, dtype):
            logits = model(x.contiguous(memory_format=torch.channels_last))
        loss = loss_of(logits.float(), learnt[y][:, None])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if on_step:
            on_step()
    return model.eval()


def _resident(sources: Sequence[LabelledSlices], device: torch.device) -> list[LabelledSlices]:
    """The slices on the device, where its memory takes all of them."""
    tensors = [each for source in sources for each in (source.images, source.masks)]
    if not fits(device, sum(each.numel() * each.element_size() for each in tensors)):
        return list(sources)
    return [LabelledSlices(_copied(source.images, device), _copied(source.masks, device)) for source in sources]


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device, sent in blocks: pinned memory never holds all of it."""
    there = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    for place, block in blocks(tensor.numpy()):
        there[place] = to_device(torch.from_numpy(block), device)
    return there


def _check_sources(sources: Sequence[LabelledSlices], config: SegmenterConfig) -> None:
    factor = 2 ** (len(config.channels) - 1)
    for source in sources:
        height, width = source.images.shape[-2:]
        if not len(source) or height % factor or width % factor:
            raise EvaluationError(
                "the segmenter cannot be trained on these slices",
                got=f"{len(source)} slices of {height} x {width} pixels",
                expected=f"at least one slice, and sides that are multiples of {factor}",
                do="check the data set, or prepare it in another size",
            )


def _only(labels: Sequence[Label]) -> Tensor:
    """Table (4,) that keeps ``labels`` and sends every other label to the background."""
    return torch.tensor([int(label) if label in labels else 0 for label in Label], device=HOST)


def _batch(
    sources: Sequence[LabelledSlices], config: SegmenterConfig, random: torch.Generator, device: torch.device = HOST
) -> tuple[Tensor, Tensor]:
    """Draw a batch: ``mixed_share`` of it, rounded down but at least one, from the second source if there is one."""
    size, mixed = config.batch_size, max(int(config.batch_size * config.mixed_share), 1)
    parts = [size] if len(sources) == 1 else [size - mixed, mixed]
    chosen = [torch.randint(len(s), (k,), generator=random) for s, k in zip(sources, parts, strict=True)]
    drawn = [s.rows(i, device) for s, i in zip(sources, chosen, strict=True)]
    return torch.cat([images for images, _ in drawn]), torch.cat([masks for _, masks in drawn])


# --- using it ------------------------------------------------------------------------------------
@torch.no_grad()
def segment(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Labels uint8 (N, H, W) of slices (N, H, W) in [-1, 1], as float32 whatever the model was trained in."""
    model.eval()
    device = next((weights.device for weights in model.parameters()), HOST)
    size = batch_that_fits(device, BATCH, images[0].size * BYTES, most=LARGEST_BATCH)
    batches = torch.from_numpy(np.asarray(images, np.float32))[:, None].split(size)
    return torch.cat([to_host(model(to_device(x, device)).argmax(1)) for x in batches]).numpy().astype(np.uint8)

"""Synthetic patients in two stages: a stack of masks from base to apex at ED and ES, then images from the masks.

The mask stage walks the heart: each ED slice is drawn given the one nearer to the base, each ES slice given its basal
neighbour and the ED slice at its place. So slices agree with each other, and ES with ED.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmrfed.core.device import HOST, batch_that_fits
from cmrfed.core.errors import DataError
from cmrfed.core.precision import arithmetic
from cmrfed.core.rng import fold, numpy_generator
from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import Phase
from cmrfed.data.synthetic import Case
from cmrfed.generators.condition import UNKNOWN, Condition
from cmrfed.generators.generator import Generator
from cmrfed.synthesis.post_processing import post_process
from cmrfed.synthesis.settings import SynthesisConfig


@dataclass(frozen=True)
class Plan:
    """Who a synthetic patient is, before anything is drawn."""

    number: int
    depth: int
    style: int

    @property
    def name(self) -> str:
        """Identifier."""
        return f"syn-{self.number + 1:04d}"


def plan_patients(config: SynthesisConfig, patients: int, styles: int, seed: int) -> list[Plan]:
    """Depth and style of each patient; patient i is the same however many are drawn."""
    low, high = config.slices
    depths = [int(numpy_generator(seed, "depth", i).integers(low, high + 1)) for i in range(patients)]
    return [Plan(i, depth, i % styles) for i, depth in enumerate(depths)]


def draw_masks(generator: Generator, plans: Sequence[Plan], config: SynthesisConfig, seed: int) -> list[np.ndarray]:
    """Masks of each patient, uint8 (2, Z, H, W): ED and ES, base to apex."""
    size = generator.config.size_px
    out = [np.zeros((2, plan.depth, size, size), np.uint8) for plan in plans]
    for phase in Phase:
        for z in range(max(plan.depth for plan in plans)):
            active = [i for i, plan in enumerate(plans) if plan.depth > z]
            basal = [out[i][phase, z - 1] if z else None for i in active]
            ed = [out[i][Phase.ED, z] if phase == Phase.ES else None for i in active]
            cond = Condition(
                torch.stack([_context(basal, size), _context(ed, size)], 1),
                torch.full((len(active),), int(phase), device=HOST),
                torch.tensor([z / (plans[i].depth - 1) for i in active], device=HOST),
                torch.tensor([plans[i].style for i in active], device=HOST),
            )
            seeds = [fold(seed, "mask", plans[i].number, int(phase), z) for i in active]
            drawn = generator.sample(
                cond, seeds, batch_size=config.batch_size, precision=arithmetic(config.precision, generator.device.type)
            )
            for i, mask in zip(active, drawn.numpy(), strict=True):
                out[i][phase, z] = mask
    return out


def _context(masks: Sequence[np.ndarray | None], size: int) -> Tensor:
    """Masks, or unknown where there is none: int64 (B, H, W)."""
    unknown = np.full((size, size), UNKNOWN, np.int64)
    return torch.from_numpy(np.stack([unknown if m is None else m.astype(np.int64) for m in masks]))


@dataclass(frozen=True)
class Request:
    """What an image generator is asked for, slice by slice: conditions, own seeds, and seeds shared by a patient."""

    cond: Condition
    own: list[int]
    common: list[int]

    def __getitem__(self, part: slice) -> "Request":
        return Request(self.cond[part], self.own[part], self.common[part])


def image_seed(seed: int, number: int) -> int:
    """Seed of the volumes of synthetic patient ``number``, from 0, in the data set of that seed."""
    return fold(seed, "image", number)


def image_request(
    masks: Sequence[np.ndarray], phases: Sequence[Phase], styles: Sequence[int], seeds: Sequence[int]
) -> Request:
    """The request for all slices of volumes: masks uint8 (Z, H, W) each; one phase, style and seed for each volume."""
    counts = [len(mask) for mask in masks]
    place = np.concatenate([np.arange(n) / max(n - 1, 1) for n in counts]).astype(np.float32)
    cond = Condition(
        torch.from_numpy(np.concatenate(masks).astype(np.int64))[:, None],
        torch.from_numpy(np.repeat([int(p) for p in phases], counts)),
        torch.from_numpy(place),
        torch.from_numpy(np.repeat(list(styles), counts)),
    )
    own = [fold(s, "slice", int(p), z) for s, p, n in zip(seeds, phases, counts, strict=True) for z in range(n)]
    common = [fold(s, "patient") for s, n in zip(seeds, counts, strict=True) for _ in range(n)]
    return Request(cond, own, common)


def draw_images(
    generator: Generator,
    masks: Sequence[np.ndarray],
    phases: Sequence[Phase],
    styles: Sequence[int],
    config: SynthesisConfig,
    seeds: Sequence[int],
    on_slices: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """Images of volumes: masks uint8 (Z, H, W) each => float32 (Z, H, W) each in [-1, 1].

    ``seeds`` holds one seed per *patient volume*; volumes with the same one share part of their noise.
    """
    request = image_request(masks, phases, styles, seeds)
    flat = generator.sample(
        request.cond,
        request.own,
        shared_seeds=request.common,
        shared=config.shared_noise,
        batch_size=config.batch_size,
        precision=arithmetic(config.precision, generator.device.type),
        on_batch=on_slices,
    )[:, 0].numpy()
    return [part.astype(np.float32) for part in np.split(flat, np.cumsum([len(mask) for mask in masks])[:-1])]


def synthesize(
    mask_generator: Generator,
    image_generator: Generator,
    config: SynthesisConfig,
    *,
    patients: int,
    seed: int,
    spacing_mm: tuple[float, float, float] | None,
    style_names: Sequence[str],
    on_slices: Callable[[int], None] | None = None,
    group: int | None = None,
) -> Iterator[Case]:
    """Draw patients: ED and ES of each. Patient i depends on the seed and i only.

    Args:
        mask_generator: Draws stacks of masks.
        image_generator: Draws images from masks.
        config: Settings.
        patients: How many.
        seed: Of the data set.
        spacing_mm: Row, column and slice spacing of what the generators learned from, or None.
        style_names: Name of each style.
        on_slices: Called with the number of images done.
        group: Patients held in memory at a time; None: 16, and on an accelerator 128.
    """
    plans = plan_patients(config, patients, len(style_names), seed)
    group = group or batch_that_fits(mask_generator.device, 16, 1, most=128)
    for start in range(0, patients, group):
        part = plans[start : start + group]
        as_drawn = draw_masks(mask_generator, part, config, seed)
        volumes = [
            (plan, phase, post_process(as_drawn[i][phase], config.mask_post_processing), as_drawn[i][phase])
            for i, plan in enumerate(part)
            for phase in Phase
        ]
        images = draw_images(
            image_generator,
            [mask for _, _, mask, _ in volumes],
            [phase for _, phase, _, _ in volumes],
            [plan.style for plan, _, _, _ in volumes],
            config,
            [image_seed(seed, plan.number) for plan, _, _, _ in volumes],
            on_slices,
        )
        for (plan, phase, mask, drawn), image in zip(volumes, images, strict=True):
            name, kept = f"{plan.name}_{phase.name}", None if config.mask_post_processing == "none" else drawn
            yield Case(name, plan.name, phase, image, mask, spacing_mm, style_names[plan.style], kept)


def reconstruct(
    image_generator: Generator, cohort: Cohort, batch_size: int, on_slices: Callable[[int], None] | None = None
) -> Iterator[Case]:
    """Pass the images of all patients with masks through the generator's codec and back. Not for release.

    What the codec loses, nothing that is drawn by it can have. Patients have pseudonyms, and come in their order.
    """
    for patient, i in _under_pseudonyms(cohort):
        for volume in cohort.volumes(i):
            parts = torch.from_numpy(np.asarray(volume.image, np.float32))[:, None].split(batch_size)
            image = torch.cat([image_generator.reconstruct(part) for part in parts])[:, 0].numpy()
            name, mask = f"{patient}_{volume.phase.name}", np.asarray(volume.mask)
            yield Case(name, patient, volume.phase, image, mask, volume.spacing_mm, "unknown")
            if on_slices:
                on_slices(len(image))


def _under_pseudonyms(cohort: Cohort) -> list[tuple[str, int]]:
    """Pseudonym and place in the cohort of each patient with masks; neither name nor order follows the identifiers."""
    return sorted(
        (cohort.pseudonym(record.patient_id), i) for i, record in enumerate(cohort.patients) if record.has_mask
    )


def pair_with(
    image_generator: Generator,
    cohort: Cohort,
    config: SynthesisConfig,
    *,
    seed: int,
    style_names: Sequence[str],
    on_slices: Callable[[int], None] | None = None,
) -> Iterator[Case]:
    """Draw an image for each real mask of a cohort, for measures that compare pairs. Not for release.

    Patients have pseudonyms, and come in their order.

    Raises:
        DataError: No patient of the cohort has a mask.
    """
    chosen = _under_pseudonyms(cohort)
    if not chosen:
        raise DataError(f"cohort {cohort.name} has no masks to draw images for", do="leave out mask-paired measures")
    for number, (patient, i) in enumerate(chosen):
        volumes = cohort.volumes(i)
        style = number % len(style_names)
        images = draw_images(
            image_generator,
            [v.mask for v in volumes if v.mask is not None],
            [v.phase for v in volumes],
            [style] * len(volumes),
            config,
            [fold(seed, "paired", patient)] * len(volumes),
            on_slices,
        )
        for volume, image in zip(volumes, images, strict=True):
            name, mask = f"{patient}_{volume.phase.name}", np.asarray(volume.mask)
            yield Case(name, patient, volume.phase, image, mask, volume.spacing_mm, style_names[style])

"""Generators and patients small enough for tests: 16 px, a U-Net of two narrow levels, lopsided hearts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmrfed.data.cohort import Cohort, PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.labels import Phase
from cmrfed.generators.autoencoder import build_autoencoder
from cmrfed.generators.condition import Condition
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import (
    AutoencoderConfig,
    BackboneConfig,
    DDPMConfig,
    FlowConfig,
    GeneratorConfig,
    SamplerConfig,
)

SIZE_PX = 16
TINY = BackboneConfig(channels=(8, 16), norm_groups=4, patch_px=2)
TINY_AUTOENCODER = AutoencoderConfig(channels=(8, 8), latent_channels=2, norm_groups=4)
SPACING_MM = (1.5, 1.25, 8.0)


def tiny_config(codec: str = "pixel", process: object = None, sampler: SamplerConfig | None = None, **more: object):
    """Flow by default; the mask codec gets the two condition masks of the mask stage, the latent one an autoencoder."""
    process = process or FlowConfig()
    name = "euler" if isinstance(process, FlowConfig) else "ddim"
    settings = {"condition_masks": 2 if codec == "mask" else 1, "styles": 3, "size_px": SIZE_PX, "backbone": TINY}
    sampler = sampler or SamplerConfig(name=name, steps=2)
    if codec == "latent":
        settings["autoencoder"] = TINY_AUTOENCODER
    return GeneratorConfig(codec=codec, process=process, sampler=sampler, **{**settings, **more})


def tiny_generator(codec: str = "pixel", process: object = None, seed: int = 1, **more: object) -> Generator:
    """A generator with random weights, ready to draw."""
    return Generator(
        tiny_config(codec, process, **more), seed, tiny_autoencoder() if codec == "latent" else None
    ).eval()


def tiny_autoencoder(seed: int = 3, config: AutoencoderConfig = TINY_AUTOENCODER) -> dict[str, Tensor]:
    """Random weights of an autoencoder, which makes something of any image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(build_autoencoder(config).state_dict())


def ddpm(prediction: str = "v_prediction") -> DDPMConfig:
    """The diffusion family with a given target."""
    return DDPMConfig(prediction=prediction)


def random_condition(count: int, masks: int = 1, seed: int = 0, size: int = SIZE_PX) -> Condition:
    """Labels at random, everything known."""
    rng = torch.Generator().manual_seed(seed)
    return Condition(
        torch.randint(4, (count, masks, size, size), generator=rng),
        torch.randint(2, (count,), generator=rng),
        torch.rand(count, generator=rng),
        torch.randint(3, (count,), generator=rng),
    )


def heart(number: int, phase: Phase, place: float, size: int = SIZE_PX) -> np.ndarray:
    """Mask (H, W): a ring with a blob beside it, whose size and centre depend on patient, phase and position."""
    rows, columns = np.mgrid[:size, :size] - size / 2 + 0.5
    radius = size * (0.3 - 0.12 * place - 0.03 * phase + 0.01 * (number % 3))
    far = np.hypot(rows - number % 2, columns - 1)
    beside = np.hypot(rows - number % 2, columns + 1 + radius) < radius * 0.8
    return np.where(far < radius * 0.6, 3, np.where(far < radius, 2, np.where(beside, 1, 0))).astype(np.uint8)


def blob_patient(
    number: int, depths: Sequence[int] = (4, 3), size: int = SIZE_PX, *, has_mask: bool = True
) -> PreparedPatient:
    """ED and ES of ``depths`` slices; the image is a grey level per label with a little noise."""
    name, volumes = f"p{number:02d}", []
    for phase in Phase:
        depth = depths[phase]
        mask = np.stack([heart(number, phase, z / max(depth - 1, 1), size) for z in range(depth)])
        noise = np.random.default_rng(100 * number + phase).normal(0, 0.05, mask.shape)
        image = np.clip(np.array([-0.8, 0.6, -0.2, 0.7])[mask] + noise, -1, 1).astype(np.float32)
        volumes.append(Volume(name, phase, image, mask if has_mask else None, SPACING_MM))
    record = PatientRecord(patient_id=name, group="AB"[number % 2], has_mask=has_mask, spacing_mm=SPACING_MM)
    return PreparedPatient(record, tuple(volumes))


def blob_cohort(
    path: Path, patients: int = 4, size: int = SIZE_PX, *, has_mask: bool = True, name: str = "blobs", first: int = 0
) -> Cohort:
    """Write patients of unlike depths: 4 and 3 slices, 5 and 5, 3 and 4, …"""
    depths = [(4, 3), (5, 5), (3, 4)]
    made = [blob_patient(i, depths[i % 3], size, has_mask=has_mask) for i in range(first, first + patients)]
    return write_cohort(path, made, name=name, source="test", size_px=size, labels=(1, 2, 3), preparation={})


def same_weights(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Equal names and equal bits."""
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)

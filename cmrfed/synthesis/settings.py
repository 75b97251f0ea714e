"""The settings of synthesis. Loads no torch."""

from typing import Literal

from pydantic import Field, model_validator

from cmrfed.core.config import Precision, Section

PostProcessing = Literal["none", "largest_component"]


class SynthesisConfig(Section):
    """How patients are drawn. The range of slices is a public choice, never taken from patients."""

    patients: int = Field(40, ge=1)
    """Synthetic patients, each at ED and ES."""
    seed: int = 0
    """Same seed and generators, same patients."""
    slices: tuple[int, int] = (8, 10)
    """Fewest and most slices of a patient, each number equally likely."""
    slice_spacing_mm: float = Field(10.0, gt=0)
    """Written beside a known in-plane spacing."""
    pixel_mm: float | None = Field(None, gt=0)
    """In-plane spacing: the field of view of preparation over its pixels. None: read from the cohorts; but a private
    run does not ask its patients, and then it is unknown."""
    shared_noise: float = Field(0.5, ge=0, le=1)
    """Share of an image's initial noise that all slices of its patient have in common."""
    mask_post_processing: PostProcessing = "none"
    """What is done to masks once all of a patient's are drawn, before images are drawn for them. largest_component:
    keep the largest piece of each structure on each slice. Masks as drawn are kept beside, and evaluated too."""
    batch_size: int = Field(64, ge=1)
    """Slices that are drawn at a time."""
    precision: Precision = "bf16"
    """Of the network's arithmetic: bf16 where the device computes in it, fp32 everywhere else."""

    @model_validator(mode="after")
    def _ordered(self) -> "SynthesisConfig":
        if not 2 <= self.slices[0] <= self.slices[1]:
            raise ValueError(f"slices must be (fewest, most) with 2 <= fewest <= most, got {self.slices}")
        return self

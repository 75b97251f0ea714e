"""The settings of synthesis. Loads no torch."""

from typing import Literal

from pydantic import Field, model_validator

from cmrfed.core.settings.config import Precision, Section

PostProcessing = Literal["none", "largest_component"]


class SynthesisConfig(Section):
    """Sampling of synthetic patients. The range of slices is a public choice, never derived from patients."""

    source: Literal["generators", "phantom", "relabelled"] = "generators"
    """What the data set is drawn from: the trained generators; the phantom itself, which hands out simulated patients
    and nothing that was learned; or (relabelled) the phantom's images under the labels of the segmenter that learned at
    the sites. The other settings but ``patients`` and ``seed`` are of generators."""
    patients: int = Field(40, ge=1)
    """Synthetic patients, each at ED and ES."""
    seed: int = 0
    """Same seed and generators, same patients."""
    slices: tuple[int, int] = (8, 10)
    """Minimum and maximum number of slices per patient, uniformly distributed."""
    slice_spacing_mm: float = Field(10.0, gt=0)
    """Slice spacing, written where the in-plane spacing is known."""
    pixel_mm: float | None = Field(None, gt=0)
    """In-plane spacing: the prepared field of view divided by its pixels. None reads it from the cohorts; a private run
    does not query its patients, and then the spacing is unknown."""
    shared_noise: float = Field(0.5, ge=0, le=1)
    """Fraction of the variance of the initial noise that all slices of a patient share."""
    mask_post_processing: PostProcessing = "none"
    """Post-processing of a patient's generated masks before image synthesis. largest_component keeps the largest
    connected component of each structure on each slice; the unprocessed masks are kept and evaluated too."""
    batch_size: int = Field(64, ge=1)
    """Slices sampled per batch."""
    precision: Precision = "bf16"
    """Arithmetic of the network: bf16 where the device supports it in hardware, otherwise fp32."""

    @model_validator(mode="after")
    def _ordered(self) -> "SynthesisConfig":
        if not 2 <= self.slices[0] <= self.slices[1]:
            raise ValueError(f"slices must be (fewest, most) with 2 <= fewest <= most, got {self.slices}")
        return self

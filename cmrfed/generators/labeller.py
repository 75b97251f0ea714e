"""A segmenter as a stage trains it: from public weights, on what the sites' annotators drew.

What a hospital's patients have to teach is less how images look than which pixels its annotators call what. A segmenter
says that in few parameters, learns it from few steps, and hands it on: public images that it has labelled again are
public training data for both generators, at no further cost.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmrfed.generators.condition import CLASSES, Condition
from cmrfed.generators.settings import GeneratorConfig
from cmrfed.segmentation.files import save_segmenter
from cmrfed.segmentation.segmenter import build_segmenter
from cmrfed.segmentation.settings import SegmenterConfig


class TrainableSegmenter(nn.Module):
    """The reference segmenter, to be trained at the sites. Its normalisation is within one item and one channel.

    Args:
        config: Has the architecture, and the size of the images.
        seed: Of the initial weights.
    """

    def __init__(self, config: GeneratorConfig, seed: int = 0) -> None:
        super().__init__()
        if config.segmenter is None:
            raise AssertionError("the stage has no segmenter")
        self.config, self._channels = config, config.segmenter.channels
        self.network = build_segmenter(SegmenterConfig(channels=self._channels), seed)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def loss(self, raw: Tensor, cond: Condition, rng: torch.Generator) -> Tensor:
        """How far the segmenter is from the annotators, one value per item (B,).

        Args:
            raw: Images float (B, 1, H, W) in [-1, 1].
            cond: Their masks; nothing else of it is used.
            rng: Not used.
        """
        return segmentation_losses(self.network(raw), cond.masks[:, 0])

    def save(self, folder: Path) -> None:
        """Write a folder that `cmrfed.segmentation.files.load_segmenter` opens."""
        save_segmenter(folder, self.network, channels=self._channels, size_px=self.config.size_px)


def segmentation_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy plus the soft Dice loss (Milletari et al., arXiv 1606.04797) of each item by itself.

    The Dice loss is the mean over structures of 1 - (2 Σ p y + 1) / (Σ p + Σ y + 1): 0 where a structure is neither
    there nor found, and it has a gradient where one is found that is not there.

    Args:
        logits: Float (B, 4, H, W).
        labels: int64 (B, H, W), canonical labels.

    Returns:
        float32 (B,), in which no item depends on another.
    """
    logits = logits.float()
    truth = functional.one_hot(labels, CLASSES).movedim(-1, 1).float()
    share = logits.softmax(1)
    entropy = functional.cross_entropy(logits, labels, reduction="none").flatten(1).mean(1)
    both, either = ((share * truth).flatten(2).sum(2), (share + truth).flatten(2).sum(2))
    dice = 1 - (2 * both[:, 1:] + 1) / (either[:, 1:] + 1)
    return entropy + dice.mean(1)

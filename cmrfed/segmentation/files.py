"""A segmenter as a folder: its weights, what they belong to, and a card that says how they are used."""

from pathlib import Path

from pydantic import Field, ValidationError
from torch import nn

from cmrfed.core.artifacts import load_state, new_folder, read_json, save_state, write_json, write_text
from cmrfed.core.errors import CmrfedError, DataError
from cmrfed.core.settings.config import Section
from cmrfed.data.labels import Label
from cmrfed.segmentation.segmenter import build_segmenter
from cmrfed.segmentation.settings import SegmenterConfig

ABOUT, WEIGHTS, CARD = "segmenter.json", "segmenter.safetensors", "README.md"

_CARD = """---
library_name: monai
tags: [medical-imaging, cardiac-mri, segmentation]
---

# Segmenter of short-axis cardiac MRI

A U-Net (`monai.networks.nets.UNet`) of {parameters:,} parameters, channels {channels}, with instance normalisation.
In: float32 (B, 1, {size}, {size}), grey values scaled to [-1, 1] as `cmrfed prepare` leaves them. Out: logits
(B, {classes}, {size}, {size}) of {labels}.

```python
from pathlib import Path
from cmrfed.segmentation.files import load_segmenter

segmenter = load_segmenter(Path("generators/{folder}"))
labels = segmenter(images).argmax(1)
```

**Intended use**: research; labels for synthetic and public images. Not for diagnosis, treatment or any other clinical
use.
**Privacy**: this folder promises none. What may be said is in `manifest.json` of the data set that was drawn in the
same run; without such a statement, treat the weights as you would treat the patients' scans.
"""


class SegmenterFile(Section):
    """The content of segmenter.json."""

    channels: tuple[int, ...] = Field(min_length=2)
    size_px: int = Field(ge=1)
    """Height and width of the images that it learned from."""


def save_segmenter(folder: Path, network: nn.Module, *, channels: tuple[int, ...], size_px: int) -> None:
    """Write ``folder``, which appears when it is whole.

    Args:
        folder: New.
        network: Of `build_segmenter`.
        channels: Of its levels.
        size_px: Height and width of the images that it learned from.
    """
    card = _CARD.format(
        parameters=sum(weights.numel() for weights in network.parameters()),
        channels=list(channels),
        size=size_px,
        classes=len(Label),
        labels=", ".join(f"{int(label)} {label.name}" for label in Label),
        folder=folder.name,
    )
    about = SegmenterFile(channels=channels, size_px=size_px)
    with new_folder(folder) as part:
        save_state(part / WEIGHTS, dict(sorted(network.state_dict().items())))
        write_json(part / ABOUT, about.model_dump(mode="json"))
        write_text(part / CARD, card)


def load_segmenter(folder: Path) -> nn.Module:
    """Read a folder that `save_segmenter` wrote: on the host, ready to segment.

    Raises:
        DataError: A file is missing or damaged, or the weights are those of another network.
    """
    try:
        about = SegmenterFile.model_validate(read_json(folder / ABOUT))
        network = build_segmenter(SegmenterConfig(channels=about.channels), 0)
        network.load_state_dict(load_state(folder / WEIGHTS)[0])
    except (ValidationError, CmrfedError, RuntimeError) as error:
        raise DataError(
            f"the segmenter in {folder} cannot be used", got=error, do="make it anew with the command that made it"
        ) from None
    return network.eval()

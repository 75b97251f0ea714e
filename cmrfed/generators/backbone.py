"""Networks: what every one offers, and the U-Net (diffusers' UNet2DModel) with every condition as input planes."""

import errno
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from cmrfed.generators.condition import CLASSES, Condition, global_planes
from cmrfed.generators.settings import BackboneConfig


class Backbone(nn.Module, ABC):
    """Predicts from a perturbed array, its time and condition; one item must not see another.

    Args:
        size: Height and width of the array.
        channels: Channels of the array.
        masks: Masks of a condition (M).
        styles: Number of known styles.
        shrink: Side of a mask over the side of the array.
    """

    @abstractmethod
    def condition_planes(self, cond: Condition) -> Tensor:
        """A condition as `forward` takes it, (B, …): made once, used at every step."""

    @abstractmethod
    def zero_site_conditioning(self) -> None:
        """Put the weights of the style to zero, so that all styles are drawn alike."""

    @abstractmethod
    def forward(self, noisy: Tensor, time: Tensor, planes: Tensor) -> Tensor:
        """Noisy (B, C, H, W), time (B,) in [0, 1000] and planes => prediction (B, C, H, W), float32."""

    # --- files ----------------------------------------------------------------------------------
    folder = "network"
    """Where `save` writes, within the folder of a generator."""
    index: dict[str, list[str]] = {}
    """Entries of ``model_index.json`` by which diffusers opens what `save` wrote."""

    def save(self, folder: Path) -> None:
        """Write the weights into the folder of a generator."""
        (folder / self.folder).mkdir()
        save_file(self.state_dict(), folder / self.folder / "weights.safetensors")

    def load(self, folder: Path) -> None:
        """Read the weights that `save` wrote.

        Raises:
            OSError, RuntimeError, ValueError: A file is missing, or its weights do not fit.
        """
        self.load_state_dict(load_file(folder / self.folder / "weights.safetensors"))


class UNet(Backbone):
    """A U-Net behind a pixel-unshuffle; masks, phase, position and style are further input planes.

    Args:
        config: Size of the network.
        size: Height and width of the array.
        channels: Channels of the array.
        masks: Masks of a condition (M).
        styles: Number of known styles.
        shrink: Side of a mask over the side of the array.
    """

    folder = "unet"
    index = {"unet": ["diffusers", "UNet2DModel"]}

    def __init__(
        self, config: BackboneConfig, *, size: int, channels: int, masks: int, styles: int, shrink: int = 1
    ) -> None:
        super().__init__()
        self.patch_px, self.mask_patch_px, self.styles = config.patch_px, config.patch_px * shrink, styles
        area, levels = config.patch_px**2, len(config.channels)
        attend = [level >= levels - config.attention_levels for level in range(levels)]
        self.unet = UNet2DModel(
            sample_size=size // config.patch_px,
            in_channels=(channels + masks * CLASSES * shrink**2) * area + global_planes(styles),
            out_channels=channels * area,
            block_out_channels=config.channels,
            layers_per_block=config.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attend),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attend)),
            norm_num_groups=config.norm_groups,
            attention_head_dim=min(32, *config.channels),  # a head wider than its level would have no weights
        )

    def condition_planes(self, cond: Condition) -> Tensor:
        """All planes of a condition at the U-Net's resolution, (B, P, h, w): made once, used at every step."""
        spatial = functional.pixel_unshuffle(cond.mask_planes(), self.mask_patch_px)
        values = cond.global_values(self.styles)[:, :, None, None]
        return torch.cat([spatial, values.expand(-1, -1, *spatial.shape[2:])], 1)

    @torch.no_grad()
    def zero_site_conditioning(self) -> None:
        """Put the weights of the style planes, which are the last ones, to zero: all styles are drawn alike."""
        self.unet.conv_in.weight[:, -self.styles :] = 0

    def forward(self, noisy: Tensor, time: Tensor, planes: Tensor) -> Tensor:
        """Noisy (B, C, H, W), time (B,) in [0, 1000], planes (B, P, h, w) => prediction (B, C, H, W), float32."""
        inputs = torch.cat([functional.pixel_unshuffle(noisy, self.patch_px), planes], 1)
        out = self.unet(inputs, time, return_dict=False)[0]
        return functional.pixel_shuffle(out.float(), self.patch_px)

    def save(self, folder: Path) -> None:
        """Write ``unet/``, which diffusers opens."""
        try:
            self.unet.save_pretrained(folder / self.folder, safe_serialization=True)
        except SafetensorError as error:  # how safetensors tells of a full disk
            raise OSError(errno.EIO, str(error), str(folder)) from error

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        unet = UNet2DModel.from_pretrained(folder / self.folder, use_safetensors=True, low_cpu_mem_usage=False)
        self.unet.load_state_dict(unet.state_dict())

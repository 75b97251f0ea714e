"""The network: diffusers' UNet2DModel behind a pixel-unshuffle, with every condition as input planes."""

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional

from cmrfed.generators.condition import CLASSES, Condition, global_planes
from cmrfed.generators.settings import BackboneConfig


class Backbone(nn.Module):
    """ε, v or velocity of a perturbed array, given its time and condition.

    Args:
        config: Size of the network.
        size: Height and width of the array.
        channels: Channels of the array.
        masks: Masks of a condition (M).
        styles: Number of known styles.
        shrink: Side of a mask over the side of the array.
    """

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
    def silence_styles(self) -> None:
        """Put the weights of the style planes, which are the last ones, to zero: all styles are drawn alike."""
        self.unet.conv_in.weight[:, -self.styles :] = 0

    def forward(self, noisy: Tensor, time: Tensor, planes: Tensor) -> Tensor:
        """Noisy (B, C, H, W), time (B,) in [0, 1000], planes (B, P, h, w) => prediction (B, C, H, W), float32."""
        inputs = torch.cat([functional.pixel_unshuffle(noisy, self.patch_px), planes], 1)
        out = self.unet(inputs, time, return_dict=False)[0]
        return functional.pixel_shuffle(out.float(), self.patch_px)

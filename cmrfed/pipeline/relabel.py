"""Public patients under the labels of a segmenter that has learned at the sites, and generators that learn from them.

Which pixels the sites' annotators call what is all that these patients teach here, and the segmenter's stage pays for
it. The images are public and the labels are what the released segmenter makes of them, so whatever learns from both is
post-processing: it costs no further ε, however long it trains.
"""

import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from cmrfed.config.experiment import STAGES, Experiment, SegmenterStage
from cmrfed.core.artifacts import digest_json, digest_state, locked, new_folder, read_json, write_json
from cmrfed.core.device import HOST, resolve
from cmrfed.core.errors import CmrfedError
from cmrfed.core.progress import track
from cmrfed.core.rng import fold
from cmrfed.core.settings.digests import digested
from cmrfed.data.cohort import Cohort
from cmrfed.data.pool import pool
from cmrfed.data.public import PUBLIC_VERSION, cache_folder
from cmrfed.pipeline.pretrain import (
    ABOUT,
    CODEC,
    LEARNED,
    cohorts_origin,
    pretrained,
    stored_sources,
    train_stage,
)
from cmrfed.pipeline.public import PublicTrainingSet, mixed, open_public, public_config, public_training_set
from cmrfed.segmentation.completion import complete_labels, train_public_segmenter
from cmrfed.segmentation.files import load_segmenter, save_segmenter

SEGMENTER: Literal["segmenter"] = "segmenter"
RELABELLED = "relabelled"
COHORT = "cohort"
SEGMENTER_VERSION = 1
"""To be raised when the same settings give another public segmenter."""


# --- before the sites are asked -------------------------------------------------------------------
def start_with_segmenter(experiment: Experiment, cache: Path | None = None) -> Path:
    """Find the public weights of a recipe whose segmenter learns at the sites, or train them and keep them.

    Args:
        experiment: A recipe with a segmenter.
        cache: Another cache than the user's.

    Returns:
        A folder with the public ``segmenter``, the ``autoencoder`` of a latent generator, and ``pretrained.json``.
    """
    root, latent = cache or cache_folder(), experiment.image.generator.autoencoder is not None
    made_from = {SEGMENTER: segmenter_origin(experiment)}
    codec = pretrained(experiment, root) if latent else None
    about: dict[str, Any] = read_json(codec / ABOUT) if codec else {}
    folder = root / f"segmenter-{digest_json([made_from, about])[:16]}"
    with locked(folder):
        if not _whole(folder):
            with new_folder(folder) as part:
                if codec:
                    shutil.copytree(codec, part, dirs_exist_ok=True)
                public = public_training_set(experiment, root)
                weights = {**about.get("weights", {}), SEGMENTER: _train_publicly(experiment, public, part / SEGMENTER)}
                learned = {LEARNED: stored_sources(public)}
                write_json(part / ABOUT, about | made_from | {"weights": weights} | learned)
    return folder


def segmenter_origin(experiment: Experiment) -> dict[str, Any]:
    """What decides the public segmenter: its own settings and the public patients, nothing of generators or sites."""
    config, size = public_config(experiment), experiment.data.size_px
    return {
        "version": [SEGMENTER_VERSION, PUBLIC_VERSION],
        "patients": [config.patients, config.scanners, config.seed, size],
        "segmenter": digested(_stage(experiment).public, {"seeds"}),
        **cohorts_origin(experiment),
    }


def _stage(experiment: Experiment) -> SegmenterStage:
    if experiment.segmenter is None:
        raise AssertionError("the recipe has no segmenter")
    return experiment.segmenter


def _whole(folder: Path) -> bool:
    try:
        found: str = read_json(folder / ABOUT)["weights"][SEGMENTER]
        return found == digest_state(load_segmenter(folder / SEGMENTER).state_dict())
    except CmrfedError:  # absent or damaged
        return False


def _train_publicly(experiment: Experiment, public: PublicTrainingSet, out: Path) -> str:
    """Train the public segmenter, save it and return the digest of its weights."""
    config = _stage(experiment).public
    torch.set_num_threads(experiment.compute.threads)
    with track("Training the public segmenter", config.steps) as bar:
        network = train_public_segmenter(
            public.phantom,
            config,
            fold(public_config(experiment).seed, "public labeller"),
            completed=public.completed,
            on_step=lambda: bar.advance(1),
            device=resolve(experiment.compute.device),
        ).to(HOST)
    save_segmenter(out, network, channels=config.channels, size_px=experiment.data.size_px)
    return digest_state(network.state_dict())


# --- after they have answered ---------------------------------------------------------------------
def relabel(experiment: Experiment, start: Path, segmenter: Path, out: Path, *, cache: Path | None = None) -> Path:
    """Label the public patients with a segmenter that was trained at the sites, and train the generators on them.

    What is done is kept beside ``out`` until all is done, so a run that was killed goes on where it was.

    Args:
        experiment: A recipe with a segmenter.
        start: The public weights of the run: the autoencoder of a latent generator is there.
        segmenter: The released one.
        out: ``cohort``, the public patients under its labels, and the generators ``mask`` and ``image`` that learned
            from them, as far as the recipe trains them in public.
        cache: Another cache of public patients than the user's.

    Returns:
        ``out``.
    """
    work = out.with_name(f".{out.name}")
    work.mkdir(parents=True, exist_ok=True)
    cohort = _labelled(experiment, segmenter, work / COHORT, cache or cache_folder())
    if (start / CODEC).is_dir() and not (work / CODEC).is_dir():
        with new_folder(work / CODEC) as part:
            shutil.copytree(start / CODEC, part, dirs_exist_ok=True)
    for stage in STAGES:
        if experiment.starts_relabelled(stage) and not (work / stage).is_dir():
            train_stage(experiment, stage, cohort, work / stage)
    shutil.rmtree(work / CODEC, ignore_errors=True)
    work.rename(out)
    return out


def _labelled(experiment: Experiment, segmenter: Path, out: Path, cache: Path) -> Cohort:
    """Write the public patients under the labels of a segmenter; what annotators of public cohorts drew is kept."""
    public, config = public_training_set(experiment, cache), public_config(experiment)
    if not out.is_dir():
        torch.set_num_threads(experiment.compute.threads)
        network = load_segmenter(segmenter).to(resolve(experiment.compute.device))
        if not config.cohorts:
            complete_labels(public.phantom, network, out, known=())
        else:
            parts = out.with_name("parts")
            labelled = [complete_labels(public.phantom, network, parts / "phantom", known=()).cohort]
            for number, (entry, cohort) in enumerate(zip(config.cohorts, open_public(experiment), strict=True)):
                labelled.append(complete_labels(cohort, network, parts / str(number), name=entry.name).cohort)
            pool(labelled, out, "public")
            shutil.rmtree(parts)
    cohort = Cohort.open(out)
    return mixed(cohort, len(public.phantom), config.mixed_share) if config.cohorts else cohort

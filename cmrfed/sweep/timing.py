"""How long the parts of a point will take on this machine, from a few steps of each kind that are timed when asked."""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

from cmrfed.config.experiment import Experiment
from cmrfed.core.errors import CmrfedError
from cmrfed.data.cohort import Cohort
from cmrfed.evaluation.features.phantom_cnn import NAME, Recipe, cached
from cmrfed.federation.server.run import StageSpec
from cmrfed.generators.stages import DRAWING, STAGES, StageName
from cmrfed.generators.trainable import weight_layout
from cmrfed.pipeline.pretrain import cached as is_pretrained
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.training import stage_specs
from cmrfed.sweep.clock import Clock

COVERS = (
    "Times are estimates for this machine as it is now: training, drawing and segmenters from a few steps of each "
    "kind, the rest from what it took elsewhere. nnU-Net and installed metrics are not counted."
)

ASSUMED_PATIENTS = 100
"""Of a recipe whose cohort is not there."""
# Seconds of one core at 64 px, as the steps of configs/recipes/demo.yaml took them (36 patients, 870 slices in all)
# on a Xeon of 2023. What grows with pixels is in proportion to them.
PHANTOM_S = 0.4
"""Of each phantom patient: drawn and prepared."""
ROUND_S = 0.16
"""Of each site in a round, beside its steps, for a million weights: messages, digests, states on the disk, averages."""
WRITE_SLICE_S = 0.013
"""Of each slice that is drawn, beside its network: conditions, compression, digests."""
JUDGE_S, JUDGE_SLICE_S, SCORE_SLICE_S = 6.0, 0.008, 0.008
"""Of judging: once; for each slice of the three sets; for each slice that a segmenter is scored on."""
RADIOMICS_S = 0.1
"""Of each slice whose radiomics are taken, at any size."""
REPORT_S = 0.5
AUDIT_S = 5.0
"""Of each private stage, whose network matters little: its images are small."""
PASSES = 62
"""Evaluations of the network for each slice of a white-box attack, with 8 for each sample of noise."""


@dataclass(frozen=True)
class Sizes:
    """How many slices are trained on and held out, and patients in all."""

    patients: int
    train: float
    holdout: float


def sizes(experiment: Experiment) -> Sizes:
    """As far as they are known beforehand: from the cohorts, if they are there, else of the depth that is drawn."""
    data, each = experiment.data, sum(experiment.synthesis.slices)
    patients = data.phantom.patients if data.phantom else ASSUMED_PATIENTS
    slices = float(patients * each)
    try:
        cohorts = [Cohort.open(Path(place)) for place in data.cohorts]
        if cohorts:
            patients, slices = sum(map(len, cohorts)), float(sum(cohort.header.slices for cohort in cohorts))
    except CmrfedError:  # the run itself says more
        pass
    return Sizes(patients, slices * (1 - data.holdout), slices * data.holdout)


def _area(experiment: Experiment) -> float:
    """Pixels of a slice over those of one at 64 px."""
    return (experiment.data.size_px / 64) ** 2


# --- a point ------------------------------------------------------------------------------------
def training_seconds(experiment: Experiment, clock: Clock) -> float:
    """Training at all sites, one after the other."""
    return sum(stage_seconds(experiment, clock).values())


def stage_seconds(experiment: Experiment, clock: Clock) -> dict[str, float]:
    """Training of each stage at all sites, one after the other."""
    specs = stage_specs(PrivacyPlan(experiment))
    return {spec.name: _stage(experiment, spec, clock) for spec in specs if spec.training.rounds}


def _stage(experiment: Experiment, spec: StageSpec, clock: Clock) -> float:
    training, private = spec.training, spec.privacy
    steps = experiment.sites * training.rounds * training.local_steps
    rounds = experiment.sites * training.rounds * ROUND_S * _weights(spec) / 1e6
    if private is None:
        return rounds + steps * clock.training_step(spec.name, spec.generator, training)
    step, record = clock.private_step(spec.name, spec.generator, training, private)
    seconds = rounds + steps * (step + private.sampling_rate * private.declared_patients * record)
    if private.subspace:  # gradients of simulated patients, anew in every round, once for all sites of a process
        seconds += training.rounds * private.subspace.patients * record
    return seconds


def _weights(spec: StageSpec) -> int:
    return sum(math.prod(shape) for _, shape in weight_layout(spec.name, spec.generator).values())


def public_seconds(experiment: Experiment, stage: StageName, clock: Clock) -> float:
    """Pre-training of one stage on the phantom, or of the autoencoder ("autoencoder"), that the cache does not have."""
    if experiment.pretrain is None:
        return 0.0
    relearned = stage in DRAWING and experiment.starts_relabelled(stage)  # in each run anew
    if is_pretrained(experiment, stage) and not relearned:
        return 0.0
    codec, size = experiment.pretrain.autoencoder, experiment.image.generator.autoencoder
    if STAGES[stage].trains_autoencoder:
        step = clock.autoencoder_step(size, codec, experiment.data.size_px) if codec and size else 0.0
        return codec.steps * step if codec else 0.0
    training = experiment.pretrain.of(stage)
    if training is None:
        return 0.0
    step = clock.training_step(stage, experiment.generator(stage), training)
    return training.rounds * training.local_steps * step


def public_segmenter_seconds(experiment: Experiment, clock: Clock) -> float:
    """Public training of the segmenter that then learns at the sites."""
    if experiment.segmenter is None:
        return 0.0
    config = experiment.segmenter.public
    return config.steps * clock.segmenter_step(config, experiment.data.size_px)


def data_seconds(experiment: Experiment) -> float:
    """Drawing and preparing the phantom, where a recipe has no cohorts."""
    return 0.0 if experiment.data.cohorts else sizes(experiment).patients * PHANTOM_S


def audit_seconds(experiment: Experiment) -> float:
    """The audit of all private stages."""
    return AUDIT_S * len(experiment.stages) if experiment.privacy.private else 0.0


def drawing_seconds(experiment: Experiment, clock: Clock) -> float:
    """Drawing all slices of ED and ES of the synthetic set, masks and images, and images of all hold-out masks."""
    config = experiment.synthesis
    drawn = config.patients * sum(config.slices)  # two phases of the mean depth
    mask, image = (clock.drawing(experiment.generator(stage), config.precision) for stage in DRAWING)
    image += WRITE_SLICE_S * _area(experiment)
    return drawn * mask + (drawn + sizes(experiment).holdout) * image


def evaluation_seconds(experiment: Experiment, clock: Clock) -> float:
    """All of the evaluation but the training of its networks."""
    config, synthesis, found = experiment.evaluation, experiment.synthesis, sizes(experiment)
    sets = (found.train, found.holdout, synthesis.patients * sum(synthesis.slices))
    seconds = JUDGE_S + JUDGE_SLICE_S * _area(experiment) * sum(sets)
    if importlib.util.find_spec("frd_score"):
        seconds += RADIOMICS_S * sum(min(config.fidelity.frd_slices, slices) for slices in sets)
    if config.attacks.white_box:
        sampler, passes = experiment.image.generator.sampler, PASSES + 8 * config.attacks.noise_samples
        each = clock.drawing(experiment.generator("image"), synthesis.precision) / sampler.steps
        seconds += found.patients * config.attacks.slices * passes * each
    return seconds


def report_seconds(experiment: Experiment) -> float:
    """The report."""
    return REPORT_S


def segmenter_seconds(experiment: Experiment, steps: int, clock: Clock) -> float:
    """``steps`` steps of segmenters, and the scoring of those that they make."""
    config = experiment.evaluation.segmenter
    if not steps:
        return 0.0
    scored = SCORE_SLICE_S * sizes(experiment).holdout * _area(experiment)
    return steps * clock.segmenter_step(config, experiment.data.size_px) + steps / config.steps * scored


def extractor_seconds(experiment: Experiment, clock: Clock) -> float:
    """Training of the feature extractor, where the user's cache does not have it yet."""
    config, recipe = experiment.evaluation.features, Recipe()
    if config.extractor != NAME or cached(Path(config.cache) if config.cache else None).exists():
        return 0.0
    return recipe.steps * clock.extractor_step(recipe)

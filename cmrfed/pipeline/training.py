"""Training of a run: the stages as the federation takes them, from public weights to averaged generators."""

import shutil
from pathlib import Path

from cmrfed.config.experiment import ALL_STAGES
from cmrfed.core.artifacts import new_folder
from cmrfed.federation.server.run import FederatedRun, StageSpec
from cmrfed.generators.card import name_sources
from cmrfed.generators.stages import STAGES
from cmrfed.pipeline.context import RunContext
from cmrfed.pipeline.pretrain import CODEC, pretrained, starting_sources, starting_weights
from cmrfed.pipeline.privacy.guarantee import audit_experiment, write_audit
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.relabel import RELABELLED, SEGMENTER, relabel, start_with_segmenter


def stage_specs(
    plan: PrivacyPlan, start: Path | None = None, generators: Path | None = None, relabelled: Path | None = None
) -> list[StageSpec]:
    """The stages as the federation takes them.

    Args:
        plan: The experiment, and the noise of its private stages.
        start: Folder with what the recipe has of public weights.
        generators: Folder where each stage leaves what it has trained: images go by the autoencoder there, if it is
            trained too.
        relabelled: Folder with the generators that learn from public patients whom the recipe's segmenter has labelled;
            they are there when the segmenter is trained.
    """
    experiment, private = plan.experiment, plan.requests
    public, out = start / CODEC if start else None, []
    codec = generators / "autoencoder" if generators and experiment.autoencoder else public
    for stage in experiment.stages:
        generator, training = experiment.generator(stage), experiment.training(stage)
        if STAGES[stage].trains_autoencoder:
            out.append(StageSpec(stage, generator, training, private[stage], public))
            continue
        if STAGES[stage].trains_segmenter:
            first = start / stage if start else None
            out.append(StageSpec(stage, generator, training, private[stage], first))
            continue
        first = start / stage if start and experiment.starts_publicly(stage) else None
        if relabelled and experiment.starts_relabelled(stage):
            first = relabelled / stage
        out.append(
            StageSpec(stage, generator, training, private[stage], first, codec if generator.autoencoder else None)
        )
    return out


def train(context: RunContext) -> None:
    """Train all stages over the grid of the run: in this process, under Ray or over a network."""
    experiment, run_dir = context.experiment, context.run_dir
    start = _public_start(context) if experiment.pretrain else None
    relabelled = run_dir / RELABELLED
    for spec in stage_specs(context.plan, start, run_dir / "generators", relabelled):
        if start and spec.start and spec.start.parent == relabelled and not relabelled.is_dir():
            with context.record.timed("relabelling"):
                relabel(experiment, start, run_dir / "generators" / SEGMENTER, relabelled)
        with context.record.timed(spec.name):
            FederatedRun(
                context.grid,
                run_dir,
                run_id=experiment.name,
                seed=experiment.seed,
                digest=experiment.digest,
                federation=experiment.federation,
                stages=[spec],
                threads=experiment.compute.threads,
                on_round=context.on_round,
            ).start_or_resume()
    for folder in (run_dir / "generators").iterdir():
        name_sources(folder, context.record.content.learned_from)
    if experiment.privacy.private:
        with context.record.timed("audit"):
            write_audit(run_dir, audit_experiment(context.plan))


def _public_start(context: RunContext) -> Path:
    """All public weights, in the run folder: a run that is carried on needs no cache."""
    start, experiment = context.run_dir / "start", context.experiment
    if not start.is_dir():
        with context.record.timed("pretraining"):
            made = start_with_segmenter if experiment.segmenter else pretrained
            folder = made(experiment)
        with new_folder(start) as part:
            shutil.copytree(folder, part, dirs_exist_ok=True)
            for stage in ALL_STAGES:
                name_sources(part / stage, starting_sources(part, context.experiment))
    sources = starting_sources(start, context.experiment)
    context.record.set(start=starting_weights(start), learned_from=sources)
    return start

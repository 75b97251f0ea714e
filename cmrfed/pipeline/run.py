"""The main job: data to sites, both stages over the federation, a synthetic data set, its evaluation, a report.

Every step leaves its result in the run folder, and is skipped when it is there: the same command resumes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from cmrfed.config.experiment import Experiment
from cmrfed.core.artifacts import digest_json
from cmrfed.core.errors import CmrfedError
from cmrfed.core.owner import owned
from cmrfed.core.processes import loading
from cmrfed.core.progress import job, say, step
from cmrfed.core.settings.digests import digested
from cmrfed.pipeline.context import RunContext, begin, begin_deployed
from cmrfed.pipeline.files.contents import write_contents
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.tracking import Tracker, tracking_callback
from cmrfed.pipeline.training import stage_specs, train

RUN_FOLDER = "the run folder"


def run(
    experiment: Experiment,
    run_dir: Path,
    trackers: Sequence[Tracker] = (),
    expected: Callable[[], Mapping[str, float]] = dict,
) -> Path:
    """Do the whole job in one process and return the path of the report.

    Args:
        experiment: What to do.
        run_dir: Where results go; a folder with the beginnings of the same run is carried on.
        trackers: Where the numbers of every round and of the end are sent.
        expected: Foretells the seconds of each step, by which the progress of training says how long the rest of the
            run will take; asked for where there is something to train.

    Raises:
        InUse: Another process does it already.
    """
    run_dir, begun = run_dir.absolute(), time.monotonic()
    with owned(run_dir, RUN_FOLDER):
        send = tracking_callback(run_dir, trackers)
        context = begin(experiment, run_dir, on_round=send)
        trained = all((run_dir / "generators" / stage).is_dir() for stage in experiment.stages)
        with job({} if trained else expected(), begun):
            train(context)
            _draw_and_evaluate(context)
            with step("report"):
                from cmrfed.report.html import write_report

                _finish(context)
                report = write_report(run_dir)
        write_contents(run_dir, context.trained.claim)
        send()
        say(f"report: {report}")
        return report


def _draw_and_evaluate(context: RunContext) -> None:
    """Do both steps, each unless it was done with the same settings and inputs."""
    experiment, record, trained, data = context.experiment, context.record, context.trained, context.data
    if data is None:
        raise AssertionError("only a simulated run has patients to evaluate on")
    drawn = digest_json([experiment.digest, digested(experiment.synthesis)])
    if not record.done("synthesis", drawn):
        from cmrfed.pipeline.synthesis import draw_all  # here: who only trains does not wait for what comes after

        with record.timed("synthesis"):
            draw_all(trained, data.holdout)
        record.mark("synthesis", drawn)
    evaluated = digest_json([drawn, digested(experiment.evaluation), experiment.data.external])
    if not record.done("evaluation", evaluated):
        with loading():
            from cmrfed.pipeline.evaluation import evaluate_run

        with record.timed("evaluation"):
            evaluate_run(trained, data)
        record.mark("evaluation", evaluated)


def _finish(context: RunContext) -> None:
    context.record.set(finished=datetime.now(UTC).isoformat(timespec="seconds"))


def run_deployed(experiment: Experiment, run_dir: Path, grid: Grid, sites: list[str]) -> None:
    """Train over a network: patients are at the sites, and all that is here are recipe, weights and records.

    Args:
        experiment: What to do; its cohorts are not used.
        run_dir: Where results go; `synthesize_run` draws from it when this returns.
        grid: The network.
        sites: Names of the sites, in order of their styles.

    Raises:
        InUse: Another process trains this run already.
    """
    with owned(run_dir, RUN_FOLDER):
        context = begin_deployed(experiment, run_dir, grid, sites)
        try:
            train(context)
        except Exception as error:
            problem = str(error) if isinstance(error, CmrfedError) else f"{type(error).__name__}: {error}"
            context.record.set(problem=problem)
            raise
        _finish(context)
        write_contents(run_dir, context.trained.claim)


def dry_run(experiment: Experiment) -> dict[str, Any]:
    """What a run would do, without touching a file: sizes, steps, bytes per round."""
    from cmrfed.generators.trainable import make_trainable

    plan, stages = PrivacyPlan(experiment), {}
    for spec in stage_specs(plan):
        count = sum(p.numel() for p in make_trainable(spec.name, spec.generator).network.parameters())
        private, steps = spec.privacy, spec.training.rounds * spec.training.local_steps
        drawn = private.sampling_rate * private.declared_patients * private.noise_multiplicity if private else None
        stages[spec.name] = {
            "parameters": count,
            "rounds": spec.training.rounds,
            "steps_per_site": steps,
            "slices_seen_per_site": round(steps * (drawn or spec.training.batch_size)),
            "megabytes_per_site_and_round": round(2 * 4 * count / 1e6, 1),
        }
    return {
        "digest": experiment.digest,
        "sites": experiment.sites,
        "stages": stages,
        "privacy": plan.text.splitlines(),
    }

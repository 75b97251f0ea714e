"""What a sweep would do, before any of it is done: points, steps, and the ε that they add up to."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cmrfed.config.experiment import STAGES, Experiment
from cmrfed.core.artifacts import digest_json
from cmrfed.core.errors import CmrfedError
from cmrfed.core.progress import say
from cmrfed.core.settings.digests import digested
from cmrfed.federation.server.checkpoint import RoundStore
from cmrfed.pipeline.pretrain import CODEC, codec_origin, stage_origin
from cmrfed.pipeline.privacy.plan import plan_privacy
from cmrfed.pipeline.relabel import segmenter_origin
from cmrfed.report.results import duration
from cmrfed.sweep.clock import Clock
from cmrfed.sweep.paid import would_pay
from cmrfed.sweep.points import Point, Sweep
from cmrfed.sweep.timing import (
    COVERS,
    audit_seconds,
    data_seconds,
    drawing_seconds,
    evaluation_seconds,
    extractor_seconds,
    public_seconds,
    public_segmenter_seconds,
    report_seconds,
    segmenter_seconds,
    stage_seconds,
)
from cmrfed.sweep.work import State

HEADINGS = ("point", "state", "ε", "σ", "q", "steps at sites", "public", "segmenters", "slices drawn", "about")


def dry_run(sweep: Sweep, standing: Iterable[State]) -> str:
    """The points as a table, with what each would take on this machine, then what they cost together."""
    clock = Clock(sweep.points[0].experiment.compute.threads, sweep.points[0].experiment.compute.device)
    left, status = 0.0, {state.point.name: str(state.status) for state in standing}
    seen: set[str] = set()
    rows, problems = [list(HEADINGS)], []
    for point in sweep.points:
        cells, seconds, problem = _cells(point, seen, clock)
        standing_now = status.get(point.name, "unfinished")
        left += 0.0 if standing_now == "finished" else seconds
        rows.append([point.title, standing_now, *cells])
        problems += [f"cannot be run: {point.title}: {problem}"] if problem else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    legend = (
        "Steps of training: at all sites over all rounds; on the phantom, of public weights that no earlier point "
        "has; of segmenters, where those on real slices are trained once for all points."
    )
    total = f"About {duration(left)} for what is not finished, one point after the other. {COVERS}"
    return "\n".join(
        [f"sweep {sweep.name}: {len(sweep.points)} points", *lines, legend, total, *problems, *_paid(sweep)]
    )


def foretell(points: Sequence[Point], threads: int) -> dict[str, float]:
    """Seconds of points one after the other on this machine, by name; what an earlier one makes is made once.

    Args:
        points: Not finished, in order.
        threads: Of each.
    """
    say("Timing a few steps of each kind …")
    seen: set[str] = set()
    clock = Clock(threads, points[0].experiment.compute.device)
    return {point.name: _cells(point, seen, clock)[1] for point in points}


def _cells(point: Point, seen: set[str], clock: Clock) -> tuple[list[str], float, str]:
    """ε, σ, q and steps of a point, seconds, and why it cannot be run, if it cannot."""
    experiment, sigma, rate, problem = point.experiment, "–", "–", ""
    try:
        plan = plan_privacy(experiment)
        if plan:
            sigma = ", ".join(f"{stage.noise_multiplier:.3f}" for stage in plan.stages)
            rate = ", ".join(f"{stage.sampling_rate:g}" for stage in plan.stages)
    except CmrfedError as error:
        problem = str(error)
    steps = sum(experiment.steps().values()) * experiment.sites
    epsilon = f"{point.epsilon:g}".replace("inf", "∞")
    drawn = round(experiment.synthesis.patients * sum(experiment.synthesis.slices))
    (public, public_s), segmenters = _public(point, seen, clock), _segmenters(point, seen)
    cells = [epsilon, sigma, rate, str(steps), str(public), str(segmenters), f"≈ {drawn}"]
    if problem:
        return [*cells, "–"], 0.0, problem
    seconds = public_s + _own_seconds(experiment, segmenters, clock)
    if _new(f"extractor {experiment.evaluation.features.cache}", seen):
        seconds += extractor_seconds(experiment, clock)
    return [*cells, duration(seconds)], seconds, ""


def run_seconds(experiment: Experiment, clock: Clock) -> float:
    """What one run would take on this machine, as `COVERS` says, its data and its public pre-training included."""
    return data_seconds(experiment) + sum(step_seconds(experiment, clock).values())


def step_seconds(experiment: Experiment, clock: Clock) -> dict[str, float]:
    """What each step of a run would take on this machine after its data are there, in order: see `run_seconds`."""
    public = [*STAGES, CODEC] if experiment.pretrain and experiment.pretrain.autoencoder else STAGES
    out = {"pretraining": sum(public_seconds(experiment, stage, clock) for stage in public)}
    out["pretraining"] += public_segmenter_seconds(experiment, clock)
    steps = _segmenter_steps(experiment, real=True)
    out |= _own_steps(experiment, steps, clock)
    out["evaluation"] += extractor_seconds(experiment, clock)
    absent = {"pretraining": experiment.pretrain is None, "audit": not experiment.privacy.private}
    return {step: seconds for step, seconds in out.items() if not absent.get(step)}


def left_to_do(seconds: Mapping[str, float], experiment: Experiment, run_dir: Path) -> dict[str, float]:
    """What is left of each step in a run folder: nothing of public weights that are there, and of stages the rounds.

    Args:
        seconds: Step => seconds of all of it.
        experiment: Whose.
        run_dir: The folder, which need not have the beginnings of a run.
    """
    out = dict(seconds)
    for stage in experiment.stages:
        rounds, store = experiment.training(stage).rounds, RoundStore(run_dir / stage, experiment.digest)
        out[stage] *= 1 - min(store.latest() / rounds, 1.0) if rounds else 1.0
    if (run_dir / "start").is_dir():
        out["pretraining"] = 0.0
    return {step: left for step, left in out.items() if step in seconds}


def _own_steps(experiment: Experiment, segmenters: int, clock: Clock) -> dict[str, float]:
    """Steps of a run without what others share with it, with so many steps of segmenters."""
    out = dict.fromkeys(experiment.stages, 0.0) | stage_seconds(experiment, clock)
    out |= {"audit": audit_seconds(experiment), "synthesis": drawing_seconds(experiment, clock)}
    judged = segmenter_seconds(experiment, segmenters, clock) + evaluation_seconds(experiment, clock)
    return out | {"evaluation": judged, "report": report_seconds(experiment)}


def _own_seconds(experiment: Experiment, segmenters: int, clock: Clock) -> float:
    return sum(_own_steps(experiment, segmenters, clock).values())


def _new(key: str, seen: set[str]) -> bool:
    fresh = key not in seen
    seen.add(key)
    return fresh


def _public(point: Point, seen: set[str], clock: Clock) -> tuple[int, float]:
    """Steps on the phantom that no earlier point has made, and seconds; what is in the user's cache costs nothing."""
    experiment = point.experiment
    if not experiment.pretrain:
        return 0, 0.0
    steps, seconds = 0, 0.0
    for stage in STAGES:
        trained = experiment.pretrain.of(stage)
        own = experiment.starts_relabelled(stage)  # by this run's segmenter: no other point has it
        if trained and (own or _new(digest_json(stage_origin(experiment, stage)), seen)):
            steps += trained.rounds * trained.local_steps
            seconds += public_seconds(experiment, stage, clock)
    if (labeller := experiment.segmenter) and _new(digest_json(segmenter_origin(experiment)), seen):
        steps += labeller.public.steps
        seconds += public_segmenter_seconds(experiment, clock)
    codec = experiment.pretrain.autoencoder
    if codec and _new(digest_json(codec_origin(experiment)), seen):
        steps += codec.steps
        seconds += public_seconds(experiment, CODEC, clock)
    return steps, seconds


def _segmenters(point: Point, seen: set[str]) -> int:
    """Steps of all segmenters of a point; those on real slices alone are shared by points with the same patients."""
    config = point.experiment.evaluation
    data = digested(point.experiment.data, {"external"})
    key = digest_json([data, point.experiment.seed, digested(config.segmenter), config.seed, "real"])
    return _segmenter_steps(point.experiment, real=config.utility and _new(key, seen))


def _segmenter_steps(experiment: Experiment, *, real: bool) -> int:
    """Steps of all segmenters of a run, with those on real slices alone if ``real``."""
    config = experiment.evaluation
    if not config.utility:
        return 0
    site_arms = experiment.sites * config.site_seeds if experiment.sites > 1 else 0
    arms = (1 + config.mixed_arm + len(config.mixed_shares)) * config.segmenter.seeds + site_arms
    if real:
        arms += config.segmenter.seeds + config.control_seeds + site_arms
    return arms * config.segmenter.steps


def _paid(sweep: Sweep) -> list[str]:
    return [paid.words for paid in would_pay(sweep.points)]

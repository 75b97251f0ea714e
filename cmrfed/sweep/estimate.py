"""What a sweep would do, before any of it is done: points, steps, and the ε that they add up to."""

from collections.abc import Iterable

from cmrfed.artifacts import digest_json
from cmrfed.errors import CmrfedError
from cmrfed.experiment import STAGES
from cmrfed.guarantee import plan_privacy
from cmrfed.pretrain import codec_origin, stage_origin
from cmrfed.sweep.paid import would_pay
from cmrfed.sweep.points import Point, Sweep
from cmrfed.sweep.work import State

HEADINGS = ("point", "state", "ε", "σ", "q", "steps at sites", "public", "segmenters", "slices drawn")


def dry_run(sweep: Sweep, standing: Iterable[State]) -> str:
    """The points as a table, then what they cost together."""
    status = {state.point.name: str(state.status) for state in standing}
    seen: set[str] = set()
    rows, problems = [list(HEADINGS)], []
    for point in sweep.points:
        cells, problem = _cells(point, seen)
        rows.append([point.title, status.get(point.name, "unfinished"), *cells])
        problems += [f"cannot be run: {point.title}: {problem}"] if problem else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    legend = (
        "Steps of training: at all sites over all rounds; on the phantom, of public weights that no earlier point "
        "has; of segmenters, where those on real slices are trained once for all points."
    )
    return "\n".join([f"sweep {sweep.name}: {len(sweep.points)} points", *lines, legend, *problems, *_paid(sweep)])


def _cells(point: Point, seen: set[str]) -> tuple[list[str], str]:
    """ε, σ, q and steps of a point, and why it cannot be run, if it cannot."""
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
    cells = [epsilon, sigma, rate, str(steps), str(_public(point, seen)), str(_segmenters(point, seen)), f"≈ {drawn}"]
    return cells, problem


def _new(key: str, seen: set[str]) -> bool:
    fresh = key not in seen
    seen.add(key)
    return fresh


def _public(point: Point, seen: set[str]) -> int:
    """Steps on the phantom that no earlier point has made; what is in the user's cache costs nothing more."""
    experiment = point.experiment
    if not experiment.pretrain:
        return 0
    total = 0
    for stage in STAGES:
        trained = experiment.pretrain.of(stage)
        if trained and _new(digest_json(stage_origin(experiment, stage)), seen):
            total += trained.rounds * trained.local_steps
    codec = experiment.pretrain.autoencoder
    if codec and _new(digest_json(codec_origin(experiment)), seen):
        total += codec.steps
    return total


def _segmenters(point: Point, seen: set[str]) -> int:
    """Steps of all segmenters of a point; those on real slices alone are shared by points with the same patients."""
    config = point.experiment.evaluation
    if not config.utility:
        return 0
    site_arms = point.experiment.sites * config.site_seeds if point.experiment.sites > 1 else 0
    own = (2 + len(config.mixed_shares)) * config.segmenter.seeds + site_arms
    real = config.segmenter.seeds + config.control_seeds + site_arms
    data = point.experiment.data.model_dump(mode="json", exclude={"external"})
    key = digest_json([data, point.experiment.seed, config.segmenter.model_dump(mode="json"), config.seed, "real"])
    return (own + (real if _new(key, seen) else 0)) * config.segmenter.steps


def _paid(sweep: Sweep) -> list[str]:
    return [paid.words for paid in would_pay(sweep.points)]

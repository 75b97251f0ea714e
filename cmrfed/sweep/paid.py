"""What the patients of a sweep have paid over all its private points: a research ledger, kept beside the points.

Each point is a run of its own, whose sites' ledgers begin with it; its own claim is true of it alone. But all points
look at the same patients, so their losses compose. Folders cannot tell whether two cohorts share patients (one may be
the other at another size), so all cohorts of a sweep are one group, and its phantoms another: within a group the total
holds for every patient, in whatever points and sites they took part. A patient is at one site of a point, so a point
adds, for each mechanism, the most steps that any of its sites took.

Points without privacy promise nothing; they are counted beside the total, not in it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cmrfed.config.experiment import Experiment
from cmrfed.core.artifacts import digest_json, write_text
from cmrfed.core.errors import CmrfedError, DataError
from cmrfed.data.synthetic import NOTICE
from cmrfed.pipeline.files.record import read_run
from cmrfed.pipeline.privacy.plan import plan_privacy
from cmrfed.privacy.accountant import Epsilon, common_unit, epsilon
from cmrfed.privacy.event import PrivacyEvent, Unit
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.privacy.settings import STRICT_DELTA, strict_delta
from cmrfed.sweep.points import Point

Group = Literal["cohorts", "phantom"]
NOT_FOR_RELEASE = "Not for release"
UNREADABLE = "lines of a site's ledger that cannot be read"

Mechanism = tuple[str, float, float, Unit]
"""Stage, noise multiplier, sampling rate, unit."""


@dataclass(frozen=True)
class Paid:
    """What one group of patients has paid, or would pay."""

    group: Group
    private: int
    """Points that count in the total."""
    other: int
    """Points that trained on the patients without privacy."""
    total: tuple[Epsilon, ...] = ()
    """ε at the points' smallest δ and its `strict_delta`; empty if no point is private or ``problem`` is set."""
    problem: str = ""
    """Why there is no total."""
    planned: bool = False
    """Whether this is what a plan says, and not a ledger."""

    @property
    def epsilon(self) -> float | None:
        """ε (PRV) at the points' least δ; ∞ is no bound, None is unknown."""
        return self.total[0].prv if self.total else None

    @property
    def words(self) -> str:
        """What may be said."""
        of = "phantom patients" if self.group == "phantom" else "patients"
        return f"{NOT_FOR_RELEASE}. {self._total(of)}{self._others()}{self._chosen()}"

    def _total(self, of: str) -> str:
        if self.problem:
            return f"What the {of} have paid over all private points is unavailable: {self.problem}."
        if not self.total:
            return f"No private point {'is planned' if self.planned else 'has trained'} on the {of}."
        if not math.isfinite(self.total[0].prv):
            return f"The loss of the {of} over the {self.private} private points together is unbounded."
        own, strict = self.total
        verb = "would pay" if self.planned else "have paid"
        return (
            f"Over the {self.private} private points together the {of} {verb} at most ε = {_up(own.prv)} (PRV; RDP "
            f"{_up(own.rdp)}) at δ = {own.delta:.2g}, or ε = {_up(strict.prv)} at δ = {strict.delta:g}"
            + (": more than the claim of any one point." if self.private > 1 else ".")
        )

    def _others(self) -> str:
        if not self.other:
            return ""
        return f" {self.other} further point(s) are not private: with them, nothing is promised at all."

    def _chosen(self) -> str:
        return " A setting that is chosen by looking at these results was chosen on patients; no ε covers that."


def _up(value: float) -> str:
    return f"{math.ceil(value * 1000) / 1000:.3f}" if math.isfinite(value) else "∞"


# --- before -------------------------------------------------------------------------------------
def planned_events(experiment: Experiment, name: str) -> list[PrivacyEvent]:
    """What a point would cost each patient of a site.

    Raises:
        PrivacyError: Its target cannot be met.
    """
    plan = plan_privacy(experiment)
    return [
        PrivacyEvent(
            noise_multiplier=stage.noise_multiplier,
            sampling_rate=stage.sampling_rate,
            steps=stage.steps,
            run=name,
            stage=stage.stage,
            round=0,
            digest=experiment.digest,
            unit=experiment.privacy.unit,
        )
        for stage in (plan.stages if plan else ())
    ]


def would_pay(points: Sequence[Point]) -> list[Paid]:
    """What each group of patients would pay over all points whose target can be met."""
    out = []
    for group in groups(points):
        mine = [point for point in points if group_of(point.experiment) == group]
        events: list[PrivacyEvent] = []
        private = 0
        for point in mine:
            try:
                found = planned_events(point.experiment, point.name)
            except CmrfedError:  # the dry run says so beside the point
                continue
            private += bool(found)
            events += found
        paid = Paid(group, private, _not_private(mine), planned=True)
        out.append(_with_total(paid, events, mine))
    return out


def group_of(experiment: Experiment) -> Group:
    """Whose patients a point trains on."""
    return "phantom" if experiment.data.phantom and not experiment.data.cohorts else "cohorts"


def groups(points: Iterable[Point]) -> list[Group]:
    """All groups of a sweep, in order."""
    return list(dict.fromkeys(group_of(point.experiment) for point in points))


def _not_private(points: Iterable[Point]) -> int:
    return sum(not p.experiment.privacy.private and bool(p.experiment.steps()) for p in points)


def _with_total(paid: Paid, events: Sequence[PrivacyEvent], points: Sequence[Point]) -> Paid:
    """Compose; different units compose to nothing."""
    if not events:
        return paid
    delta = min(
        (p.experiment.privacy.target_delta for p in points if p.experiment.privacy.private), default=STRICT_DELTA
    )
    deltas = (delta, strict_delta(delta))
    if common_unit(events) == "none":
        return replace(paid, total=tuple(Epsilon(d, math.inf, math.inf) for d in deltas))
    return replace(paid, total=tuple(epsilon(events, d) for d in deltas))


# --- after --------------------------------------------------------------------------------------
def settle(points: Sequence[Point], folder: Path) -> list[Paid]:
    """Take over what the sites' ledgers of all runs in the folder say, and add it up.

    Runs that are no longer points of the sweep count too: patients do not forget. Nothing is ever taken back, even
    when a run's folder is deleted.

    Args:
        points: Of the sweep as it is now.
        folder: Of the sweep.
    """
    problems: dict[Group, str] = {}
    others: dict[Group, int] = {}
    known = groups(points)
    for run in sorted((folder / "points").glob("*/")):
        try:
            record = read_run(run)
        except DataError as error:
            if (run / "sites").exists():  # a run writes run.json first
                problems |= dict.fromkeys(known, f"{run.name} has sites, but no run.json that can be read: {error}")
            continue
        experiment = record.experiment
        group = group_of(experiment)
        known = list(dict.fromkeys([*known, group]))
        if not experiment.privacy.private:
            others[group] = others.get(group, 0) + bool(experiment.steps())
            continue
        try:
            most = _most(run)
        except CmrfedError as error:
            problems[group] = f"{run.name}: {error}"
            continue
        _record(_research(folder, group), f"{run.name}@{record.started}", most)
    return [_paid(group, points, folder, others.get(group, 0), problems.get(group, "")) for group in known]


def _paid(group: Group, points: Sequence[Point], folder: Path, others: int, problem: str) -> Paid:
    try:
        events = _research(folder, group).history().events
    except CmrfedError as error:
        return Paid(group, 0, others, problem=str(error))
    private = len({event.run for event in events})
    if problem:
        return Paid(group, private, others, problem=problem)
    mine = [point for point in points if group_of(point.experiment) == group]
    return _with_total(Paid(group, private, others), events, mine)


def _research(folder: Path, group: Group) -> PrivacyLedger:
    root = folder / "research" / group
    return PrivacyLedger(root) if PrivacyLedger.exists(root) else PrivacyLedger.create(root)


def _most(run: Path) -> dict[Mechanism, int]:
    """Mechanism → the most steps that one site of a run has reserved.

    Raises:
        PrivacyError: A site's ledger is missing or damaged.
    """
    most: dict[Mechanism, int] = {}
    for root in sorted((run / "sites").glob("*/")):
        history = PrivacyLedger(root).history()
        mine: dict[Mechanism, int] = {}
        for event in history.events:
            key = event.stage, event.noise_multiplier, event.sampling_rate, event.unit
            mine[key] = mine.get(key, 0) + event.steps
        if history.unbounded:
            mine[UNREADABLE, 0.0, 1.0, "patient"] = 1
        most |= {key: max(steps, most.get(key, 0)) for key, steps in mine.items()}
    return most


def _record(ledger: PrivacyLedger, run: str, most: dict[Mechanism, int]) -> None:
    """Reserve what a run has cost beyond what is in the research ledger already."""
    earlier = [event for event in ledger.history().events if event.run == run]
    for (stage, sigma, rate, unit), steps in most.items():
        digest = digest_json([stage, sigma, rate, unit])
        same = [event for event in earlier if event.digest == digest]
        missing = steps - sum(event.steps for event in same)
        if missing > 0:
            event = PrivacyEvent(
                noise_multiplier=sigma,
                sampling_rate=rate,
                steps=missing,
                run=run,
                stage=stage,
                round=len(same),
                digest=digest,
                unit=unit,
            )
            ledger.commit(ledger.reserve(event))


def warn(paid: Sequence[Paid], folder: Path) -> None:
    """Leave a notice in the folder and in that of every point."""
    text = "\n".join(each.words for each in paid) + "\n"
    for place in [folder, *sorted((folder / "points").glob("*/"))]:
        write_text(place / NOTICE, text)

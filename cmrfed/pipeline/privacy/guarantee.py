"""The privacy of a run after it was planned: the audit of its steps, and what may be claimed in the end."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from cmrfed.config.experiment import ALL_STAGES, Experiment
from cmrfed.core.artifacts import write_json
from cmrfed.core.errors import ConfigError
from cmrfed.core.settings.validation import read_model
from cmrfed.data.partition import PLACEMENT, placement_of
from cmrfed.data.synthetic import NOT_PRIVATE, PrivacyStatement
from cmrfed.federation.messages import Spent
from cmrfed.federation.server.checkpoint import RoundStore
from cmrfed.federation.server.statements import FILE as STATEMENTS
from cmrfed.federation.server.statements import read_statements
from cmrfed.generators.stages import StageName
from cmrfed.pipeline.privacy.plan import PrivacyPlan, public_words
from cmrfed.privacy.accountant import epsilon
from cmrfed.privacy.audit.rows import AuditRow
from cmrfed.privacy.event import ADJACENCY, PrivacyEvent
from cmrfed.privacy.ledger.statement import Loss
from cmrfed.privacy.settings import PrivateTraining

SIMULATED = (
    "The sites were simulated on one machine: their ledgers begin with this run, and what other runs spent on the same "
    "patients comes on top."
)
PLACED_ALONE = (
    "Hold-out and site of each patient follow from the seed and from that patient alone; the names of groups, vendors "
    "and centres that occur are taken to be public."
)
PLACED_TOGETHER = (
    "It holds given who was held out and who was at which site: with one patient more or less, the version that began "
    "this run would have moved others too."
)
DEPLOYED = "It holds given which patients each site had chosen before the run: how they were chosen is not covered."
NOT_COVERED = (
    "Covered are the generators and all that is drawn from them. Not covered is what was computed from real patients "
    "without noise: a report with its counts, figures and pictures, and images drawn for real masks."
)

PUBLIC = PrivacyStatement(
    differentially_private=False,
    no_patients=True,
    statement="No patient took part in training: both generators were trained on a phantom alone, so nothing of what "
    "they draw comes from a patient. Nothing else is claimed.",
)


def public_claim(experiment: Experiment) -> PrivacyStatement:
    """What may be said where no site trains anything."""
    if not (experiment.pretrain and experiment.pretrain.cohorts):
        return PUBLIC
    words = (
        f"No patient of a site took part in training: both generators were trained on "
        f"{experiment.pretrain.learned_from}. Nothing else is claimed."
    )
    return PUBLIC.model_copy(update={"statement": words})


# --- the audit ----------------------------------------------------------------------------------
AUDIT = "audit.json"


def audit_experiment(plan: PrivacyPlan) -> list[AuditRow]:
    """Audit the training of each private stage as it is configured, without any patient: rows of audit.json.

    Raises:
        ConfigError: The experiment is not private.
    """
    if not plan.experiment.privacy.private:
        raise ConfigError(
            "there is no private step to audit",
            got="privacy.unit: none",
            do="--set privacy.unit=patient, with privacy.epsilon and privacy.declared_patients",
        )
    return [_audited(plan.experiment, stage, request) for stage, request in plan.requests.items() if request]


def _audited(experiment: Experiment, stage: StageName, request: PrivateTraining) -> AuditRow:
    from cmrfed.core.device import resolve  # here with all that audits need: who reads a claim does not wait for it
    from cmrfed.training.audit import audit_training

    device = resolve(experiment.compute.device, private=True)
    return audit_training(stage, experiment.generator(stage), experiment.training(stage), request, device).row(stage)


def write_audit(run_dir: Path, rows: Sequence[AuditRow]) -> Path:
    """Write audit.json."""
    return write_json(run_dir / AUDIT, [row.model_dump(mode="json") for row in rows])


def read_audit(run_dir: Path) -> list[AuditRow]:
    """The rows of audit.json; none where there is no such file.

    Raises:
        DataError: It is damaged.
    """
    if not (run_dir / AUDIT).exists():
        return []
    do = "restore it from a copy, or remove it: then the run counts as not audited"
    return read_model(run_dir / AUDIT, list[AuditRow], expected="a row for each private stage", do=do)


def audit_text(rows: Sequence[AuditRow]) -> str:
    """The audit in words, for the terminal: one line for each stage, and one for each property of its step."""
    return "\n".join(line for row in rows for line in _audit_lines(row))


def _audit_lines(row: AuditRow) -> Iterator[str]:
    verdict = "passed" if row.passed else f"FAILED: {row.failed_checks}"
    yield (
        f"{row.stage}: σ = {row.noise_multiplier:.3f}: {row.measured_mu}, theory {row.theory:.3f}; "
        f"{len(row.checks)} properties: {verdict}"
    )
    for check in row.checks:
        yield f"  {'ok  ' if check.passed else 'FAIL'}  {check.name}: {check.measured}; {check.expected}"


# --- the claim ----------------------------------------------------------------------------------
def spent_by_site(run_dir: Path, digest: str) -> dict[str, Spent | None]:
    """The largest loss that each site ever stated in this run, whatever it said later; None where a reply said nothing.

    Only sites of which a reply was used are named.
    """
    stated: dict[str, Spent | None] = {}
    for stage in ALL_STAGES:
        for metrics in RoundStore(run_dir / stage, digest).metrics():
            for site, row in metrics.answered.items():
                before = stated.get(site, row.spent)
                stated[site] = before.joined(row.spent) if before and row.spent else None
    heard = read_statements(run_dir / STATEMENTS)
    for site, spent in stated.items():
        if spent and site in heard:  # whether it was audited is a matter of the replies that were used
            stated[site] = heard[site].largest.joined(spent).model_copy(update={"audited": spent.audited})
    return stated


def own_events(plan: PrivacyPlan, run_dir: Path) -> dict[str, list[PrivacyEvent]]:
    """What this run alone has cost each site's patients: the requests that the coordinator sent and saw answered."""
    experiment, events = plan.experiment, dict[str, list[PrivacyEvent]]()
    for stage in ALL_STAGES:
        request = plan.requests.get(stage)
        for metrics in RoundStore(run_dir / stage, experiment.digest).metrics():
            event = PrivacyEvent(
                noise_multiplier=request.noise_multiplier if request else 0.0,
                sampling_rate=request.sampling_rate if request else 1.0,
                steps=experiment.training(stage).local_steps,
                run=experiment.name,
                stage=stage,
                round=metrics.round,
                digest=experiment.digest,
                unit=request.unit if request else "none",
            )
            for site, row in metrics.sites.items():
                if row.status in ("ok", "set aside"):
                    events.setdefault(site, []).append(event)
    return events


def at_least(spent: Spent, events: Sequence[PrivacyEvent]) -> Spent:
    """What a site says, or what these events cost at the same δ, whichever is more."""
    losses = [Loss.of(epsilon(events, loss.delta)).joined(loss) for loss in spent.at]
    return spent.model_copy(update={"at": (losses[0], losses[1])})


def claim(plan: PrivacyPlan, run_dir: Path) -> PrivacyStatement:
    """What may be said of the data set of a trained run: the sites' ledgers decide, not the recipe.

    Of each site the largest loss that it ever stated counts, and never less than what this run alone has asked of it.
    (ε, δ) holds with any larger ε and δ, and patients are at one site each, so the largest of both over all sites holds
    for everyone.
    """
    experiment = plan.experiment
    if not experiment.steps():
        return public_claim(experiment)
    if not experiment.privacy.private:
        return NOT_PRIVATE
    unit = experiment.privacy.unit
    stated = spent_by_site(run_dir, experiment.digest)
    events = own_events(plan, run_dir)
    known = {
        site: at_least(spent, events[site])
        for site, spent in stated.items()
        if spent and spent.unit == unit and spent.bounded
    }
    if not stated or len(known) < len(stated) or not all(spent.bounded for spent in known.values()):
        return NOT_PRIVATE
    audited = read_audit(run_dir)
    if not audited or not all(row.passed for row in audited):
        reason = "was not audited" if not audited else "failed its audit"
        return NOT_PRIVATE.model_copy(update={"statement": f"{NOT_PRIVATE.statement} The private step {reason}."})
    alone = sorted(site for site, spent in known.items() if not spent.audited)
    if alone and not (run_dir / "sites").is_dir():
        said = f"The private step was not audited at {', '.join(alone)}."
        return NOT_PRIVATE.model_copy(update={"statement": f"{NOT_PRIVATE.statement} {said}"})
    worst = [max((s.at[i].prv or 0.0) for s in known.values()) for i in range(2)]
    strict = max(s.at[1].delta for s in known.values())
    loose, delta = max((s.at[0].rdp or 0.0) for s in known.values()), max(s.at[0].delta for s in known.values())
    weaker = " This is weaker than hiding a patient, who has many slices." if unit == "slice" else ""
    start = f" {public_words(experiment)}" if experiment.pretrain else ""
    return PrivacyStatement(
        differentially_private=True,
        unit=unit,
        relation=ADJACENCY[unit],
        epsilon=_up(worst[0]),
        delta=delta,
        epsilon_strict=_up(worst[1]),
        strict_delta=strict,
        epsilon_rdp=_up(loose),
        accountant="PRV (arXiv 2106.02848)",
        sites={name: spent.model_dump(mode="json") for name, spent in known.items()},
        statement=f"Differentially private: {ADJACENCY[unit]}, ε ≤ {_up(worst[0]):g} at δ = {delta:.2g} (PRV; RDP "
        f"{_up(loose):g}), or ε ≤ {_up(worst[1]):g} at δ = {strict:g}: the largest loss that the ledger of "
        f"any site ever stated, over all stages and rounds.{weaker}{start} {NOT_COVERED} {_where(run_dir)}",
    )


def _where(run_dir: Path) -> str:
    """What the claim rests on, as to who the patients are."""
    if not (run_dir / "sites").is_dir():
        return DEPLOYED
    return f"{SIMULATED} {PLACED_ALONE if placement_of(run_dir) == PLACEMENT else PLACED_TOGETHER}"


def _up(value: float) -> float:
    """Rounded up to three decimals: a claim is never below what was computed."""
    return math.ceil(value * 1000) / 1000

"""The privacy of a run: its plan before anything is trained, its audit, and what may be claimed after it."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cmrfed.config.experiment import ALL_STAGES, STAGES, Experiment
from cmrfed.core.artifacts import read_json
from cmrfed.core.errors import ConfigError
from cmrfed.data.partition import PLACEMENT, placement_of
from cmrfed.data.synthetic import NOT_PRIVATE, PrivacyStatement
from cmrfed.federation.messages import Spent
from cmrfed.federation.server.checkpoint import RoundStore
from cmrfed.federation.server.statements import FILE as STATEMENTS
from cmrfed.federation.server.statements import read_statements
from cmrfed.generators.trainable import make_trainable
from cmrfed.privacy.accountant import epsilon
from cmrfed.privacy.budget import Plan, calibrate_privacy, noise_to_signal
from cmrfed.privacy.event import ADJACENCY, PrivacyEvent
from cmrfed.privacy.ledger.statement import Loss
from cmrfed.privacy.settings import PrivateTraining
from cmrfed.training.audit import audit_training
from cmrfed.training.private import train_only
from cmrfed.training.settings import Stage

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
    statement="No patient took part in training: both generators were trained on a phantom alone, so nothing of what "
    "they draw comes from a patient. Nothing else is claimed.",
)


# --- before -------------------------------------------------------------------------------------
def plan_privacy(experiment: Experiment) -> Plan | None:
    """Noise of all private stages together; None where nothing is promised.

    Raises:
        PrivacyError: The target cannot be met; the message names the nearest settings that can.
    """
    return calibrate_privacy(experiment.privacy, experiment.steps()) if experiment.privacy.private else None


def requests(experiment: Experiment) -> dict[Stage, PrivateTraining | None]:
    """What the requests of each stage say of privacy."""
    plan = plan_privacy(experiment)
    private = {s.stage: experiment.privacy.request(s.stage, s.noise_multiplier) for s in (plan.stages if plan else ())}
    return {stage: private.get(stage) for stage in experiment.stages}


def plan_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """One row for each private stage: what is trained, with how much noise, and what it would cost alone."""
    plan, rows = plan_privacy(experiment), []
    for stage in plan.stages if plan else ():
        settings = experiment.privacy.stage(stage.stage)
        name: Stage = next(each for each in ALL_STAGES if each == stage.stage)
        network = make_trainable(name, experiment.generator(name)).network
        trained = sum(p.numel() for p in train_only(network, settings.trained))
        patients = experiment.privacy.declared_patients or 1
        released = settings.dimensions(trained)
        ratio = noise_to_signal(
            stage.noise_multiplier, released, stage.sampling_rate, patients, sites=experiment.federation.asked
        )
        rows.append(
            {
                "stage": stage.stage,
                "noise_multiplier": round(stage.noise_multiplier, 4),
                "sampling_rate": stage.sampling_rate,
                "steps": stage.steps,
                "draws": settings.draws,
                "clip_norm": settings.clip_norm,
                "trained_parameters": trained,
                "released_numbers": released,
                "epsilon_alone": round(stage.alone.prv, 3),
                "noise_to_signal": round(ratio, 2),
            }
        )
    return rows


def plan_text(experiment: Experiment) -> str:
    """The plan in words, for the terminal."""
    plan, config = plan_privacy(experiment), experiment.privacy
    start = [_public_words(experiment)] if experiment.pretrain else []
    idle = [f"  {s}: keeps its pre-trained weights; no site trains it." for s in STAGES if s not in experiment.steps()]
    if plan is None:
        return "\n".join(["Privacy: none. Nothing is promised to the patients.", *idle, *start])
    weaker = " (weaker: it hides a slice, and a patient has many)" if config.unit == "slice" else ""
    first = (
        f"Privacy: unit {config.unit}{weaker}, {ADJACENCY[config.unit]}; ε = {plan.total.prv:.3f} (PRV; RDP "
        f"{plan.total.rdp:.3f}) at δ = {plan.total.delta:.2g} for the whole data set, target {config.epsilon:g}"
    )
    return "\n".join([first, *(_row_text(row) for row in plan_rows(experiment)), *idle, *start])


def _public_words(experiment: Experiment) -> str:
    if experiment.pretrain is None:
        return ""
    return experiment.pretrain.in_words(finetuned=experiment.autoencoder is not None)


def _row_text(row: dict[str, Any]) -> str:
    return (
        f"  {row['stage']}: σ = {row['noise_multiplier']:.3f}, q = {row['sampling_rate']:g}, {row['steps']} steps, "
        f"K = {row['draws']}, {_moved(row)}; alone ε = {row['epsilon_alone']:.2f}; "
        f"noise of a step is {row['noise_to_signal']:.1f} × its largest signal"
    )


def _moved(row: dict[str, Any]) -> str:
    if row["released_numbers"] == row["trained_parameters"]:
        return f"{row['trained_parameters']} parameters"
    return f"{row['trained_parameters']} parameters in {row['released_numbers']} public directions"


# --- after --------------------------------------------------------------------------------------
def audit_experiment(experiment: Experiment) -> list[dict[str, Any]]:
    """Audit the training of each private stage as it is configured, without any patient: rows of audit.json.

    Raises:
        ConfigError: The experiment is not private.
    """
    if not experiment.privacy.private:
        raise ConfigError(
            "there is no private step to audit",
            got="privacy.unit: none",
            do="--set privacy.unit=patient, with privacy.epsilon and privacy.declared_patients",
        )
    asked = requests(experiment)
    return [_audited(experiment, stage, request) for stage, request in asked.items() if request]


def _audited(experiment: Experiment, stage: Stage, request: PrivateTraining) -> dict[str, Any]:
    found = audit_training(
        stage, experiment.generator(stage), experiment.training(stage), request, experiment.compute.device
    )
    return {"stage": stage, **found.row()}


def audit_text(rows: list[dict[str, Any]]) -> str:
    """The audit in words, for the terminal: one line for each stage, and one for each property of its step."""
    return "\n".join(line for row in rows for line in _audit_lines(row))


def _audit_lines(row: dict[str, Any]) -> Iterator[str]:
    verdict = "passed" if row["passed"] else f"FAILED: {failed_checks(row)}"
    yield (
        f"{row['stage']}: σ = {row['noise_multiplier']:.3f}: {measured_mu(row)}, theory {row['theory']:.3f}; "
        f"{len(row['checks'])} properties: {verdict}"
    )
    for check in row["checks"]:
        yield f"  {'ok  ' if check['passed'] else 'FAIL'}  {check['name']}: {check['measured']}; {check['expected']}"


def failed_checks(row: dict[str, Any]) -> str:
    """Names of the properties of a row of audit.json that do not hold."""
    return "; ".join(check["name"] for check in row.get("checks", ()) if not check["passed"]) or "no detail is kept"


def measured_mu(row: dict[str, Any]) -> str:
    """µ of a row of audit.json with its interval; without any noise it is unbounded."""
    if row["mu"] is None:
        return "µ = ∞ (there is no noise)"
    return f"µ = {row['mu']:.3f} ({row['lower']:.3f} to {row['upper']:.3f} at {row['confidence']:.0%})"


def spent_by_site(run_dir: Path, digest: str) -> dict[str, Spent | None]:
    """The largest loss that each site ever stated in this run, whatever it said later; None where a reply said nothing.

    Only sites of which a reply was used are named.
    """
    told: dict[str, Spent | None] = {}
    for stage in ALL_STAGES:
        for metrics in RoundStore(run_dir / stage, digest).metrics():
            for site, row in metrics["sites"].items():
                if row["status"] == "ok":
                    said = Spent.model_validate(row["spent"]) if row["spent"] else None
                    before = told.get(site, said)
                    told[site] = before.joined(said) if before and said else None
    heard = read_statements(run_dir / STATEMENTS)
    for site, spent in told.items():
        if spent and site in heard:  # whether it was audited is a matter of the replies that were used
            told[site] = heard[site].largest.joined(spent).model_copy(update={"audited": spent.audited})
    return told


def own_events(experiment: Experiment, run_dir: Path) -> dict[str, list[PrivacyEvent]]:
    """What this run alone has cost each site's patients: the requests that the coordinator sent and saw answered."""
    asked, events = requests(experiment), dict[str, list[PrivacyEvent]]()
    for stage in ALL_STAGES:
        request = asked.get(stage)
        for metrics in RoundStore(run_dir / stage, experiment.digest).metrics():
            event = PrivacyEvent(
                noise_multiplier=request.noise_multiplier if request else 0.0,
                sampling_rate=request.sampling_rate if request else 1.0,
                steps=experiment.training(stage).local_steps,
                run=experiment.name,
                stage=stage,
                round=metrics["round"],
                digest=experiment.digest,
                unit=request.unit if request else "none",
            )
            for site, row in metrics["sites"].items():
                if row["status"] in ("ok", "set aside"):
                    events.setdefault(site, []).append(event)
    return events


def at_least(spent: Spent, events: Sequence[PrivacyEvent]) -> Spent:
    """What a site says, or what these events cost at the same δ, whichever is more."""
    losses = [Loss.of(epsilon(events, loss.delta)).joined(loss) for loss in spent.at]
    return spent.model_copy(update={"at": (losses[0], losses[1])})


def claim(experiment: Experiment, run_dir: Path) -> PrivacyStatement:
    """What may be said of the data set of a trained run: the sites' ledgers decide, not the recipe.

    Of each site the largest loss that it ever stated counts, and never less than what this run alone has asked of it.
    (ε, δ) holds with any larger ε and δ, and patients are at one site each, so the largest of both over all sites holds
    for everyone.
    """
    if not experiment.steps():
        return PUBLIC
    if not experiment.privacy.private:
        return NOT_PRIVATE
    unit = experiment.privacy.unit
    told = spent_by_site(run_dir, experiment.digest)
    events = own_events(experiment, run_dir)
    known = {
        site: at_least(spent, events[site])
        for site, spent in told.items()
        if spent and spent.unit == unit and spent.bounded
    }
    if not told or len(known) < len(told) or not all(spent.bounded for spent in known.values()):
        return NOT_PRIVATE
    audited = read_json(run_dir / "audit.json") if (run_dir / "audit.json").exists() else []
    if not audited or not all(row["passed"] for row in audited):
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
    start = f" {_public_words(experiment)}" if experiment.pretrain else ""
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

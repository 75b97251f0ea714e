"""What a site's ledger says, in words and as data: what was spent, what it promises, and what is left."""

import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from cmrfed.core.errors import ConfigError
from cmrfed.core.settings.config import Section
from cmrfed.privacy.accountant import Epsilon
from cmrfed.privacy.event import ADJACENCY, Unit
from cmrfed.privacy.ledger.ledger import PrivacyLedger, PrivacySpent, SpentRow
from cmrfed.privacy.policy import SitePolicy
from cmrfed.privacy.settings import STRICT_DELTA, strict_delta

LABELS = {"patient": "patient", "slice": "slice (weaker)", "none": "none"}
"""How a unit is named beside each of its ε."""


class Loss(Section):
    """ε at one δ under both accountants; None is unbounded."""

    delta: float = Field(gt=0, lt=1)
    prv: float | None = Field(ge=0, allow_inf_nan=False)
    rdp: float | None = Field(ge=0, allow_inf_nan=False)

    @classmethod
    def of(cls, value: Epsilon) -> "Loss":
        """The same, with None for infinity, which JSON has not."""
        prv, rdp = (v if math.isfinite(v) else None for v in (value.prv, value.rdp))
        return cls(delta=value.delta, prv=prv, rdp=rdp)

    def joined(self, other: "Loss") -> "Loss":
        """The larger of each: it holds wherever one of both does."""
        prv, rdp = (
            None if mine is None or theirs is None else max(mine, theirs)
            for mine, theirs in ((self.prv, other.prv), (self.rdp, other.rdp))
        )
        return Loss(delta=max(self.delta, other.delta), prv=prv, rdp=rdp)


class StageLoss(Section):
    """What one stage of one run cost by itself."""

    run: str
    stage: str
    unit: Unit
    adjacency: str
    reservations: int
    uncommitted: int
    """Reservations whose replies were never stored; they count as spent."""
    steps: int
    alone: tuple[Loss, ...]
    """ε at the same δ as `LedgerStatement.total`."""


class LedgerStatement(Section):
    """All that the ledger of a site says."""

    site: str
    folder: str
    """Where it lies: beside the cohort, for all sites that have these patients."""
    guarantee: bool
    unit: Unit
    adjacency: str
    reasons: tuple[str, ...]
    """Why there is no guarantee; empty where there is one."""
    total: tuple[Loss, ...]
    """Everything composed: at the site's δ, and at `STRICT_DELTA` where that is smaller."""
    policy: bool
    """Whether the site has a policy.yaml; without it, its δ and its cap are unknown."""
    epsilon_cap: float | None
    left: float | None
    """Cap minus total (PRV, the site's δ), at least 0; None without a cap."""
    stages: tuple[StageLoss, ...]
    unreadable_lines: int
    repairs: tuple[str, ...]
    last_hash: str


# --- as data ------------------------------------------------------------------------------------
def read_statement(root: Path, delta: float | None = None) -> LedgerStatement:
    """Read the ledger of a site.

    Args:
        root: The site's folder.
        delta: δ in (0, 1) for a site without policy.yaml; None takes `STRICT_DELTA`.

    Raises:
        ConfigError: δ is given, and the site's policy has one.
        PrivacyError: Ledger or policy is missing what it needs or damaged, or δ is no probability.
    """
    path = root / "policy.yaml"
    policy = SitePolicy.load(path) if path.exists() else None
    if policy and delta is not None:
        raise ConfigError(
            "the site has a δ of its own",
            got=f"--delta {delta:g}",
            expected=f"δ = {policy.delta:g}, as {path} says",
            do="leave --delta out",
        )
    own = policy.delta if policy else STRICT_DELTA if delta is None else delta
    ledger = PrivacyLedger(root)
    by_delta = _spent(ledger, tuple(dict.fromkeys((own, strict_delta(own)))))
    spent, cap = by_delta[0], policy.epsilon_cap if policy else None
    reasons = _why_unbounded(spent)
    return LedgerStatement(
        site=str(root),
        folder=str(ledger.folder),
        guarantee=not reasons,
        unit=spent.unit,
        adjacency=ADJACENCY[spent.unit],
        reasons=reasons,
        total=tuple(Loss.of(s.total) for s in by_delta),
        policy=policy is not None,
        epsilon_cap=cap,
        left=None if cap is None else max(0.0, cap - spent.total.prv),
        stages=tuple(_stage(rows) for rows in zip(*(s.rows for s in by_delta), strict=True)),
        unreadable_lines=spent.unbounded,
        repairs=spent.repairs,
        last_hash=spent.last_hash,
    )


def _spent(ledger: PrivacyLedger, deltas: Sequence[float]) -> list[PrivacySpent]:
    """The same state of the ledger at each δ; read again where a running site has added to it in between."""
    while True:
        found = [ledger.spent(delta) for delta in deltas]
        if len({spent.last_hash for spent in found}) == 1:
            return found


def _why_unbounded(spent: PrivacySpent) -> tuple[str, ...]:
    """Every reason for which nothing is promised; none where the total is finite."""
    units = {row.unit for row in spent.rows}
    bare = sum(row.unit == "none" for row in spent.rows)
    reasons = []
    if spent.unbounded:
        reasons.append(
            f"{spent.unbounded} line(s) of the ledger were lost or unreadable, and each may have cost anything"
        )
    if bare:
        reasons.append(f"{bare} of {len(spent.rows)} stage(s) trained without privacy (unit none)")
    if {"patient", "slice"} <= units:
        reasons.append("the units are mixed: losses of patients and of slices do not compose to one statement")
    if not reasons and math.isinf(spent.total.prv):
        reasons.append("there was no noise, or so little that no useful bound on ε exists")
    return tuple(reasons)


def _stage(rows: tuple[SpentRow, ...]) -> StageLoss:
    """One stage from its rows, one for each δ."""
    row = rows[0]
    return StageLoss(
        run=row.run,
        stage=row.stage,
        unit=row.unit,
        adjacency=ADJACENCY[row.unit],
        reservations=row.reservations,
        uncommitted=row.uncommitted,
        steps=row.steps,
        alone=tuple(Loss.of(r.epsilon) for r in rows),
    )


# --- in words -----------------------------------------------------------------------------------
def statement_text(found: LedgerStatement) -> str:
    """The statement for a person at a terminal."""
    repairs = [f"Repaired: {reason}" for reason in found.repairs] or ["Repairs: none."]
    parts = [
        [f"Privacy ledger of {found.site}" + ("" if found.folder == found.site else f", in {found.folder}")],
        _table(found) if found.stages else ["Nothing has been spent: the site has not trained on its patients."],
        _promise(found),
        [_budget(found)],
        repairs,
        [
            f"Last hash: {found.last_hash}",
            "Keep it elsewhere, with the date: a ledger in which no line has this hash is not this one grown older, "
            "but an older copy or a changed one.",
        ],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _table(found: LedgerStatement) -> list[str]:
    own, others = found.total[0].delta, found.total[1:]
    names = ["run", "stage", "unit", "reservations", "uncommitted", "steps"]
    losses = [f"ε PRV, δ={own:.3g}", f"ε RDP, δ={own:.3g}", *(f"ε PRV, δ={loss.delta:.3g}" for loss in others)]
    rows = [[*names, *losses], *(_cells(stage) for stage in found.stages)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [
        *lines,
        "Each row is a stage by itself; the total composes all of them and is not their sum. An uncommitted "
        "reservation is spent.",
    ]


def _cells(stage: StageLoss) -> list[str]:
    own, *others = stage.alone
    counts = [str(n) for n in (stage.reservations, stage.uncommitted, stage.steps)]
    losses = [_number(v) for v in (own.prv, own.rdp, *(loss.prv for loss in others))]
    return [stage.run, stage.stage, LABELS[stage.unit], *counts, *losses]


def _promise(found: LedgerStatement) -> list[str]:
    if not found.guarantee:
        return [f"No guarantee: {reason}." for reason in found.reasons]
    unit = LABELS[found.unit]
    totals = (
        f"Total for a {unit}: ε ≤ {_number(loss.prv)} (PRV; RDP {_number(loss.rdp)}) at δ = {loss.delta:.3g}"
        for loss in found.total
    )
    return [*totals, f"Unit: {unit}; adjacency: {found.adjacency}."]


def _budget(found: LedgerStatement) -> str:
    own = found.total[0]
    if not found.policy:
        return f"There is no policy.yaml: the site's own δ and its cap are unknown, and δ = {own.delta:.3g} stands in."
    if found.left is None:
        return "Cap: none; policy.yaml sets no limit to what may be spent."
    cap = f"Cap: ε = {found.epsilon_cap:g} (PRV) at δ = {own.delta:.3g}"
    if not found.left:
        return f"{cap}; nothing is left: the site refuses to train."
    return f"{cap}; left: {math.floor(found.left * 1000) / 1000:.3f}."


def _number(value: float | None) -> str:
    """ε rounded up to three decimals: what is shown is never below what was computed."""
    return "∞" if value is None else f"{math.ceil(value * 1000) / 1000:.3f}"

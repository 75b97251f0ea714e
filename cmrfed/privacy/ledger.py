"""The ledger of one site: what its patients have paid, over all runs, stages and rounds.

Training pays first: `PrivacyLedger.reserve` is on the disk before the first gradient is taken. A reservation counts as
spent from then on, whether or not a commit follows. Nothing is ever taken back.

Lines are of four kinds. ``open``: the first. ``reserve``: one `PrivacyEvent`. ``commit``: the number of the reservation
whose reply is stored. ``repair``: why, where the damaged files are kept, the events that could still be read in them,
and how many lines could not: any of those may have cost anything, so from then on the loss of the site is unbounded.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrfed.artifacts import digest_bytes, write_bytes
from cmrfed.errors import PrivacyError
from cmrfed.privacy.accountant import Epsilon, common_unit, epsilon
from cmrfed.privacy.chain import Chain, Line, Survey, last_hash, missing_ledger, parse_line
from cmrfed.privacy.event import PrivacyEvent, Unit


@dataclass(frozen=True)
class Ticket:
    """The receipt for one reservation."""

    number: int
    event: PrivacyEvent
    fresh: bool
    """Whether this very call reserved it. If not, the request came before: answer it from the stored reply."""
    committed: bool

    def permit(self) -> PrivacyEvent:
        """The event to train with.

        Raises:
            PrivacyError: The request was paid for earlier; training on it again would be a second release.
        """
        if not self.fresh:
            raise PrivacyError(
                "this request was paid for earlier, and what was trained then may have left the site",
                got=f"reservation {self.number}, {'committed' if self.committed else 'not committed'}",
                expected="a new reservation",
                do="answer from the stored reply; where it is lost, reserve again and pay again",
            )
        return self.event


@dataclass(frozen=True)
class Payment:
    """One reservation and whether it was committed."""

    number: int
    event: PrivacyEvent
    committed: bool


@dataclass(frozen=True)
class History:
    """Everything that counts as spent."""

    payments: tuple[Payment, ...] = ()
    unbounded: int = 0
    """Lost or unreadable lines: each may have cost anything."""

    @property
    def events(self) -> tuple[PrivacyEvent, ...]:
        """All events, in order."""
        return tuple(p.event for p in self.payments)

    def epsilon(self, delta: float, *, extra: Iterable[PrivacyEvent] = ()) -> Epsilon:
        """The loss so far together with ``extra``; ∞ after unreadable lines, or when units are mixed."""
        events = [*self.events, *extra]
        if self.unbounded or common_unit(events) == "none":
            return Epsilon(delta, math.inf, math.inf)
        return epsilon(events, delta)


@dataclass(frozen=True)
class SpentRow:
    """What one stage of one run cost by itself."""

    run: str
    stage: str
    unit: Unit
    reservations: int
    uncommitted: int
    steps: int
    epsilon: Epsilon


@dataclass(frozen=True)
class PrivacySpent:
    """What a site's patients have paid. ``unit`` "none" means that there is no guarantee for them."""

    unit: Unit
    total: Epsilon
    rows: tuple[SpentRow, ...]
    unbounded: int
    repairs: tuple[str, ...]
    """The reasons that were given."""
    last_hash: str
    """Of the chain: kept elsewhere, it shows later that no older copy was put in place."""


@dataclass(frozen=True)
class Totals:
    """What a site's patients have paid in all, of one state of the ledger."""

    unit: Unit
    losses: tuple[Epsilon, ...]
    """At each δ that was asked for."""
    last_hash: str


Check = Callable[[History], None]


class PrivacyLedger:
    """The ledger in a site's folder. Safe for several processes: each call reads, and locks.

    Args:
        root: The site's folder; the ledger was made by `create`.
    """

    def __init__(self, root: Path) -> None:
        self._chain = Chain(root)

    @classmethod
    def create(cls, root: Path) -> "PrivacyLedger":
        """Make the ledger of a site that has never trained on its patients.

        Raises:
            PrivacyError: There is one, or the remains of one.
        """
        root.mkdir(parents=True, exist_ok=True)
        ledger = cls(root)
        with ledger._chain.locked():
            if ledger._chain.survey().exists:
                raise PrivacyError(
                    f"{root} has a privacy ledger already", do="use it: patients do not forget what they have paid"
                )
            ledger._chain.append((), "open", {"schema_version": 1})
        return ledger

    @staticmethod
    def exists(root: Path) -> bool:
        """Whether a ledger, or the remains of one, lie in a site's folder."""
        return Chain(root).survey().exists

    def history(self) -> History:
        """Everything that counts as spent.

        Raises:
            PrivacyError: The ledger is missing or damaged.
        """
        with self._chain.locked():
            return _history(self._chain.read())

    def reserve(self, event: PrivacyEvent, *, check: Check | None = None, again: bool = False) -> Ticket:
        """Pay for an event before it happens; it is on the disk when this returns.

        Args:
            event: What is about to be trained.
            check: Raises where the history so far does not allow it; nothing is written then.
            again: Pay a second time for a repeated request, because its stored reply is lost. Otherwise a request
                that was paid for before gets its old reservation, with ``fresh`` False.

        Raises:
            PrivacyError: The ledger is missing or damaged, or the request was reserved with other costs.
        """
        with self._chain.locked():
            lines = self._chain.read()
            history = _history(lines)
            earlier = [p for p in history.payments if p.event.request == event.request]
            if earlier and not again:
                return _repeated(earlier[-1], event)
            if check:
                check(history)
            line = self._chain.append(lines, "reserve", event.model_dump(mode="json"))
            return Ticket(line.number, event, fresh=True, committed=False)

    def commit(self, ticket: Ticket) -> None:
        """Note that the reply to a reservation is stored; a second time changes nothing.

        Raises:
            PrivacyError: The ledger has no such reservation, or is damaged.
        """
        with self._chain.locked():
            lines = self._chain.read()
            paid = {p.number: p for p in _history(lines).payments}.get(ticket.number)
            if paid is None or paid.event != ticket.event:
                raise PrivacyError(f"the ledger has no reservation {ticket.number} of this event", got=ticket.event)
            if not paid.committed:
                self._chain.append(lines, "commit", {"reservation": ticket.number})

    def totals(self, *deltas: float) -> Totals:
        """The loss in all, at each δ, without its parts: what `spent` gives in a fraction of its time.

        Raises:
            PrivacyError: The ledger is missing or damaged, or a δ is no probability.
        """
        with self._chain.locked():
            lines = self._chain.read()
        history = _history(lines)
        return Totals(_unit(history), tuple(history.epsilon(delta) for delta in deltas), last_hash(lines))

    def spent(self, delta: float) -> PrivacySpent:
        """ε by run and stage and in all, at δ.

        Raises:
            PrivacyError: The ledger is missing or damaged, or δ is no probability.
        """
        with self._chain.locked():
            lines = self._chain.read()
        history = _history(lines)
        groups: dict[tuple[str, str, Unit], list[Payment]] = {}
        for payment in history.payments:
            groups.setdefault((payment.event.run, payment.event.stage, payment.event.unit), []).append(payment)
        rows = tuple(_row(key, payments, delta) for key, payments in groups.items())
        reasons = tuple(line.body["reason"] for line in lines if line.kind == "repair")
        return PrivacySpent(_unit(history), history.epsilon(delta), rows, history.unbounded, reasons, last_hash(lines))

    def repair(self, reason: str) -> History:
        """Make a damaged ledger usable again, without forgetting anything that it may have held.

        The damaged files are kept beside it. Lines whose own hash holds still count as they are; each line that is
        lost or unreadable makes the loss unbounded.

        Args:
            reason: What happened, for the auditor; it becomes part of the chain.

        Raises:
            PrivacyError: No reason is given, or nothing is damaged, or there is no ledger.
        """
        if not reason.strip():
            raise PrivacyError("a repair needs a reason", do="say what happened to the ledger")
        with self._chain.locked():
            survey = self._chain.survey()
            if not survey.exists:
                raise missing_ledger(self._chain.folder)
            if survey.sound or survey.interrupted:
                raise PrivacyError(
                    "there is nothing to repair",
                    got=f"{len(survey.lines)} good lines in the ledger",
                    do="use the ledger as it is",
                )
            body = {"reason": reason, **_salvage(survey), "kept": self._keep_damaged()}
            line = self._chain.replace_damaged(survey, "repair", body)
            return _history((*survey.lines, line))

    def _keep_damaged(self) -> dict[str, str]:
        """Copy both files aside; file name → SHA-256."""
        number = 1 + len(list(self._chain.folder.glob("ledger.damaged-*.jsonl")))
        kept = {}
        for path, end in ((self._chain.path, "jsonl"), (self._chain.head_path, "head")):
            data = path.read_bytes() if path.exists() else b""
            copy = write_bytes(self._chain.folder / f"ledger.damaged-{number}.{end}", data)
            kept[copy.name] = digest_bytes(data)
        return kept


def _repeated(earlier: Payment, event: PrivacyEvent) -> Ticket:
    if earlier.event != event:
        raise PrivacyError(
            "the request was reserved before with other costs",
            got=event,
            expected=earlier.event,
            do="give a changed request another digest",
        )
    return Ticket(earlier.number, event, fresh=False, committed=earlier.committed)


def _unit(history: History) -> Unit:
    """For whom the history makes a statement; "none" where it makes none."""
    return "none" if history.unbounded else common_unit(history.events)


def _history(lines: Iterable[Line]) -> History:
    """What lines that hold add up to."""
    payments: dict[int, Payment] = {}
    salvaged: list[Payment] = []
    unbounded = 0
    for line in lines:
        if line.kind == "reserve":
            payments[line.number] = Payment(line.number, PrivacyEvent.model_validate(line.body), False)
        elif line.kind == "commit":
            paid = payments[line.body["reservation"]]
            payments[paid.number] = Payment(paid.number, paid.event, True)
        elif line.kind == "repair":
            # numbers below zero: a salvaged event can neither be committed nor be mistaken for a line
            salvaged += [Payment(-1, PrivacyEvent.model_validate(e), False) for e in line.body["events"]]
            unbounded += line.body["unbounded"]
    return History((*payments.values(), *salvaged), unbounded)


def _salvage(survey: Survey) -> dict[str, Any]:
    """Events in the damaged part whose lines keep their own hash, and the number of lines that nobody can vouch for."""
    raws = [raw for raw in survey.rest.splitlines(keepends=True) if raw.strip()]
    found = {raw: parse_line(raw) for raw in raws}
    known = {line.raw for line in survey.lines}
    if survey.head and survey.head.raw not in known:
        found[survey.head.raw] = survey.head
    read = [line for line in found.values() if line]
    numbers = {line.number for line in [*survey.lines, *read]}
    lost = max(numbers, default=-1) + 1 - len(numbers)
    unread = sum(parse_line(raw) is None for raw in raws)
    events = [line.body for line in read if line.kind == "reserve"]
    earlier = [line.body for line in read if line.kind == "repair"]
    return {
        "events": [*events, *(event for body in earlier for event in body["events"])],
        "unbounded": unread + lost + (survey.head is None) + sum(body["unbounded"] for body in earlier),
    }


def _row(key: tuple[str, str, Unit], payments: list[Payment], delta: float) -> SpentRow:
    run, stage, unit = key
    events = [p.event for p in payments]
    uncommitted = sum(not p.committed for p in payments)
    return SpentRow(run, stage, unit, len(payments), uncommitted, sum(e.steps for e in events), epsilon(events, delta))

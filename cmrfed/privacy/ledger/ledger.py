"""The ledger of a cohort: what its patients have paid, over all sites, runs, stages and rounds.

Training pays first: `PrivacyLedger.reserve` is on the disk before the first gradient is taken. A reservation counts as
spent from then on, whether or not a commit follows. Nothing is ever taken back. It lies beside the cohort
(`cmrfed.privacy.ledger.place`), so sites that have the same patients pay into the same ledger, and what a site
remembers of it (`cmrfed.privacy.ledger.memory`) is compared each time it is opened.

Kinds of lines:

- ``open``: the first; its hash is the identity of the ledger.
- ``patients``: which site opened the ledger with which patients, as keyed digests of names and pixels.
- ``reserve``: one `PrivacyEvent`. ``commit``: the number of the reservation whose reply is stored.
- ``join``: the events of another ledger of the same patients, which was taken over.
- ``repair``: why, where the damaged files are kept, the events that could still be read in them or in the copy at the
  site, and how many lines could not: any of those may have cost anything, so from then on the loss is unbounded.
"""

import math
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrfed.core.artifacts import OWNER_ALONE, digest_bytes, write_bytes
from cmrfed.core.errors import ConfigError, PrivacyError, SiteRefused
from cmrfed.privacy.accountant import Epsilon, common_unit, epsilon
from cmrfed.privacy.event import PrivacyEvent, Unit
from cmrfed.privacy.ledger.chain import Chain, Line, last_hash, missing_ledger
from cmrfed.privacy.ledger.memory import Memory, known_hashes
from cmrfed.privacy.ledger.place import assigned_folder, has_files, ledger_folder
from cmrfed.privacy.ledger.salvage import salvage


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
    """Hash of the last line: kept elsewhere, it shows later that no older copy was put in place."""


@dataclass(frozen=True)
class Totals:
    """What a site's patients have paid in all, of one state of the ledger."""

    unit: Unit
    losses: tuple[Epsilon, ...]
    """ε at each requested δ."""
    last_hash: str


Check = Callable[[History], None]
HASH = "[0-9a-f]{64}"
UPDATE = "install the same version on server and site"


class PrivacyLedger:
    """A ledger. Safe for several processes: each call reads, and locks.

    Args:
        root: A site's folder, or the ledger's own; the ledger was made by `create`.
        folder: Where it lies; None: where `ledger_folder` finds it.
    """

    def __init__(self, root: Path, folder: Path | None = None) -> None:
        self.root, self.folder = root, folder or ledger_folder(root)
        self._chain = Chain(self.folder, root)
        self._memory = Memory(root) if (root / "site.json").is_file() else None

    @classmethod
    def create(cls, root: Path) -> "PrivacyLedger":
        """Make the ledger of patients who have never been trained on.

        Raises:
            PrivacyError: There is one, or the remains of one, or the site has trained on its patients.
        """
        ledger = cls(root)
        _make_folder(ledger.folder)
        with ledger._chain.locked():
            if ledger._chain.survey().exists:
                raise PrivacyError(
                    f"{root} has a privacy ledger already", do="use it: patients do not forget what they have paid"
                )
            if ledger._memory and (traces := ledger._memory.traces()):
                raise _gone(root, ledger.folder, traces)
            ledger._append((), "open", {"schema_version": 1})
        return ledger

    @staticmethod
    def exists(root: Path) -> bool:
        """Whether a ledger, or the remains of one, lie where that of a site belongs."""
        return has_files(ledger_folder(root))

    def lines(self) -> tuple[Line, ...]:
        """All lines.

        Raises:
            PrivacyError: The ledger is missing or damaged, or older than what the site remembers.
        """
        with self._chain.locked():
            return self._read()

    def demand(self, name: str) -> None:
        """Go on where the ledger has a line of this hash; a coordinator names the last one that it received.

        Raises:
            PrivacyError: It has none: an older copy of it was put in place, or another ledger.
            SiteRefused: It is no hash.
        """
        if not re.fullmatch(HASH, name):
            raise SiteRefused("the request names no state of a privacy ledger", expected="a hash, 64 digits", do=UPDATE)
        if name not in known_hashes(self.lines()):
            raise PrivacyError(
                "the coordinator has received a later state of this site's privacy ledger",
                got="a ledger without the line that the site named with an earlier reply",
                expected="that ledger, grown longer",
                do="where the ledger, or the whole site, was restored from a backup: "
                f'{_command(self.root)} --repair "what happened" --missing {name}; otherwise tell the operator',
            )

    def _read(self) -> tuple[Line, ...]:
        """All lines, compared with what the site remembers, whose copy is brought up to date."""
        lines = self._chain.read()
        if self._memory:
            if lost := self._memory.lost(lines):
                raise _older(self.root, self._chain.path, lost)
            self._memory.follow(lines)
        return lines

    def _append(self, lines: tuple[Line, ...], kind: str, body: dict[str, Any]) -> Line:
        line = self._chain.append(lines, kind, body)
        if self._memory:
            self._memory.follow((*lines, line))
        return line

    def history(self) -> History:
        """Everything that counts as spent.

        Raises:
            PrivacyError: The ledger is missing or damaged.
        """
        with self._chain.locked():
            return _history(self._read())

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
            lines = self._read()
            history = _history(lines)
            earlier = [p for p in history.payments if p.event.request == event.request]
            if earlier and not again:
                return _repeated(earlier[-1], event)
            if check:
                check(history)
            line = self._append(lines, "reserve", event.model_dump(mode="json"))
            return Ticket(line.number, event, fresh=True, committed=False)

    def commit(self, ticket: Ticket) -> None:
        """Note that the reply to a reservation is stored; a second time changes nothing.

        Raises:
            PrivacyError: The ledger has no such reservation, or is damaged.
        """
        with self._chain.locked():
            lines = self._read()
            paid = {p.number: p for p in _history(lines).payments}.get(ticket.number)
            if paid is None or paid.event != ticket.event:
                raise PrivacyError(f"the ledger has no reservation {ticket.number} of this event", got=ticket.event)
            if not paid.committed:
                self._append(lines, "commit", {"reservation": ticket.number})

    def totals(self, *deltas: float) -> Totals:
        """The loss in all, at each δ, without its parts: what `spent` gives in a fraction of its time.

        Raises:
            PrivacyError: The ledger is missing or damaged, or a δ is no probability.
        """
        with self._chain.locked():
            lines = self._read()
        history = _history(lines)
        return Totals(_unit(history), tuple(history.epsilon(delta) for delta in deltas), last_hash(lines))

    def spent(self, delta: float) -> PrivacySpent:
        """ε by run and stage and in all, at δ.

        Raises:
            PrivacyError: The ledger is missing or damaged, or δ is no probability.
        """
        with self._chain.locked():
            lines = self._read()
        history = _history(lines)
        groups: dict[tuple[str, str, Unit], list[Payment]] = {}
        for payment in history.payments:
            groups.setdefault((payment.event.run, payment.event.stage, payment.event.unit), []).append(payment)
        rows = tuple(_row(key, payments, delta) for key, payments in groups.items())
        reasons = tuple(line.body["reason"] for line in lines if line.kind == "repair")
        return PrivacySpent(_unit(history), history.epsilon(delta), rows, history.unbounded, reasons, last_hash(lines))

    # --- other ledgers, other patients ------------------------------------------------------------
    @classmethod
    def move(cls, root: Path) -> None:
        """Take the ledger that an earlier version kept in a site's own folder into that of its cohort.

        Its events are in one line of the other ledger before its files get other names; done twice, it changes nothing.

        Raises:
            PrivacyError: One of the two is damaged.
        """
        place = assigned_folder(root)
        if place.resolve() == root.resolve() or not has_files(root):
            return
        _make_folder(place)
        ledger, source = cls(root, place), Chain(root)
        with source.locked(), ledger._chain.locked():
            theirs = source.read()
            lines = ledger._chain.read() if ledger._chain.survey().exists else ()
            if not lines:
                lines = (ledger._chain.append((), "open", {"schema_version": 1}),)
            if not known_hashes(theirs) <= known_hashes(lines):
                ledger._append(lines, "join", _joined(theirs, root))
            for name in ("ledger.jsonl", "ledger.head"):
                if (root / name).exists():
                    (root / name).replace(root / name.replace("ledger.", "ledger.moved."))

    def bound(self, site: str, cohort: str) -> bool:
        """Whether a site of this name has used the ledger with these patients; if so, the cohort's folder names it."""
        lines = self.lines()
        bodies = (line.body for line in lines if line.kind == "patients")
        found = any((body["site"], body["cohort"]) == (site, cohort) for body in bodies)
        if found and self._memory:
            self._memory.mark_cohort(lines[0].hash)
        return found

    def bind(self, site: str, cohort: str, marks: Callable[[str], Sequence[tuple[str, str]]]) -> None:
        """Note with which patients a site uses the ledger; those that it knows are not noted again.

        Args:
            site: Its name.
            cohort: Digest of its patients, by which `bound` sees quickly that they are those of before.
            marks: Called with the identity of the ledger; two marks of each patient, of name and of pixels.
        """
        with self._chain.locked():
            lines = self._read()
            bodies = [line.body for line in lines if line.kind == "patients"]
            known = {tuple(pair) for body in bodies for pair in body["patients"]}
            fresh = [list(pair) for pair in marks(lines[0].hash) if tuple(pair) not in known]
            self._append(lines, "patients", {"site": site, "cohort": cohort, "patients": fresh})
            if self._memory:
                self._memory.mark_cohort(lines[0].hash)

    # --- damage -----------------------------------------------------------------------------------
    def repair(self, reason: str, missing: Sequence[str] = ()) -> History:
        """Make a ledger usable again, without forgetting anything that it may have held.

        The damaged files are kept beside it. What the copy in the site's folder still has is taken from there, as it
        was, and lines whose own hash holds still count as they are; each line that is lost or unreadable makes the loss
        unbounded.

        Args:
            reason: What happened, for the auditor; it becomes part of the chain.
            missing: Hashes of lines that somebody else has received, and that the ledger lacks.

        Raises:
            PrivacyError: No reason is given, or nothing is damaged or missing, or there is no ledger.
            ConfigError: What is missing is not named by a hash.
        """
        if not reason.strip():
            raise PrivacyError("a repair needs a reason", do="say what happened to the ledger")
        if wrong := [name for name in missing if not re.fullmatch(HASH, name)]:
            raise ConfigError("a missing line is named by its hash", got=wrong[0], expected="64 digits, 0-9 and a-f")
        traces = self._memory.traces() if self._memory else []
        if traces:
            _make_folder(self.folder)
        with self._chain.locked():
            survey = self._chain.survey()
            if not survey.exists and not traces:
                raise missing_ledger(self._chain.folder)
            copied = self._memory.copied() if self._memory else ()
            remembered = [*missing, *(self._memory.lost(survey.lines) if self._memory else ())]
            found = salvage(survey, copied, remembered)
            if found.nothing:
                raise PrivacyError(
                    "there is nothing to repair",
                    got=f"{len(survey.lines)} good lines in the ledger",
                    do="use the ledger as it is",
                )
            body = {"reason": reason, **found.body, "kept": self._keep_damaged()}
            line = self._chain.replace_damaged(found.lines, "repair", body)
            if self._memory:
                self._memory.follow((*found.lines, line))
            return _history((*found.lines, line))

    def _keep_damaged(self) -> dict[str, str]:
        """Copy both files aside; file name → SHA-256."""
        number = 1 + len(list(self._chain.folder.glob("ledger.damaged-*.jsonl")))
        kept = {}
        for path, end in ((self._chain.path, "jsonl"), (self._chain.head_path, "head")):
            data = path.read_bytes() if path.exists() else b""
            copy = write_bytes(self._chain.folder / f"ledger.damaged-{number}.{end}", data, OWNER_ALONE)
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
    """The privacy unit of the history; "none" where it promises nothing."""
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
        elif line.kind in ("repair", "join"):
            # numbers below zero: such an event can neither be committed nor be mistaken for a line
            events = [PrivacyEvent.model_validate(event) for event in line.body["events"]]
            committed = line.body.get("committed") or [False] * len(events)
            salvaged += [Payment(-1, event, done) for event, done in zip(events, committed, strict=True)]
            unbounded += line.body["unbounded"]
    return History((*payments.values(), *salvaged), unbounded)


def _joined(theirs: Sequence[Line], place: Path) -> dict[str, Any]:
    """All that another ledger holds, as the body of one line."""
    history = _history(theirs)
    return {
        "reason": f"taken over from {place}",
        "events": [p.event.model_dump(mode="json") for p in history.payments],
        "committed": [p.committed for p in history.payments],
        "unbounded": history.unbounded,
        "hashes": sorted(known_hashes(theirs)),
    }


def _make_folder(folder: Path) -> None:
    """Make a ledger's folder, which its owner alone may enter."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrivacyError(
            f"the folder of the privacy ledger, {folder}, cannot be made",
            got=error.strerror or error,
            do="make it, and let this user write there; or name another folder as ledger in site.json",
        ) from None
    with suppress(PermissionError):  # it is somebody else's, who has to let this process in
        folder.chmod(0o700)


def _command(root: Path) -> str:
    return f"cmrfed ledger {shlex.quote(str(root))}"


def _gone(root: Path, folder: Path, traces: Sequence[str]) -> PrivacyError:
    """What to say where patients have paid, and there is no ledger."""
    return PrivacyError(
        f"{root} has trained on its patients, and its privacy ledger is gone",
        got=f"no ledger in {folder}, but traces of one in {', '.join(traces)}",
        expected="the ledger that was kept from the first round on",
        do=f"where it lies elsewhere, name that folder as ledger in site.json, or move it; where it is lost, put the "
        f'latest copy of it there, if there is one, then {_command(root)} --repair "what happened": what is missing '
        "counts as unbounded loss",
    )


def _older(root: Path, path: Path, lost: dict[str, str]) -> PrivacyError:
    return PrivacyError(
        f"the privacy ledger {path} is older than what the site remembers",
        got=f"{len(lost)} line(s) missing that are named in {', '.join(sorted(set(lost.values())))}",
        expected="the ledger of before, grown longer",
        do=f'{_command(root)} --repair "what happened": what the site\'s own copy still has is put back, and what is '
        "lost counts as unbounded",
    )


def _row(key: tuple[str, str, Unit], payments: list[Payment], delta: float) -> SpentRow:
    run, stage, unit = key
    events = [p.event for p in payments]
    uncommitted = sum(not p.committed for p in payments)
    return SpentRow(run, stage, unit, len(payments), uncommitted, sum(e.steps for e in events), epsilon(events, delta))

"""What became of everybody and everything that was seen in a folder of scans, and what preparation had to note."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cmrfed.core.settings.config import Section

if TYPE_CHECKING:
    from cmrfed.data.sources.walk import LeftOut

EXAMPLES = 20
"""Most paths of a kind that are named."""
_DIGITS = re.compile(r"\d[\d.,]*")


class LeftOutKind(Section):
    """Files and folders of one kind that were not read; paths are relative to the folder of the data set."""

    kind: str
    count: int
    lost: bool
    """Whether something may be missing because of it."""
    examples: tuple[str, ...]

    def text(self) -> str:
        """One line for a reader."""
        more = f" and {self.count - len(self.examples)} more" if self.count > len(self.examples) else ""
        named = f": {', '.join(self.examples)}{more}" if self.examples else ""
        return f"{self.kind} ({self.count}){named}"


class Account(Section):
    """Patients that were found: accepted + set_aside + skipped = found."""

    found: int
    accepted: int
    set_aside: int
    """Patients who cannot be used."""
    skipped: int
    """Patients whom the table names and whose images are elsewhere."""
    left_out: tuple[LeftOutKind, ...] = ()

    def lines(self) -> list[str]:
        """The account for a reader, counts first."""
        who = "patient" if self.found == 1 else "patients"
        counts = f"{self.accepted} accepted, {self.set_aside} set aside, {self.skipped} skipped"
        return [f"{self.found} {who} found: {counts}", *(f"not read, {kind.text()}" for kind in self.left_out)]


def kinds_of(left_out: Iterable["LeftOut"]) -> tuple[LeftOutKind, ...]:
    """Group what was not read, what may be missed first; what has an empty path is counted and not named."""
    groups: dict[tuple[bool, str], list[str]] = {}
    for item in left_out:
        groups.setdefault((not item.lost, item.kind), []).append(item.path)
    return tuple(
        LeftOutKind(kind=kind, count=len(paths), lost=not kept, examples=tuple(sorted(filter(None, paths))[:EXAMPLES]))
        for (kept, kind), paths in sorted(groups.items())
    )


def added(accounts: Sequence[Account | None]) -> Account | None:
    """The account of several cohorts together, without paths; None where one of them has none."""
    known = [account for account in accounts if account is not None]
    if len(known) < len(accounts) or not known:
        return None
    kinds: dict[tuple[bool, str], int] = {}
    for kind in (kind for account in known for kind in account.left_out):
        kinds[kind.lost, kind.kind] = kinds.get((kind.lost, kind.kind), 0) + kind.count
    return Account(
        found=sum(account.found for account in known),
        accepted=sum(account.accepted for account in known),
        set_aside=sum(account.set_aside for account in known),
        skipped=sum(account.skipped for account in known),
        left_out=tuple(
            LeftOutKind(kind=kind, count=count, lost=lost, examples=())
            for (lost, kind), count in sorted(kinds.items(), key=lambda item: (not item[0][0], item[0][1]))
        ),
    )


def note_counts(notes: Iterable[Sequence[str]]) -> dict[str, int]:
    """Count patients by what preparation noted of them, most frequent first.

    Args:
        notes: The notes of each patient. What stands before a colon says what was found in general; what stands
            behind it may be of the patient alone, and is left out where it holds a number or a path.
    """
    counts: dict[str, int] = {}
    for of_patient in notes:
        for kind in {_kind(note) for note in of_patient}:
            counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class PreparationFacts(Section):
    """What a run says of its patients' preparation: counts alone, neither names nor paths."""

    account: Account | None
    """Without examples; None where nobody counted."""
    notes: dict[str, int]
    """See :func:`note_counts`."""

    def lines(self) -> list[str]:
        """The facts for a reader."""
        lines = self.account.lines() if self.account else []
        return [*lines, *(f"{n} {'patient' if n == 1 else 'patients'}: {note}" for note, n in self.notes.items())]


def facts(account: Account | None, notes: Iterable[Sequence[str]]) -> PreparationFacts:
    """Count what preparation noted of the patients of a run.

    Args:
        account: What became of everybody who was seen, or None where nobody counted.
        notes: See :func:`note_counts`.
    """
    return PreparationFacts(account=added([account]), notes=note_counts(notes))


def _kind(note: str) -> str:
    general, _, rest = note.partition(":")
    whole = note if not re.search(r"[\d/\\]", rest) else general
    return _DIGITS.sub("…", whole).strip()

"""What is left of a damaged, older or missing ledger, and how much of it is lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cmrfed.privacy.ledger.chain import Line, Survey, parse_line
from cmrfed.privacy.ledger.memory import known_hashes


@dataclass(frozen=True)
class Salvaged:
    """What a repair keeps."""

    lines: tuple[Line, ...]
    """The chain that goes on, from the first line."""
    events: tuple[dict[str, Any], ...]
    """Events of lines that are intact but no longer linked to the chain."""
    unbounded: int
    """Lines that are lost, or that nobody can read."""
    hashes: tuple[str, ...]
    """Hashes of lines outside the chain, and of lines that others remember."""
    nothing: bool
    """Whether there is nothing to repair."""

    @property
    def body(self) -> dict[str, Any]:
        """The content of the ledger line that records a repair."""
        return {"events": list(self.events), "unbounded": self.unbounded, "hashes": list(self.hashes)}


def salvage(survey: Survey, copied: Sequence[Line], remembered: Sequence[str]) -> Salvaged:
    """Say what counts as it is, and what is lost.

    Where one site alone uses the ledger, its own copy has every line that was written before any training. So a copy
    that has all that can be read elsewhere is whole, and nothing is lost.

    Args:
        survey: What lies in the ledger's folder.
        copied: The copy in the site's folder, as far as it is a chain.
        remembered: Hashes that stored replies, the journal or a coordinator name, and the ledger lacks.
    """
    rest = b"" if survey.interrupted else survey.rest
    raws = [raw for raw in rest.splitlines(keepends=True) if raw.strip()]
    read = [line for raw in raws if (line := parse_line(raw))]
    seen = {line.hash: line for line in [*survey.lines, *read, *([survey.head] if survey.head else [])]}
    lines = tuple(copied) if _begins(copied, survey.lines) else survey.lines
    if survey.interrupted and survey.head and not _begins(copied, survey.lines):
        lines = (*survey.lines, survey.head)
    whole = bool(copied) and _sites(copied) <= 1 and set(seen) <= {line.hash for line in copied}
    inside = {line.hash for line in lines}
    outside = [line for line in {**seen, **{c.hash: c for c in copied}}.values() if line.hash not in inside]
    known = known_hashes([*lines, *outside])
    missing = [name for name in dict.fromkeys(remembered) if name not in known]
    earlier = [line.body for line in outside if line.kind in ("repair", "join")]
    fine = (survey.sound or survey.interrupted) and not missing and set(inside) <= set(seen) and not outside
    unread = 0 if whole else _unread(survey, raws, [*lines, *outside], copied)
    return Salvaged(
        lines=lines,
        events=(
            *(line.body for line in outside if line.kind == "reserve"),
            *(event for body in earlier for event in body["events"]),
        ),
        unbounded=unread + len(missing) + sum(body["unbounded"] for body in earlier),
        hashes=(*sorted(known_hashes(outside)), *missing),
        nothing=fine,
    )


def _begins(long: Sequence[Line], short: Sequence[Line]) -> bool:
    """Whether one chain is the beginning of another; lines name what is before them, so their ends decide."""
    return len(long) >= len(short) and [line.hash for line in long[: len(short)]] == [line.hash for line in short]


def _sites(lines: Sequence[Line]) -> int:
    return len({line.body["site"] for line in lines if line.kind == "patients"})


def _unread(survey: Survey, raws: Sequence[bytes], read: Sequence[Line], copied: Sequence[Line]) -> int:
    """Lines that are lost: torn, missing between others, or after the end where no head says what the end was."""
    numbers = {line.number for line in read}
    lost = max(numbers, default=-1) + 1 - len(numbers)
    torn = sum(parse_line(raw) is None for raw in raws)
    rolled_back = survey.sound and bool(copied) and copied[-1].hash not in {line.hash for line in survey.lines}
    return torn + lost + (survey.head is None) + rolled_back

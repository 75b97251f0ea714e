"""The journal of a site: who asked for what, when, and what left; lines are only ever added.

``journal.jsonl`` has one canonical JSON object a line, each of which names the hash of the one before (as in
`cmrfed.privacy.ledger.chain`). It is a record for people: nothing is decided by it, so a damaged one stops no training,
but reading says from where on it cannot be trusted.
"""

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrfed.privacy.ledger.chain import START, make_line, parse_line

FILE = "journal.jsonl"
_TAIL = 1 << 16
"""Bytes read back from the end of the file to find its last line; no line is longer."""


@dataclass(frozen=True)
class Entry:
    """One line: what happened, when (UTC), and whether the chain holds up to here."""

    number: int
    time: str
    kind: str
    body: dict[str, Any]
    sound: bool


class Journal:
    """The journal in one folder.

    Args:
        folder: The site's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def start(self) -> None:
        """Make the file, where there is none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))

    def write(self, kind: str, /, **body: Any) -> None:
        """Add a line; it is on the disk when this returns. A folder without a journal stays without."""
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            tail = file.read()
            last = parse_line(tail[tail.rstrip(b"\n").rfind(b"\n") + 1 :]) if tail else None
            if tail and not last:  # torn by a crash, or edited: what follows begins a new chain, for all to see
                file.write(b"" if tail.endswith(b"\n") else b"\n")
            line = make_line(last.number + 1 if last else 0, last.hash if last else START, kind, body)
            file.write(line.raw)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> Iterator[Entry]:
        """All lines in order; after a line that is damaged or out of place, none is sound."""
        if not self.path.exists():
            return
        number, before, sound = 0, START, True
        for raw in self.path.read_bytes().splitlines(keepends=True):
            line = parse_line(raw)
            if line is None:
                sound = False
                yield Entry(number, "", "damaged", {"bytes": len(raw)}, False)
                continue
            sound = sound and (line.number, line.previous) == (number, before)
            yield Entry(line.number, line.time, line.kind, line.body, sound)
            number, before = line.number + 1, line.hash

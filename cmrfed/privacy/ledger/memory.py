"""What a site's own folder remembers of its ledger, so that an older copy of the ledger does not pass for it.

``ledger.copy.jsonl`` is a copy of the chain, brought up to date each time the site uses the ledger, and before every
training. Stored replies and the journal name hashes of lines, and so does ``ledger.json`` in the cohort, where that can
be written. A ledger in which one of these lines is missing has lost something: it was restored from a backup, or
replaced.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from cmrfed.core.artifacts import OWNER_ALONE, read_json, read_metadata, write_bytes, write_json
from cmrfed.core.errors import DataError
from cmrfed.core.text import parse_json
from cmrfed.privacy.ledger.chain import START, Line, parse_line
from cmrfed.privacy.ledger.journal import FILE as JOURNAL

COPY = "ledger.copy.jsonl"
MARKER = "ledger.json"
"""File in the cohort's folder that names the ledger its patients pay into."""
OWN_COPY, REPLY, DIARY, COHORT = "the site's own copy", "a stored reply", "the journal", "the cohort's folder"
"""Where hashes are remembered, in words that may travel."""


class Memory:
    """Of one site.

    Args:
        root: The site's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / COPY

    def copied(self) -> tuple[Line, ...]:
        """Lines of the copy from the first on, as far as they are a chain."""
        lines: list[Line] = []
        before = START
        for line in self._readable():
            if (line.number, line.previous) != (len(lines), before):
                break
            lines.append(line)
            before = line.hash
        return tuple(lines)

    def lost(self, lines: Sequence[Line]) -> dict[str, str]:
        """Hash → where it is remembered, of each line that the ledger should have and has not."""
        known = known_hashes(lines)
        places = self._hashes()
        if not self._follows(lines):
            places |= {line.hash: OWN_COPY for line in self._readable()}
        return {name: place for name, place in places.items() if name not in known}

    def follow(self, lines: Sequence[Line]) -> None:
        """Bring the copy up to date; it is on the disk when this returns."""
        whole = b"".join(line.raw for line in lines)
        had = self.path.read_bytes() if self.path.exists() else b""
        if had == whole:
            return
        if not had or not whole.startswith(had):
            write_bytes(self.path, whole, OWNER_ALONE)
            return
        with self.path.open("ab") as file:
            file.write(whole[len(had) :])
            file.flush()
            os.fsync(file.fileno())

    def traces(self) -> list[str]:
        """What shows that there was a ledger: the patients have paid, or may have."""
        found = {
            OWN_COPY: self.path.exists(),
            REPLY: any(self.root.glob("state/*/*")),
            DIARY: bool(self._journal()),
            COHORT: self._marked() is not None,
        }
        return [where for where, there in found.items() if there]

    def mark_cohort(self, identity: str) -> None:
        """Name the ledger in the cohort's folder, where that can be written: a copy of the cohort then asks for it."""
        cohort = self._cohort()
        if cohort and cohort.is_dir() and self._marked() != identity:
            with suppress(OSError):
                write_json(cohort / MARKER, {"ledger": identity})

    # --- traces -----------------------------------------------------------------------------------
    def _follows(self, lines: Sequence[Line]) -> bool:
        """Whether the copy is the beginning of the chain, byte by byte: by far the most common, and quickly seen."""
        had = self.path.read_bytes() if self.path.exists() else b""
        return b"".join(line.raw for line in lines).startswith(had)

    def _readable(self) -> list[Line]:
        data = self.path.read_bytes() if self.path.exists() else b""
        return [line for raw in data.splitlines(keepends=True) if (line := parse_line(raw))]

    def _hashes(self) -> dict[str, str]:
        """Hash → where it was found, of all that replies and journal name."""
        found = {}
        for path in self.root.glob("state/*/*/round-*/reply.safetensors"):
            record = read_metadata(path).get("spent")
            if record and (name := _hash_of(record)):
                found[name] = REPLY
        found |= {name: DIARY for body in self._journal() if (name := str(body.get("ledger") or ""))}
        marked = self._marked()
        return found | {marked: COHORT} if marked else found

    def _cohort(self) -> Path | None:
        """The cohort's folder; None where the site is simulated, since others use its cohort too."""
        record = read_json(self.root / "site.json")
        if not isinstance(record, dict) or record.get("simulated"):
            return None
        return self.root / str(record.get("cohort", "cohort"))

    def _marked(self) -> str | None:
        """Identity of the ledger that the cohort names."""
        cohort = self._cohort()
        if cohort is None or not (cohort / MARKER).is_file():
            return None
        try:
            record = read_json(cohort / MARKER)
        except DataError:
            return None
        return str(record["ledger"]) if isinstance(record, dict) and record.get("ledger") else None

    def _journal(self) -> list[dict[str, object]]:
        """What the journal says of each round that was trained; lines that were edited are not believed."""
        path = self.root / JOURNAL
        if not path.exists():
            return []
        raws = (raw for raw in path.read_bytes().splitlines(keepends=True) if b'"kind":"trained"' in raw)
        return [line.body for raw in raws if (line := parse_line(raw)) and line.kind == "trained"]


def known_hashes(lines: Iterable[Line]) -> set[str]:
    """Hashes of lines, and of those that a repair, or a ledger that was taken over, has put into one line."""
    lines = list(lines)
    return {line.hash for line in lines} | {name for line in lines for name in line.body.get("hashes", ())}


def _hash_of(spent: str) -> str | None:
    try:
        name = parse_json(spent)["ledger_hash"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(name)

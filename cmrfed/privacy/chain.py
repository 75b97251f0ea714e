"""An append-only file of lines, each of which names the hash of the one before, made to survive power cuts.

``ledger.jsonl`` has one canonical JSON object a line; ``ledger.head`` is a copy of its last line. To append, the new
line is first written as the head (atomically, on the disk before anything else happens) and then added to the file. So
after a crash the head holds what the file may lack, and reading finishes the interrupted append. Every other difference
between the two, and every byte that changed, is damage, and reading refuses.

The chain shows accidents and careless edits. Who can write both files can put an old copy of both in their place: keep
the last hash elsewhere (`PrivacyLedger.spent` gives it) to notice that as well.
"""

import fcntl
import json
import os
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cmrfed.artifacts import canonical_json, digest_json, write_bytes
from cmrfed.errors import PrivacyError

START = "0" * 64
"""The hash before the first line."""
_KEYS = {"number", "previous", "time", "kind", "body", "hash"}
_NONCE = "nonce"
"""128 random bits in each line. Hashes of lines travel: without it, whoever knows what was asked could find the time of
a line by trying every second. Lines of earlier versions have none."""


@dataclass(frozen=True)
class Line:
    """One line that keeps its own hash; ``raw`` is its bytes with the newline."""

    number: int
    previous: str
    kind: str
    body: dict[str, Any]
    hash: str
    raw: bytes


def make_line(number: int, previous: str, kind: str, body: dict[str, Any]) -> Line:
    """A new line, dated now."""
    content = {
        "number": number,
        "previous": previous,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": kind,
        "body": body,
        _NONCE: secrets.token_hex(16),
    }
    digest = digest_json(content)
    return Line(number, previous, kind, body, digest, (canonical_json({**content, "hash": digest}) + "\n").encode())


def parse_line(raw: bytes) -> Line | None:
    """The line in ``raw``, newline included, or None where a single byte is not as it was written."""
    try:
        content = json.loads(raw)
        if set(content) - {_NONCE} != _KEYS or (canonical_json(content) + "\n").encode() != raw:
            return None
        digest = content.pop("hash")
        if digest_json(content) != digest:
            return None
        return Line(content["number"], content["previous"], content["kind"], content["body"], digest, raw)
    except (ValueError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class Survey:
    """What lies on the disk: the lines that hold from the start, the bytes after them, and the head."""

    lines: tuple[Line, ...]
    rest: bytes
    head: Line | None
    exists: bool

    @property
    def sound(self) -> bool:
        """Whether file and head agree."""
        return not self.rest and bool(self.lines) and self.head is not None and self.head.raw == self.lines[-1].raw

    @property
    def interrupted(self) -> bool:
        """Whether an append reached the head and, at most in part, the file."""
        head = self.head
        follows = head is not None and (head.number, head.previous) == (len(self.lines), last_hash(self.lines))
        return follows and head is not None and self.rest != head.raw and head.raw.startswith(self.rest)


def last_hash(lines: tuple[Line, ...]) -> str:
    """The hash that the next line names."""
    return lines[-1].hash if lines else START


class Chain:
    """The two files in one folder. Every method but `locked` and `create` is to be called inside ``with locked()``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.head_path = folder, folder / "ledger.jsonl", folder / "ledger.head"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other process uses the ledger; the kernel frees the lock when a process dies.

        Raises:
            PrivacyError: There is no such folder; it is not made, so that a misspelt one leaves nothing behind.
        """
        if not self.folder.is_dir():
            raise missing_ledger(self.folder)
        handle = os.open(self.folder / "ledger.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def survey(self) -> Survey:
        """Read both files without judging them."""
        data = self.path.read_bytes() if self.path.exists() else b""
        head = parse_line(self.head_path.read_bytes()) if self.head_path.exists() else None
        lines: list[Line] = []
        place, before = 0, START
        for raw in data.splitlines(keepends=True):
            line = parse_line(raw)
            if line is None or (line.number, line.previous) != (len(lines), before):
                break
            lines.append(line)
            place, before = place + len(raw), line.hash
        return Survey(tuple(lines), data[place:], head, self.path.exists() or self.head_path.exists())

    def read(self) -> tuple[Line, ...]:
        """All lines, after an append that a crash interrupted has been finished.

        Raises:
            PrivacyError: There is no ledger, or it is damaged.
        """
        survey = self.survey()
        if not survey.exists:
            raise missing_ledger(self.folder)
        if survey.interrupted and survey.head:
            self._write_tail(sum(len(line.raw) for line in survey.lines), survey.head.raw)
            return (*survey.lines, survey.head)
        if not survey.sound:
            raise _damaged(self.path, survey)
        return survey.lines

    def append(self, lines: tuple[Line, ...], kind: str, body: dict[str, Any]) -> Line:
        """Add a line after ``lines``, which are what `read` gave; it is on the disk when this returns."""
        line = make_line(len(lines), last_hash(lines), kind, body)
        write_bytes(self.head_path, line.raw)
        self._write_tail(sum(len(known.raw) for known in lines), line.raw)
        return line

    def replace_damaged(self, survey: Survey, kind: str, body: dict[str, Any]) -> Line:
        """Keep the lines that hold, and add one in place of all else; the caller has kept a copy."""
        line = make_line(len(survey.lines), last_hash(survey.lines), kind, body)
        write_bytes(self.head_path, line.raw)
        write_bytes(self.path, b"".join(known.raw for known in survey.lines) + line.raw)
        return line

    def _write_tail(self, place: int, raw: bytes) -> None:
        with open(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600), "r+b") as handle:
            handle.truncate(place)
            handle.seek(place)
            handle.write(raw)
            handle.flush()
            os.fsync(handle.fileno())


def missing_ledger(folder: Path) -> PrivacyError:
    """What to say where a site has no ledger."""
    return PrivacyError(
        f"{folder} has no privacy ledger",
        got="no ledger.jsonl",
        expected="the folder of a site that takes part in training",
        do="name the right folder, or restore the ledger; only a site that has never trained may start a new one",
    )


def _damaged(path: Path, survey: Survey) -> PrivacyError:
    held = len(survey.lines)
    if survey.head is None:
        found = f"{held} good line(s), and no readable head"
    elif survey.rest:
        found = f"line {held + 1} is torn, edited or out of place"
    else:
        found = f"{held} line(s) that do not end with the head, which is line {survey.head.number + 1}"
    return PrivacyError(
        f"the privacy ledger {path} is damaged",
        got=found,
        expected="an unbroken chain of lines that ends with the head",
        do=f"restore both files from a backup, or run cmrfed ledger {shlex.quote(str(path.parent))} --repair "
        '"what happened": what cannot be read then counts as unbounded loss',
    )

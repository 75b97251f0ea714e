"""An append-only file of lines, each of which names the hash of the one before, made to survive power cuts.

``ledger.jsonl`` has one canonical JSON object a line; ``ledger.head`` is a copy of its last line. To append, the new
line is first written as the head (atomically, on the disk before anything else happens) and then added to the file. So
after a crash the head holds what the file may lack, and reading finishes the interrupted append. Every other difference
between the two, and every byte that changed, is damage, and reading refuses.

The chain shows accidents and careless edits. An old copy of both files passes for the chain by itself; what sites
remember of it (`cmrfed.privacy.ledger.memory`) and what coordinators received shows that.
"""

import os
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from cmrfed.core.artifacts import OWNER_ALONE, canonical_json, digest_json, write_bytes
from cmrfed.core.errors import PrivacyError
from cmrfed.core.owner import owned
from cmrfed.core.text import parse_json

START = "0" * 64
"""The hash before the first line."""
_KEYS = {"number", "previous", "time", "kind", "body", "hash"}
PATIENCE_S = 60.0
"""How long to wait for another process to be done with a ledger: a use of it takes a fraction of a second."""
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

    @property
    def time(self) -> str:
        """When it was written."""
        return str(parse_json(self.raw.decode())["time"])


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


@lru_cache(maxsize=1 << 14)
def parse_line(raw: bytes) -> Line | None:
    """The line in ``raw``, newline included, or None where a single byte is not as it was written."""
    try:
        content = parse_json(raw.decode())
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
    """The two files in one folder. Every method but `locked` and `survey` is to be called inside ``with locked()``.

    Args:
        folder: Where they are.
        site: Folder of the site that uses them, for advice in messages; None: the same.
    """

    def __init__(self, folder: Path, site: Path | None = None) -> None:
        self.folder, self.path, self.head_path = folder, folder / "ledger.jsonl", folder / "ledger.head"
        self.site = site or folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other process uses the ledger; the kernel frees the lock when a process dies.

        Raises:
            PrivacyError: There is no such folder; it is not made, so that a misspelt one leaves nothing behind.
            InUse: Another process keeps it for a minute.
        """
        if not self.folder.is_dir():
            raise missing_ledger(self.folder)
        with owned(self.folder, "the privacy ledger", wait_s=PATIENCE_S):
            yield

    def survey(self) -> Survey:
        """Read both files without checking them."""
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
            raise _damaged(self.path, survey, self.site)
        return survey.lines

    def append(self, lines: tuple[Line, ...], kind: str, body: dict[str, Any]) -> Line:
        """Add a line after ``lines``, which are what `read` gave; it is on the disk when this returns."""
        line = make_line(len(lines), last_hash(lines), kind, body)
        write_bytes(self.head_path, line.raw, OWNER_ALONE)
        self._write_tail(sum(len(known.raw) for known in lines), line.raw)
        return line

    def replace_damaged(self, lines: tuple[Line, ...], kind: str, body: dict[str, Any]) -> Line:
        """Keep these lines, and add one in place of all else; the caller has kept a copy."""
        line = make_line(len(lines), last_hash(lines), kind, body)
        write_bytes(self.head_path, line.raw, OWNER_ALONE)
        write_bytes(self.path, b"".join(known.raw for known in lines) + line.raw, OWNER_ALONE)
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
        do="name the right folder; only a site that has never trained may start a new ledger",
    )


def _damaged(path: Path, survey: Survey, site: Path) -> PrivacyError:
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
        do=f'run cmrfed ledger {shlex.quote(str(site))} --repair "what happened": what can be read here or in the '
        "site's own copy counts as it is, and what is lost as unbounded; a backup that is put back first needs it too",
    )

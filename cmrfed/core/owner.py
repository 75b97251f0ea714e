"""One owner at a time: a run folder, a coordinator's kit, a site's kit or a ledger belongs to one process.

The kernel's lock on a file decides (`flock`, through filelock): it ends with the process, however that ends, so nothing
has to be cleaned up after a crash and a pid that is used again means nothing. A process that the owner starts or forks
does not hold it. A record beside the lock says who the owner is; it is for people, and trusted for nothing.

The lock holds between machines where the file system passes locks on: local disks, NFSv4, and NFSv3 with its lock
service. It does not where a share is mounted with ``nolock`` or ``local_lock``.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from cmrfed.core.errors import ConfigError, InUse

LOCK, RECORD = "owner.lock", "owner.json"
_PATIENCE_S = 1.0
"""How long a new owner may take until its record is there."""
_POLL_S = 0.02

_held: dict[str, tuple[int, int]] = {}
"""Locks of this process: path → (pid, thread)."""
_guard = threading.Lock()


class OwnerRecord(BaseModel):
    """The content of owner.json: who uses a folder, since when, and by which command."""

    model_config = ConfigDict(frozen=True)

    pid: int
    host: str
    since: str
    command: str
    started: str | None = None
    """What Linux notes of the start of this process, which no later process of the same pid shares."""

    @classmethod
    def of_this_process(cls) -> "OwnerRecord":
        """The record of the process that asks."""
        return cls(
            pid=os.getpid(),
            host=socket.gethostname(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            command=" ".join([_program(), *sys.argv[1:2]]),  # no more: arguments may hold a password
            started=_started(os.getpid()),
        )

    @property
    def may_live(self) -> bool:
        """Whether this process may still be there; True for another machine, of which nothing is known here."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:  # it is there, and belongs to somebody else
            pass
        return self.started is None or _started(self.pid) in (None, self.started)

    def text(self) -> str:
        """The owner in words."""
        return f"pid {self.pid} on {self.host}, since {self.since}: {self.command}"


def _program() -> str:
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def _started(pid: int) -> str | None:
    """Boot and clock tick at which a process started; None where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2]
        return f"{boot} {int(after_name.split()[19])}"
    except (OSError, ValueError, IndexError):
        return None


@contextmanager
def owned(folder: Path, what: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Own ``folder`` for the time of the block; the thread that owns it may ask again.

    Only ``owner.lock`` and ``owner.json`` are written, the second once the lock is held, so a refused process has
    changed nothing. A folder that was made for this and is still empty at the end is taken away again.

    Args:
        folder: What is owned; it is made if it is missing.
        what: What it is, in the error: "the run folder", "the coordinator".
        wait_s: How long to wait for another owner to end, in seconds.

    Raises:
        InUse: Another process owns it, or another thread of this one.
        ConfigError: The folder cannot be written, or its file system has no locks.
    """
    key, me = str(folder.resolve()), (os.getpid(), threading.get_ident())
    with _guard:
        again = _held.get(key) == me
    if again:
        yield
        return
    made = not folder.exists()
    lock = _acquire(folder, what, wait_s)
    try:
        _write_record(folder)
        with _guard:
            _held[key] = me
        yield
    finally:
        with _guard:
            _held.pop(key, None)
        if me[0] == os.getpid():  # not in a fork of the owner
            (folder / RECORD).unlink(missing_ok=True)
            if made and [path.name for path in folder.iterdir()] == [LOCK]:
                _take_away(folder)
            lock.release()


@contextmanager
def owned_around(path: Path) -> Iterator[None]:
    """Own the run folder that ``path`` lies in, if it lies in one: who writes there must not meet the run itself.

    Raises:
        InUse: Another process owns that folder.
    """
    around = next((folder for folder in path.absolute().parents if (folder / LOCK).is_file()), None)
    if around is None:
        yield
        return
    with owned(around, "the run folder"):
        yield


def refuse_if_owned(folder: Path, what: str) -> None:
    """Go on only where nobody owns a folder, which need not exist.

    Raises:
        InUse: A process owns it.
    """
    if (folder / LOCK).exists():
        _acquire(folder, what, 0.0).release()


def owner(folder: Path) -> OwnerRecord | None:
    """Who owns a folder now, if the process is known; for those who only read."""
    found = _record(folder)
    return found if found and found.may_live else None


def _acquire(folder: Path, what: str, wait_s: float) -> FileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, thread_local=False)
        lock.acquire(timeout=wait_s, poll_interval=_POLL_S)
    except Timeout:
        raise _in_use(folder, what) from None
    except OSError as error:
        raise ConfigError(
            f"{what} {folder} cannot be locked for this process",
            got=error.strerror or error,
            expected="a folder that can be written, on a file system with locks",
            do="see the folder's permissions, or take a folder on a local disk",
        ) from None
    return lock


def _in_use(folder: Path, what: str) -> InUse:
    deadline = time.monotonic() + _PATIENCE_S
    found = owner(folder)
    while found is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        found = owner(folder)
    return InUse(
        f"{what} {folder} is in use, and has been left as it is",
        got=found.text() if found else f"{LOCK} is held by a process that left no {RECORD}",
        expected="one process at a time",
        do="let that process go on, or end it and give the same command again",
    )


def _take_away(folder: Path) -> None:
    with suppress(OSError):  # somebody has put a file there at this moment, or waits for the lock
        (folder / LOCK).unlink()
        folder.rmdir()


def _write_record(folder: Path) -> None:
    part = folder / f".{RECORD}.part"
    part.write_text(OwnerRecord.of_this_process().model_dump_json() + "\n", encoding="utf-8")
    part.replace(folder / RECORD)


def _record(folder: Path) -> OwnerRecord | None:
    try:
        return OwnerRecord.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, ValidationError):
        return None

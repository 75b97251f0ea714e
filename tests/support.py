"""What several tests share."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for room in ("cmrfed", "client", "server", "benchmarks") for path in (ROOT / room).rglob("*.py"))
"""The project's own modules."""
_OWNER = """
import sys, time
from pathlib import Path
from cmrfed.core.owner import owned
with owned(Path(sys.argv[1]), "the folder"):
    print("held", flush=True)
    time.sleep(600)
"""


def real_data(name: str) -> Path:
    """The folder of a real data set, or a skip that says where it was looked for."""
    root = Path(os.environ.get("CMRFED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (root / name).is_dir():
        pytest.skip(f"real data '{name}' not found in {root}; set CMRFED_DATA to its parent folder")
    return root / name


@contextmanager
def other_owner(folder: Path) -> Iterator[int]:
    """Let another process own ``folder``; its pid."""
    command = [sys.executable, "-c", _OWNER, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def content(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Bytes and time of every file of a folder: to see that nothing was touched."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended, be it waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """All processes that a process started, and those that they started."""
    lists = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    children = [int(child) for each in lists for child in each]
    return children + [one for child in children for one in descendants(child)]

"""A real `flwr run` for tests: ports, home and Ray folder of its own, and nothing left running afterwards."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def consecutive_ports(count: int) -> int:
    """The first of so many ports that are free now, one after another."""
    for first in range(20_000 + os.getpid() % 500 * count, 32_000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for number, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + number))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return first
    raise AssertionError(f"no {count} ports in a row are free")


@contextmanager
def flower_environment() -> Iterator[dict[str, str]]:
    """Yield an environment for `flwr`; afterwards end every process that was started with it."""
    with tempfile.TemporaryDirectory(prefix="flwr-") as folder:  # short: Ray's socket paths have a limit
        control, superlink = free_ports(2)
        own = {
            "FLWR_HOME": f"{folder}/home",
            "FLWR_LOCAL_CONTROL_API_PORT": str(control),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(superlink),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_TMPDIR": f"{folder}/ray",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        Path(own["RAY_TMPDIR"]).mkdir()
        try:
            yield {**os.environ, **own, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        finally:
            _end_all(f"FLWR_HOME={own['FLWR_HOME']}")


def _started_with(variable: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def _end_all(variable: str) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        for pid in _started_with(variable):
            os.kill(pid, kind)
        deadline = time.monotonic() + 10
        while _started_with(variable) and time.monotonic() < deadline:
            time.sleep(0.2)


def flwr_run(sites: int, config: dict[str, str], *, timeout_s: float = 1000, app: Path = REPOSITORY) -> str:
    """Run the app under Flower's simulation and return what it printed."""
    pairs = " ".join(f"{key}='{value}'" for key, value in config.items())
    federation = f"num-supernodes={sites} client-resources-num-cpus=1 init-args-num-cpus=2"
    command = ["flwr", "run", str(app), "--stream", "-c", pairs, "--federation-config", federation]
    with flower_environment() as environment:
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    return done.stdout

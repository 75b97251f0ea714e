"""Runs one command on a Ray cluster, prints what it printed and ends as it ended: what a sweep starts in its place.

python -m cmrfed.sweep.on_ray ADDRESS CORES COMMAND…
"""

import logging
import os
import signal
import socket
import subprocess
import sys

from cmrfed.core.errors import ERROR_FILE, leave_error
from cmrfed.core.processes import end_with_parent

SHARED = ("XDG_CACHE_HOME", "PYTHONPATH", ERROR_FILE)
"""Variables of the environment that hold on the cluster too."""
_PATIENCE_S = 30.0


def run_here(words: list[str], environment: dict[str, str]) -> tuple[int, bytes]:
    """Run ``python WORDS…`` on the machine that Ray has chosen: its status, and what it printed.

    It ends with the worker that started it, so that a sweep that is killed leaves nothing behind on the cluster.
    """
    done = subprocess.run(  # noqa: S603
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
        preexec_fn=lambda: end_with_parent(signal.SIGKILL),
        check=False,
    )
    return done.returncode, done.stdout


def _knock(address: str) -> None:
    """Raise an OSError where nobody listens: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()


def _failed(text: str) -> int:
    """Say why it failed, to people and to the sweep; the exit status."""
    leave_error(text)
    print(f"error: {text}")
    return 1


def main(address: str, cores: str, *command: str) -> int:
    """Run it on the cluster; a command that failed is not tried again here."""
    import ray

    environment = {name: os.environ[name] for name in SHARED if name in os.environ}
    try:
        _knock(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        return _failed(
            f"no Ray cluster answers at {address}. Got: {first} Do: start one (ray start --head), or correct it"
        )
    remote = ray.remote(num_cpus=int(cores), max_retries=0)(run_here)
    try:
        status, printed = ray.get(remote.remote(list(command[1:]), environment))
    except ray.exceptions.RayError as error:
        return _failed(f"the cluster did not run it to its end: {type(error).__name__}. Do: run the same command again")
    sys.stdout.buffer.write(printed)
    sys.stdout.flush()
    if status < 0:
        _failed(f"its process was ended by {signal.Signals(-status).name} on the cluster")
    return abs(int(status))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

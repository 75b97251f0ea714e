"""TLS on the inside: between a proxy and Flower's process behind it, on one machine or between its containers."""

import os
import shutil
from pathlib import Path

from cmrfed.core.artifacts import new_folder, write_bytes
from cmrfed.core.errors import ConfigError
from cmrfed.deploy.certificates import Authority, days_left, write_key

NAMES = ("localhost", "127.0.0.1", "superlink", "gate")
"""What a proxy or a process behind it is called, on one machine and between containers."""
DAYS, RENEWED_AT_DAYS = 825, 60
NGINX_FOLDERS = ("body", "proxy", "fastcgi", "uwsgi", "scgi")


def make_inner(kit: Path, *, keep: bool = False) -> Path:
    """Make ``state/inner`` with ca.crt, server.crt and server.key, whole or not at all; returns the folder.

    Args:
        kit: Folder of the kit.
        keep: Keep what is there while it is valid for long: the containers of a kit start at different times.
    """
    target = kit / "state" / "inner"
    if keep and (target / "server.crt").exists() and days_left(target / "server.crt") > RENEWED_AT_DAYS:
        return target
    shutil.rmtree(target, ignore_errors=True)
    with new_folder(target) as part:
        authority = Authority.open(part / "authority", "inner")
        key = write_key(part / "server.key").public_key()
        write_bytes(part / "server.crt", authority.issue("localhost", key, DAYS, server_names=NAMES))
        write_bytes(part / "ca.crt", (part / "authority" / "ca.crt").read_bytes())
        shutil.rmtree(part / "authority")  # nothing more is ever signed with it
    return target


def nginx_command(kit: Path, configuration: str) -> list[str]:
    """How to run nginx in the foreground with a configuration of the kit.

    Raises:
        ConfigError: nginx is not installed.
    """
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if not program:
        raise ConfigError(
            "nginx is not installed", expected="nginx 1.18 or newer, which ends TLS",
            do="install it (Debian, Ubuntu: apt install nginx-light), or use the containers of compose.yaml",
        )  # fmt: skip
    for name in NGINX_FOLDERS:
        (kit / "state" / "nginx" / name).mkdir(parents=True, exist_ok=True)
    return [program, "-p", f"{kit.absolute()}/", "-c", str(kit.absolute() / configuration), "-e", "stderr"]

"""The owner's allow-list of code: no bundle is run on a site's data before its digest is on it.

``approved.jsonl`` in the site's folder holds a digest a line, with who approved it and when; ``waiting.json`` the
digests that were asked for and are not on it.
"""

import getpass
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cmrfed.core.artifacts import read_json, write_json
from cmrfed.core.errors import ConfigError, DataError
from cmrfed.core.text import parse_json, read_text
from cmrfed.privacy.ledger.journal import Journal

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Approvals:
    """The allow-list of one site.

    Args:
        folder: The site's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.asked = folder, folder / "approved.jsonl", folder / "waiting.json"

    def digests(self) -> list[str]:
        """Digests that were approved, and not withdrawn; what cannot be read approves nothing."""
        allowed: dict[str, bool] = {}
        for line in read_text(self.path, error=ConfigError).splitlines() if self.path.exists() else []:
            try:
                entry = parse_json(line)
                allowed[str(entry["digest"])] = entry["approved"] is True
            except (ValueError, KeyError, TypeError):
                raise ConfigError(
                    f"{self.path} is damaged", got=line[:80], expected="lines that `cmrfed site approve` wrote",
                    do="remove the file, and approve again",
                ) from None  # fmt: skip
        return [digest for digest, approved in allowed.items() if approved]

    def approve(self, digest: str, *, withdraw: bool = False) -> None:
        """Put a digest on the list, or take it off.

        Raises:
            ConfigError: It is no digest.
        """
        if not _DIGEST.fullmatch(digest):
            raise ConfigError(
                "this is no digest of a bundle", got=digest, expected="64 digits and letters a to f, in full",
                do="copy it from `cmrfed site status`, or from `cmrfed bundle` of a version that you trust",
            )  # fmt: skip
        entry = {"digest": digest, "approved": not withdraw, "time": _now(), "by": getpass.getuser()}
        with open(os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        Journal(self.folder).write("withdrawn" if withdraw else "approved", bundle=digest, by=entry["by"])

    def waiting(self) -> dict[str, Any]:
        """Digests that were asked for and not approved since, with the time of the first request."""
        try:
            asked: dict[str, Any] = read_json(self.asked) if self.asked.exists() else {}
        except DataError:
            asked = {}
        return {digest: when for digest, when in asked.items() if digest not in self.digests()}

    def note(self, digest: str) -> None:
        """Remember that a digest was asked for."""
        asked = self.waiting()
        if digest not in asked:
            write_json(self.asked, {**dict(list(asked.items())[-19:]), digest: _now()})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

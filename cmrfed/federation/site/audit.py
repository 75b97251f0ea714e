"""A deployed site's own audit of the private step: on its device, with the settings of a request, before it pays.

Nothing is believed of another machine's audit. What was found is kept in ``audit.json`` of the site's folder, and found
again as long as code, libraries, device and settings are the same; a failed audit stays failed.
"""

import importlib.metadata
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

from cmrfed.core.artifacts import OWNER_ALONE, digest_bytes, digest_json, write_json
from cmrfed.core.device import device_name
from cmrfed.core.errors import PrivacyError
from cmrfed.core.settings.validation import read_model
from cmrfed.federation.messages import StageJob
from cmrfed.privacy.audit.rows import AuditRow
from cmrfed.training.audit import audit_training

FILE = "audit.json"
KEPT = 50
"""Audits that a site keeps."""
_LIBRARIES = ("torch", "opacus", "numpy", "scipy")


class SiteAudit(AuditRow):
    """A row of the site's audit.json."""

    key: str
    """Digest of all that the audit depends on."""
    time: str
    code: str
    """Digest of the project's code."""
    device: str


def audit_site(root: Path, job: StageJob, device: torch.device) -> SiteAudit:
    """What the audit for a private request says; made now, unless it was made before.

    Args:
        root: The site's folder.
        job: A request with a section on privacy.
        device: Of the site.

    Returns:
        The row of audit.json.

    Raises:
        PrivacyError: The audit fails, now or before. Nothing of it depends on a patient.
    """
    if job.privacy is None:
        raise AssertionError("a request without privacy has nothing to audit")
    key, rows = _key(job, device), read_audits(root)
    row = next((row for row in rows if row.key == key), None)
    if row is None:
        found = audit_training(job.stage, job.generator, job.training, job.privacy, device).row(job.stage)
        row = SiteAudit(
            **dict(found),
            key=key,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            code=code_digest(),
            device=device_name(device),
        )
        write_json(root / FILE, [each.model_dump(mode="json") for each in [*rows, row][-KEPT:]], OWNER_ALONE)
    if not row.passed:
        raise PrivacyError(
            "the private step fails its audit at this site, and trains on nobody",
            got=row.failed_checks,
            expected="every line as in a correct step",
            do="report the site's audit.json; the site trains again with code that passes",
        )
    return row


def read_audits(root: Path) -> list[SiteAudit]:
    """All audits that a site keeps, oldest first.

    Raises:
        DataError: The file is no JSON.
        PrivacyError: It holds something else.
    """
    path = root / FILE
    if not path.exists():
        return []
    return read_model(
        path,
        list[SiteAudit],
        error=PrivacyError,
        expected="rows that audits wrote",
        do="remove it: audits are made again",
    )


def _key(job: StageJob, device: torch.device) -> str:
    """Digest of all that an audit depends on."""
    settings = job.model_dump(mode="json", include={"stage", "generator", "training", "privacy"})
    return digest_json([code_digest(), _versions(), device_name(device), settings])


@cache
def code_digest() -> str:
    """Digest of the project's code as it is installed."""
    folder = Path(__file__).parents[2]
    parts = {p.relative_to(folder).as_posix(): digest_bytes(p.read_bytes()) for p in sorted(folder.rglob("*.py"))}
    return digest_json(parts)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}

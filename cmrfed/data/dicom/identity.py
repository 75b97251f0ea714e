"""Names of patients that only the holder of a key can give: keyed hashes of the identifiers in the headers.

The key lies at the site, beside the cohort and never in it. Who has both key and identifier finds the patient in the
cohort again; from a cohort alone nobody finds an identifier, not even by trying all of them.
"""

import hashlib
import hmac
import secrets
from pathlib import Path

from cmrfed.core.artifacts import write_text
from cmrfed.core.errors import DataError
from cmrfed.core.text import read_text

KEY_BYTES = 32
_DIGITS = 16
"""Hexadecimal digits of a name: two of a million patients share one with a probability of 3e-8."""


def key_beside(cohort: Path) -> Path:
    """Where the key of a cohort lies unless another place is named: beside its folder."""
    return cohort.parent / f"{cohort.name}.key"


def site_key(path: Path, cohort: Path | None = None) -> bytes:
    """Read the key at ``path``, or make one there that its owner alone may read.

    Args:
        path: The file; it may be shared by all cohorts of a site, so that a patient has one name in all of them.
        cohort: Folder of the cohort, in which the key must not lie.

    Raises:
        DataError: The file is no key, or lies in the cohort.
    """
    if cohort is not None and path.resolve().is_relative_to(cohort.resolve()):
        raise DataError(
            "the key would lie in the cohort, and travel with it",
            got=path,
            expected="a file outside of the cohort's folder",
            do=f"--key {key_beside(cohort)}",
        )
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, secrets.token_hex(KEY_BYTES) + "\n", mode=0o600)
    text = read_text(path).strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise DataError(
            f"{path} is not a key",
            expected=f"{2 * KEY_BYTES} hexadecimal digits",
            do="name the key of the earlier cohorts, or a new file, with --key",
        )
    return key


def pseudonym(key: bytes, patient_id: str, issuer: str = "") -> str:
    """The name of a patient: HMAC-SHA-256 (RFC 2104) of identifier and issuer, without spaces around them.

    Args:
        key: See :func:`site_key`.
        patient_id: Patient ID (0010,0020).
        issuer: Issuer of Patient ID (0010,0021): two hospitals may use one number.
    """
    content = f"{issuer.strip()}\n{patient_id.strip()}".encode()
    return f"p-{hmac.new(key, content, hashlib.sha256).hexdigest()[:_DIGITS]}"
